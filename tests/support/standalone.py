"""For a script of this folder that runs by itself: `import_packages("support", "demo")`, before anything of theirs is imported."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[1]
FOLDERS = {"support": HERE, "demo": ROOT / "demo", "pistachio": ROOT}


def import_packages(*names: str) -> None:
    """Under their own names, with neither this folder, whose host.py and server.py are in the way, nor the repository on the path."""
    sys.path[:] = [entry for entry in sys.path if Path(entry or ".").resolve() not in (ROOT, HERE)]
    for name in names:
        folder = FOLDERS[name]
        spec = importlib.util.spec_from_file_location(name, folder / "__init__.py", submodule_search_locations=[str(folder)])
        module = sys.modules[name] = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
