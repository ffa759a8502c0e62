"""Frozen blocks that wait in host memory and pass through a few slots on the device, ahead of their use.

`blocks` says which and what that costs, `tensors` and `image` hold one block's weights in either place, `ring` decides
when what is copied, `device` does it (`simulated` where there is no card), `context` puts it around a model.
Weights go to the device and never come back: they are frozen.
"""
