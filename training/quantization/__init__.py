"""Frozen weights in fewer bits. `formats` says how each is stored; nothing here knows a layer, a network or the host."""
