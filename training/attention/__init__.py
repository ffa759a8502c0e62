"""Attention in training: which implementations have a backward here, and which of them is the fastest on a run's own shapes."""

from .backends import BACKENDS, Backend, Shape, shape_of
from .race import Heat, compete
from .table import AUTO, AttentionTable, Dispatcher, choose

__all__ = ["AUTO", "BACKENDS", "AttentionTable", "Backend", "Dispatcher", "Heat", "Shape", "choose", "compete", "shape_of"]
