"""Writes the tiny models' files, in a process of its own: `python write_tiny_models.py COMFYUI FOLDER`.

For tests that talk to a live server and must not import ComfyUI themselves.
"""

import sys
import tempfile
from pathlib import Path

from standalone import import_packages


def main(comfyui: Path, folder: Path) -> None:
    import_packages("support")
    from support import host, tiny_models

    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as base:
        host.boot(comfyui, Path(base))
        for name in tiny_models.BUILDERS:
            tiny_models.write_file(folder, name)


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
