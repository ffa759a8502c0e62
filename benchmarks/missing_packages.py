"""Inert modules in the place of packages that ComfyUI imports at its start and no benchmark uses: for machines without a network.

Only packages of the list, and only where they are not installed; which were replaced is told, and stands in the results.
"""

from __future__ import annotations

import importlib.abc
import importlib.machinery
import importlib.util
import sys
import types

# Samplers with noise of their own, video files, upscalers, picture effects, the database of assets, settings of cloud nodes.
REPLACEABLE = ("torchsde", "av", "spandrel", "spandrel_extra_arches", "kornia", "alembic", "sqlalchemy", "pydantic", "pydantic_settings")


class _Inert(type):
    """A class that gives further such classes for whatever is asked of it, and itself when it is called: at import nothing more is done."""

    def __getattr__(cls, name: str):
        if name.startswith("__"):
            raise AttributeError(name)
        return _inert(name)

    def __call__(cls, *arguments, **values):
        return super().__call__() if cls.__bases__ != (object,) else cls

    def __getitem__(cls, key):
        return cls

    def __iter__(cls):
        return iter(())


def _inert(name: str) -> type:
    return _Inert(name, (object,), {"__init_subclass__": classmethod(lambda cls, **values: None)})


class _Module(types.ModuleType):
    def __getattr__(self, name: str):
        if name.startswith("__"):
            raise AttributeError(name)
        return _inert(name)


class _Finder(importlib.abc.MetaPathFinder, importlib.abc.Loader):
    def __init__(self, names: tuple[str, ...]):
        self.names = names

    def find_spec(self, fullname, path=None, target=None):
        if fullname.partition(".")[0] not in self.names:
            return None
        return importlib.machinery.ModuleSpec(fullname, self, is_package=True)

    def create_module(self, spec):
        module = _Module(spec.name)
        module.__version__ = "0"
        return module

    def exec_module(self, module) -> None:
        pass


def replace_missing(*, also: tuple[str, ...] = ()) -> list[str]:
    """Puts inert modules in place of what is not installed, and of `also`; their names."""
    missing = [name for name in REPLACEABLE if name in also or (name not in sys.modules and importlib.util.find_spec(name) is None)]
    if missing:
        sys.meta_path.insert(0, _Finder(tuple(missing)))
    return missing
