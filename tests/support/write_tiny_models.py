"""Writes the tiny models' files, in a process of its own: `python write_tiny_models.py COMFYUI FOLDER`.

For tests that talk to a live server and must not import ComfyUI themselves.
"""

import importlib.util
import sys
import tempfile
from pathlib import Path


def main(comfyui: Path, folder: Path) -> None:
    here = Path(__file__).resolve().parent
    spec = importlib.util.spec_from_file_location("support", here / "__init__.py", submodule_search_locations=[str(here)])
    sys.modules["support"] = importlib.util.module_from_spec(spec)
    sys.path.remove(str(here))  # this script's own folder holds a host.py and a server.py
    from support import host, tiny_models

    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as base:
        host.boot(comfyui, Path(base))
        for name in tiny_models.BUILDERS:
            tiny_models.write_file(folder, name)


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
