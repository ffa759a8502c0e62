"""Adapter kind -> class. A new kind is one file and one line here."""

from .base import Adapter
from .dora import DoraAdapter
from .loha import LohaAdapter
from .lokr import LokrAdapter
from .lora import LoraAdapter

ADAPTERS: dict[str, type[Adapter]] = {"lora": LoraAdapter, "dora": DoraAdapter, "lokr": LokrAdapter, "loha": LohaAdapter}
