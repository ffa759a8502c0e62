"""What each block keeps for its backward; the rest is made again there.

| level | kept |
|---|---|
| blocks | a block's inputs |
| attention | also the outputs of attention and their statistics |
| products | also the products (linear layers, convolutions) whose outputs the backward reads as they are: q, k, v, an MLP's pre-activation |
| everything | every product that the backward needs: no product and no attention runs twice; norms, modulation, activations and copies may |
"""

from .blocks import KEEPS, check_keep, keep_for, saved_blocks
from .tape import Tape, Thrift, recording

__all__ = ["KEEPS", "Tape", "Thrift", "check_keep", "keep_for", "recording", "saved_blocks"]
