"""Where Pistachio may read and write on the user's disk.

Owns the allowed roots, the check that a path lies below one of them (links resolved), and the places
of runs, caches and captioners. Knows nothing about what the files hold.
"""

from __future__ import annotations

import hashlib
import os
from pathlib import Path

import folder_paths

from ..training.errors import PistachioError
from ..training.run import Run, check_run_name, list_runs

EXTRA_ROOTS = "pistachio"  # the key in extra_model_paths.yaml
CAPTIONERS = "LLM"  # where other packs keep language models too
GGUF, PROJECTOR = ".gguf", "mmproj"
CACHE_FOLDER = ".cache"
PICTURES_INDEX = "pictures-1.jsonl"  # another number when what is found out about a file changes

# Added, never replaced: an entry of extra_model_paths.yaml comes first.
folder_paths.add_model_folder_path(CAPTIONERS, os.path.join(folder_paths.models_dir, CAPTIONERS))


# ---- folders that a person names ------------------------------------------


def allowed_roots() -> tuple[Path, ...]:
    """input/, output/ and what `pistachio:` in extra_model_paths.yaml lists, links resolved."""
    extra = folder_paths.get_folder_paths(EXTRA_ROOTS) if EXTRA_ROOTS in folder_paths.folder_names_and_paths else []
    return tuple(Path(root).resolve() for root in (folder_paths.get_input_directory(), folder_paths.get_output_directory(), *extra))


def picture_folder(text: str) -> Path:
    """'my_character' lies in input/ or in an extra root; 'input/x', 'output/x' and whole paths are taken as they are."""
    name = _cleaned(text)
    if not name:
        raise PistachioError("No folder is given. Write the name of a folder in ComfyUI's input folder on Load Image Folder, for example 'my_character'.")
    candidates = _candidates(name)
    path = _there(candidates)
    if path is not None:
        return path.resolve()
    if not any(_is_allowed(candidate) for candidate in candidates):
        raise _outside(name)
    found = next(candidate for candidate in candidates if _is_allowed(candidate))
    if found.exists():
        raise PistachioError(f"'{found}' is a file, not a folder. Name the folder that holds the pictures on Load Image Folder.")
    raise PistachioError(
        f"The folder '{found}' does not exist. Put the pictures into a folder there, or correct the name '{name}' on Load Image Folder."
    )


def output_folder(text: str) -> Path:
    """A folder below output/, which need not exist; 'x' and 'output/x' are the same."""
    name = _cleaned(text)
    root = Path(folder_paths.get_output_directory()).resolve()
    path = _joined(root, name.split("/", 1)[1] if name.startswith("output/") else name)
    if path == root or not path.is_relative_to(root):
        raise PistachioError(f"'{text}' is not a folder below ComfyUI's output folder. Write a name such as 'my_character_split' on Split Dataset.")
    return path


def new_picture_folder(text: str) -> Path:
    """A folder for pictures to be written into, below input/ ('x', 'input/x') or output/ ('output/x'); it need not exist."""
    name = _cleaned(text)
    path = next(iter(_candidates(name))) if name else None
    roots = allowed_roots()[:2]
    if path is None or not any(path.is_relative_to(root) and path != root for root in roots):
        raise PistachioError(f"'{text}' is not a folder below ComfyUI's input or output folder. Write a name such as 'my_character'.")
    if path.exists() and not path.is_dir():
        raise PistachioError(f"'{path}' is a file, not a folder. Write another name.")
    return path


def upload_folder(text: str) -> Path:
    """A folder below input/ that dropped files may go into; it need not exist. Never another than the one that `picture_folder` finds."""
    name = _cleaned(text)
    root = Path(folder_paths.get_input_directory()).resolve()
    candidates = _candidates(name) if name else [root]
    path = _there(candidates) or candidates[0]
    if path == root or not path.is_relative_to(root) or any(part.startswith(".") for part in path.relative_to(root).parts):
        raise PistachioError(f"Pictures can be dropped into a folder below ComfyUI's input folder, and '{text}' is none. Choose another folder.")
    if path.exists() and not path.is_dir():
        raise PistachioError(f"'{path}' is a file, not a folder. Write another name.")
    return path


def folder_name(path: Path) -> str:
    """What `picture_folder` finds this folder by: as short as it is unmistakable."""
    input_root, output_root, *_ = allowed_roots()
    for root, first in ((input_root, "input"), (output_root, "output")):
        if not path.is_relative_to(root):
            continue
        below = path.relative_to(root).as_posix()
        if below == ".":
            return first
        return below if root == input_root and below.split("/", 1)[0] not in ("input", "output") else f"{first}/{below}"
    return path.as_posix()


def allowed_file(text: str) -> Path:
    """An existing file below an allowed root."""
    for candidate in _candidates(_cleaned(text)):
        if _is_allowed(candidate) and candidate.is_file():
            return candidate.resolve()
    raise PistachioError(f"'{text}' is no file below input/, output/ or the folders of 'pistachio' in extra_model_paths.yaml.")


def _cleaned(text: str) -> str:
    # Paths copied from a file manager come with quotes.
    return text.strip().strip("\"'").strip().replace("\\", "/")


def _candidates(name: str) -> list[Path]:
    input_root, output_root, *extra = allowed_roots()
    if os.path.isabs(name):
        return [_joined(input_root, name)]
    first, _, rest = name.partition("/")
    named = {"input": input_root, "output": output_root}.get(first)
    return [_joined(root, name) for root in (input_root, *extra)] if named is None else [_joined(named, rest), _joined(input_root, name)]


def _there(candidates: list[Path]) -> Path | None:
    return next((candidate for candidate in candidates if _is_allowed(candidate) and candidate.is_dir()), None)


def _joined(root: Path, name: str) -> Path:
    try:
        return (root / name).resolve()
    except (OSError, ValueError, RuntimeError) as error:  # a NUL byte, a name too long, links in a circle
        raise PistachioError(f"'{name[:200]}' is not a usable path ({error}). Correct the folder's name.") from error


def _is_allowed(path: Path) -> bool:
    return any(path.is_relative_to(root) for root in allowed_roots())


def _outside(name: str) -> PistachioError:
    return PistachioError(
        f"'{name}' lies outside the folders that Pistachio may read: {', '.join(map(str, allowed_roots()))}. Move the pictures into one of "
        "them, or list their folder under 'pistachio' in extra_model_paths.yaml and restart ComfyUI."
    )


# ---- runs -------------------------------------------------------------------


def runs_folder() -> Path:
    return Path(folder_paths.get_output_directory()) / "pistachio"


def cache_folder() -> Path:
    return runs_folder() / CACHE_FOLDER


def pictures_index() -> Path:
    """What was found out about pictures before."""
    return cache_folder() / PICTURES_INDEX


def run_names() -> list[str]:
    """Newest first."""
    return [run.name for run in list_runs(runs_folder())]


def find_run(name: str) -> Run:
    """A run of this name; PistachioError when there is none."""
    try:
        folder = runs_folder() / check_run_name(name)
    except PistachioError as error:
        raise _unknown_run(name) from error
    if not (folder / "config.json").is_file():
        raise _unknown_run(name)
    return Run(name=folder.name, folder=folder)


def _unknown_run(name: str) -> PistachioError:
    names = run_names()
    there = f"There are: {', '.join(names[:10])}" if names else "There are no runs yet: train one first"
    return PistachioError(f"There is no run '{name}' in '{runs_folder()}'. {there}.")


def run_fingerprint(name: str) -> str:
    """Changes with the run's state on disk; also when the run or its installed LoRA is deleted."""
    folder = runs_folder() / name.strip()
    return _digest([folder / "config.json", folder / "metrics.jsonl", folder / "report.json", *_installed(name)])


def _installed(name: str) -> list[Path]:
    """LoRA files whose names begin with the run's, wherever ComfyUI looks for LoRAs."""
    folders = [Path(folder) for folder in folder_paths.get_folder_paths("loras")]
    return sorted(
        path for folder in folders if folder.is_dir() for path in folder.rglob("*.safetensors") if path.name.startswith(name.strip())
    )


def loras_fingerprint() -> str:
    """Changes when a LoRA file is added, removed or replaced."""
    return _digest(_installed(""))


def _digest(paths: list[Path]) -> str:
    digest = hashlib.sha256()
    for path in paths:
        if path.is_file():
            status = path.stat()
            digest.update(f"{path}|{status.st_size}|{status.st_mtime_ns}\n".encode())
    return digest.hexdigest()


# ---- captioners --------------------------------------------------------------


def captioners_folder() -> Path:
    """Where captioners are downloaded to."""
    return Path(folder_paths.get_folder_paths(CAPTIONERS)[0])


def captioner_folder(text: str) -> Path:
    """A captioner that is already on the disk: a folder in models/LLM, or a path below it or an allowed root."""
    name = _cleaned(text)
    roots = [Path(folder).resolve() for folder in folder_paths.get_folder_paths(CAPTIONERS)]
    candidates = [_joined(root, name) for root in roots]
    allowed = [path for path in candidates if any(path.is_relative_to(root) for root in (*roots, *allowed_roots()))]
    if not allowed:
        raise PistachioError(
            f"'{name}' lies outside the captioners' folders: {', '.join(map(str, roots))}. Move the model there, or list its folder under "
            f"'{CAPTIONERS}' in extra_model_paths.yaml and restart ComfyUI."
        )
    found = next((path for path in allowed if path.is_dir()), None)
    if found is None:
        raise PistachioError(f"The captioner folder '{allowed[0]}' does not exist. Correct 'local_folder' on Load JoyCaption, or leave it empty to download.")
    return found


def gguf_files() -> list[str]:
    """Names of the .gguf files in the captioners' folders, with their subfolders."""
    roots = [Path(folder) for folder in folder_paths.get_folder_paths(CAPTIONERS)]
    return sorted({path.relative_to(root).as_posix() for root in roots if root.is_dir() for path in root.rglob("*") if path.suffix.lower() == GGUF})


def is_projector(name: str) -> bool:
    return PROJECTOR in name.rsplit("/", 1)[-1].lower()


def gguf_pair(model: str, projector: str = "") -> tuple[Path, Path]:
    """The files of a model and its projector; an empty projector is the only one beside the model."""
    model_file = _gguf_file(model)
    if projector:
        return model_file, _gguf_file(projector)
    beside = sorted(path for path in model_file.parent.iterdir() if path.suffix.lower() == GGUF and is_projector(path.name))
    if len(beside) != 1:
        there = f"several: {', '.join(path.name for path in beside)}" if beside else "none"
        raise PistachioError(
            f"Beside '{model_file}' there should be one file with '{PROJECTOR}' in its name, and there is {there}. "
            "Download the projector of this model into that folder, or choose it on Load GGUF Captioner."
        )
    return model_file, beside[0]


def _gguf_file(name: str) -> Path:
    roots = [Path(folder).resolve() for folder in folder_paths.get_folder_paths(CAPTIONERS)]
    found = next((path for root in roots if (path := _joined(root, name)).is_relative_to(root) and path.is_file()), None)
    if found is None:
        raise PistachioError(f"There is no file '{name}' in {', '.join(map(str, roots))}. Put the GGUF files of the captioner there and press R on the canvas.")
    return found
