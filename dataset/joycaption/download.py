"""From a folder or a Hugging Face name to a complete model folder on disk.

Owns the disk check, the resumable download and the sentences for a machine without internet.
Keys come from Hugging Face's own login. Knows nothing about what the files mean to a model.
"""

from __future__ import annotations

import json
import logging
import re
import threading
from pathlib import Path
from typing import Callable

from ...training.errors import PistachioError
from ..files import free_bytes

log = logging.getLogger(__name__)

PATTERNS = ("*.json", "*.jinja", "*.safetensors", "*.model", "*.txt")  # no pickles, no second copies in other formats
RESERVE_BYTES = 1_000_000_000  # left free on the disk
POLL_SECONDS = 1.0
_REPO = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")


def resolve_model(
    folder_or_repo: str | Path,
    *,
    models_folder: Path | None,
    progress: Callable[[int, int], None] = lambda done, total: None,  # bytes
    endpoint: str | None = None,  # another Hugging Face server
) -> Path:
    """A complete local folder: the given one, one below `models_folder`, or a download into it."""
    text = str(folder_or_repo).strip()
    if not text:
        raise PistachioError("No captioner is named. Give a folder or a Hugging Face name such as fancyfeast/llama-joycaption-beta-one-hf-llava.")
    local = Path(text).expanduser()
    if local.is_dir():
        missing = missing_files(local)
        if missing:
            raise PistachioError(f"The captioner folder '{local}' is incomplete: {', '.join(missing[:5])} missing. Copy the missing files, or give the Hugging Face name.")
        return local
    if models_folder is not None:
        target = Path(models_folder) / text.rsplit("/", 1)[-1]
        if target.is_dir() and not missing_files(target):
            return target
    if not _REPO.fullmatch(text) or local.is_absolute():
        raise PistachioError(f"The captioner '{text}' is neither a folder nor a Hugging Face name (owner/name). Correct it on Load JoyCaption.")
    if models_folder is None:
        raise PistachioError(f"'{text}' is not on this machine and there is no models folder to download it to. Give a local folder.")
    return _download(text, target, progress, endpoint)


def missing_files(folder: Path) -> list[str]:
    """Names of the model files that are not there; an interrupted download lacks some."""
    missing = [name for name in ("config.json", "tokenizer.json") if not (folder / name).is_file()]
    index = folder / "model.safetensors.index.json"
    if index.is_file():
        try:
            shards = sorted(set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values()))
        except (ValueError, KeyError, AttributeError) as error:
            raise PistachioError(f"'{index}' is damaged ({error}). Delete it and load again.") from error
        missing += [name for name in shards if not (folder / name).is_file()]
    elif not (folder / "model.safetensors").is_file():
        missing.append("model.safetensors")
    return missing


def _download(repo: str, target: Path, progress: Callable[[int, int], None], endpoint: str | None) -> Path:
    try:
        from huggingface_hub import HfApi, snapshot_download
    except ImportError as error:
        raise PistachioError("Downloading a captioner needs the package huggingface_hub: pip install huggingface_hub. A local folder works without it.") from error
    by_hand = f"On another machine download every file of {repo} and put them into '{target}'; then it loads without a connection."
    try:
        info = HfApi(endpoint=endpoint).model_info(repo, files_metadata=True, timeout=20)
        wanted = [s for s in info.siblings if any(Path(s.rfilename).match(pattern) for pattern in PATTERNS)]
        size_bytes = sum(s.size or 0 for s in wanted)
    except Exception as error:  # requests, httpx and the hub's own errors share no base class over the versions
        raise _unreachable(repo, error, by_hand) from error
    have_bytes = _size_on_disk(target)
    free = free_bytes(target)
    need_bytes = max(size_bytes - have_bytes, 0) + RESERVE_BYTES
    if free < need_bytes:
        raise PistachioError(
            f"{repo} needs {need_bytes / 1e9:.1f} GB more on the disk of '{target.parent}' (1 GB of it kept free), and {free / 1e9:.1f} GB are free. "
            "Free some space, point the models folder to another disk, or choose a smaller captioner such as an nf4 one."
        )
    log.info("Downloading %s (%.1f GB) to %s", repo, size_bytes / 1e9, target)
    finished = threading.Event()

    def report():
        while not finished.wait(POLL_SECONDS):
            progress(min(_size_on_disk(target), size_bytes), size_bytes)

    reporter = threading.Thread(target=report, name="pistachio-download-progress", daemon=True)
    reporter.start()
    try:
        snapshot_download(repo, local_dir=target, allow_patterns=list(PATTERNS), endpoint=endpoint)
    except Exception as error:  # as above
        raise _unreachable(repo, error, by_hand + " What was downloaded is kept: queue again to go on.") from error
    finally:
        finished.set()
        reporter.join()
    missing = missing_files(target)
    if missing:
        raise PistachioError(f"{repo} was downloaded to '{target}' but lacks {', '.join(missing[:5])}: it is not a JoyCaption model in the transformers format.")
    progress(size_bytes, size_bytes)
    return target


def _unreachable(repo: str, error: Exception, by_hand: str) -> PistachioError:
    status = getattr(getattr(error, "response", None), "status_code", None)
    if status in (401, 403, 404):
        return PistachioError(
            f"Hugging Face has no '{repo}' for you (status {status}). Check the name; for a gated model log in with 'hf auth login'. {by_hand}"
        )
    first_line = str(error).strip().splitlines()[0] if str(error).strip() else ""
    return PistachioError(f"'{repo}' is not on this machine and Hugging Face can't be reached ({type(error).__name__}: {first_line}). {by_hand}")


def _size_on_disk(folder: Path) -> int:
    """Bytes below the folder, partial downloads included."""
    total = 0
    for path in folder.rglob("*") if folder.is_dir() else ():
        try:
            total += path.stat().st_size if path.is_file() else 0
        except FileNotFoundError:
            continue  # renamed by the download just now
    return total
