"""Adapter type -> class. A new type is one file and one line here."""

from .lora import LoraAdapter

ADAPTERS = {"lora": LoraAdapter}
