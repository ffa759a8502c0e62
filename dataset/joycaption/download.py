"""From a folder or a Hugging Face name to a complete model folder on disk.

Owns the disk check, the resumable download, the check of what arrived and the sentences for a machine without internet.
Keys come from Hugging Face's own login. Knows nothing about what the files mean to a model.
"""

from __future__ import annotations

import hashlib
import json
import logging
import re
import threading
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Callable

from ...training.errors import PistachioError
from ..files import free_bytes

log = logging.getLogger(__name__)

PATTERNS = ("*.json", "*.jinja", "*.safetensors", "*.model", "*.txt")  # no pickles, no second copies in other formats
RESERVE_BYTES = 1_000_000_000  # left free on the disk
POLL_SECONDS = 1.0
CANCEL_POLL_SECONDS = 0.25
HASH_BLOCK_BYTES = 1 << 22
_REPO = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")


def resolve_model(
    folder_or_repo: str | Path,
    *,
    models_folder: Path | None,
    progress: Callable[[int, int], None] = lambda done, total: None,  # bytes
    check_interrupted: Callable[[], None] = lambda: None,
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
            raise PistachioError(f"The captioner folder '{local}' is incomplete: {', '.join(missing[:5])} missing or cut short. Copy those files again, or give the Hugging Face name.")
        return local
    if models_folder is not None:
        target = Path(models_folder) / text.rsplit("/", 1)[-1]
        if target.is_dir() and not missing_files(target):
            return target
    if not _REPO.fullmatch(text) or local.is_absolute():
        raise PistachioError(f"The captioner '{text}' is neither a folder nor a Hugging Face name (owner/name). Correct it on Load JoyCaption.")
    if models_folder is None:
        raise PistachioError(f"'{text}' is not on this machine and there is no models folder to download it to. Give a local folder.")
    return _download(text, target, progress, check_interrupted, endpoint)


def missing_files(folder: Path) -> list[str]:
    """Names of the model files that are not there or shorter than they say; an interrupted download or copy leaves such."""
    missing = [name for name in ("config.json", "tokenizer.json") if not (folder / name).is_file()]
    index = folder / "model.safetensors.index.json"
    if index.is_file():
        try:
            shards = sorted(set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values()))
        except (ValueError, KeyError, AttributeError) as error:
            raise PistachioError(f"'{index}' is damaged ({error}). Delete it and load again.") from error
    else:
        shards = ["model.safetensors"]
    return missing + [name for name in shards if not _is_whole(folder / name)]


def _is_whole(file: Path) -> bool:
    """A safetensors file says in its header where its last tensor ends."""
    try:
        with open(file, "rb") as handle:
            header_bytes = int.from_bytes(handle.read(8), "little")
            size_bytes = file.stat().st_size
            if header_bytes > size_bytes - 8:
                return False
            header = json.loads(handle.read(header_bytes))
        ends = [entry["data_offsets"][1] for name, entry in header.items() if name != "__metadata__"]
    except (FileNotFoundError, IsADirectoryError, ValueError, KeyError, TypeError, AttributeError):
        return False
    return size_bytes == 8 + header_bytes + max(ends, default=0)


def weights_bytes(folder: Path) -> int:
    return sum(file.stat().st_size for file in folder.glob("*.safetensors"))


@dataclass(frozen=True, kw_only=True, slots=True)
class _Remote:
    """A file as Hugging Face lists it."""

    name: str
    size_bytes: int | None
    sha256: str | None  # of large files only

    @classmethod
    def of(cls, sibling: Any) -> "_Remote":
        lfs = sibling.lfs  # a record, or a dictionary in older releases of huggingface_hub
        sha256 = lfs.get("sha256") if isinstance(lfs, dict) else getattr(lfs, "sha256", None)
        return cls(name=sibling.rfilename, size_bytes=sibling.size, sha256=sha256)

    def fault(self, folder: Path, check_interrupted: Callable[[], None]) -> str | None:
        """What is wrong with the copy in `folder`."""
        file = folder / self.name
        if not file.is_file():
            return "missing"
        if self.size_bytes is not None and file.stat().st_size != self.size_bytes:
            return f"{file.stat().st_size} bytes instead of {self.size_bytes}"
        if self.sha256 is None:
            return None
        digest = hashlib.sha256()
        with open(file, "rb") as handle:
            while block := handle.read(HASH_BLOCK_BYTES):
                check_interrupted()
                digest.update(block)
        return None if digest.hexdigest() == self.sha256 else "its checksum differs"


def _download(repo: str, target: Path, progress: Callable[[int, int], None], check_interrupted: Callable[[], None], endpoint: str | None) -> Path:
    try:
        from huggingface_hub import HfApi
    except ImportError as error:
        raise PistachioError("Downloading a captioner needs the package huggingface_hub: pip install huggingface_hub. A local folder works without it.") from error
    by_hand = f"On another machine download every file of {repo} and put them into '{target}'; then it loads without a connection."
    try:
        info = HfApi(endpoint=endpoint).model_info(repo, files_metadata=True, timeout=20)
    except Exception as error:  # requests, httpx and the hub's own errors share no base class over the versions
        raise _unreachable(repo, error, by_hand) from error
    wanted = [_Remote.of(s) for s in info.siblings if any(Path(s.rfilename).match(pattern) for pattern in PATTERNS)]
    size_bytes = sum(remote.size_bytes or 0 for remote in wanted)
    have_bytes = size_on_disk(target)
    free = free_bytes(target)
    need_bytes = max(size_bytes - have_bytes, 0) + RESERVE_BYTES
    if free < need_bytes:
        raise PistachioError(
            f"{repo} needs {need_bytes / 1e9:.1f} GB more on the disk of '{target.parent}' (1 GB of it kept free), and {free / 1e9:.1f} GB are free. "
            "Free some space, point the models folder to another disk, or choose a smaller captioner such as an nf4 one."
        )
    log.info("Downloading %s (%.1f GB) to %s", repo, size_bytes / 1e9, target)
    for attempt in (1, 2):
        error = _fetch(repo, target, lambda: progress(min(size_on_disk(target), size_bytes), size_bytes), check_interrupted, endpoint)
        if error is not None:
            raise _unreachable(repo, error, by_hand + " What was downloaded is kept: queue again to go on.") from error
        faults = {remote.name: fault for remote in wanted if (fault := remote.fault(target, check_interrupted))}
        if not faults:
            break
        words = ", ".join(f"{name} ({fault})" for name, fault in faults.items())
        log.warning("Files of %s arrived damaged: %s", repo, words)
        for name in faults:
            (target / name).unlink(missing_ok=True)
        if attempt == 2:
            raise PistachioError(f"Files of {repo} arrived damaged twice and were removed: {words}. Queue again; if it goes on, look at the disk and the connection. {by_hand}")
    missing = missing_files(target)
    if missing:
        raise PistachioError(f"{repo} was downloaded to '{target}' but lacks {', '.join(missing[:5])}: it is not a JoyCaption model in the transformers format.")
    progress(size_bytes, size_bytes)
    return target


class _Stopped(Exception):
    """Ends the download's thread after a cancel."""


def _fetch(repo: str, target: Path, report: Callable[[], None], check_interrupted: Callable[[], None], endpoint: str | None) -> Exception | None:
    """Download on a thread, so that a cancel is heard; the error it ended with. What is there already is not fetched again."""
    from huggingface_hub import snapshot_download
    from huggingface_hub.utils import tqdm

    stop, ended = threading.Event(), threading.Event()
    errors: list[Exception] = []

    class StoppableProgress(tqdm):
        def update(self, *arguments: Any, **named: Any) -> Any:
            if stop.is_set():
                raise _Stopped
            return super().update(*arguments, **named)

    def work() -> None:
        try:
            snapshot_download(repo, local_dir=target, allow_patterns=list(PATTERNS), endpoint=endpoint, tqdm_class=StoppableProgress)
        except _Stopped:
            pass
        except Exception as error:  # as for model_info; the caller says it
            errors.append(error)
        finally:
            ended.set()

    threading.Thread(target=work, name="pistachio-download", daemon=True).start()
    waited = 0.0
    try:
        while not ended.wait(CANCEL_POLL_SECONDS):
            check_interrupted()
            waited += CANCEL_POLL_SECONDS
            if waited >= POLL_SECONDS:
                waited = 0.0
                report()
    finally:
        stop.set()  # a cancel: the thread ends with its next progress message
    return errors[0] if errors else None


def _unreachable(repo: str, error: Exception, by_hand: str) -> PistachioError:
    status = getattr(getattr(error, "response", None), "status_code", None)
    if status in (401, 403, 404):
        return PistachioError(
            f"Hugging Face has no '{repo}' for you (status {status}). Check the name; for a gated model log in with 'hf auth login'. {by_hand}"
        )
    first_line = str(error).strip().splitlines()[0] if str(error).strip() else ""
    return PistachioError(f"'{repo}' is not on this machine and Hugging Face can't be reached ({type(error).__name__}: {first_line}). {by_hand}")


def size_on_disk(folder: Path) -> int:
    """Bytes below the folder, partial downloads included."""
    total = 0
    for path in folder.rglob("*") if folder.is_dir() else ():
        try:
            total += path.stat().st_size if path.is_file() else 0
        except FileNotFoundError:
            continue  # renamed by the download just now
    return total
