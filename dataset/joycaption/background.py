"""Downloads of captioners that nobody waits for: started, asked about and cancelled from the canvas. One at a time for a model.

What was fetched stays on the disk, so that a cancelled or failed one goes on where it stopped. Knows nothing of HTTP.
"""

from __future__ import annotations

import logging
import threading
from dataclasses import dataclass
from pathlib import Path

from ...training.errors import PistachioError
from .download import missing_files, resolve_model, size_on_disk

log = logging.getLogger(__name__)

HERE, MISSING, RUNNING, FAILED = "here", "missing", "running", "failed"


class _Cancelled(Exception):
    """Ends a download that the user has no more use for."""


class Download:
    def __init__(self, repo: str, models_folder: Path, endpoint: str | None):
        self.done_bytes, self.total_bytes = 0, 0
        self.error = ""
        self._cancel = threading.Event()
        self._arguments = repo, models_folder, endpoint
        self.thread = threading.Thread(target=self._run, name="pistachio captioner download", daemon=True)
        self.thread.start()

    def cancel(self) -> None:
        self._cancel.set()

    @property
    def is_running(self) -> bool:
        return self.thread.is_alive()

    def _run(self) -> None:
        repo, models_folder, endpoint = self._arguments
        try:
            resolve_model(repo, models_folder=models_folder, progress=self._progress, check_interrupted=self._check, endpoint=endpoint)
        except _Cancelled:
            log.info("The download of %s was cancelled; what is there is kept.", repo)
        except (PistachioError, OSError) as error:
            self.error = str(error)
            log.warning("The download of %s failed: %s", repo, error)
        except Exception as error:  # of a thread nobody would hear otherwise
            log.exception("The download of %s failed", repo)
            self.error = f"The download failed: {error}. The log says more."

    def _progress(self, done_bytes: int, total_bytes: int) -> None:
        self.done_bytes, self.total_bytes = done_bytes, total_bytes

    def _check(self) -> None:
        if self._cancel.is_set():
            raise _Cancelled


@dataclass(frozen=True, kw_only=True, slots=True)
class State:
    state: str
    folder: str  # where it is, or will be
    done_bytes: int = 0  # on the disk
    total_bytes: int = 0  # 0: not known yet
    error: str = ""


class Downloads:
    def __init__(self, endpoint: str | None = None):
        self.endpoint = endpoint  # another Hugging Face server
        self._downloads: dict[Path, Download] = {}
        self._starting = threading.Lock()

    def state(self, repo: str, models_folder: Path) -> State:
        target = models_folder / repo.rsplit("/", 1)[-1]
        download = self._downloads.get(target)
        if download is not None and download.is_running:
            return State(state=RUNNING, folder=str(target), done_bytes=download.done_bytes or size_on_disk(target), total_bytes=download.total_bytes)
        if target.is_dir() and not missing_files(target):
            return State(state=HERE, folder=str(target), done_bytes=size_on_disk(target))
        error = download.error if download is not None else ""
        return State(state=FAILED if error else MISSING, folder=str(target), done_bytes=size_on_disk(target), error=error)

    def start(self, repo: str, models_folder: Path) -> None:
        target = models_folder / repo.rsplit("/", 1)[-1]
        with self._starting:
            download = self._downloads.get(target)
            if download is None or not download.is_running:
                self._downloads[target] = Download(repo, models_folder, self.endpoint)

    def cancel(self, repo: str, models_folder: Path) -> None:
        download = self._downloads.get(models_folder / repo.rsplit("/", 1)[-1])
        if download is not None:
            download.cancel()
            download.thread.join(timeout=5)  # so that the answer tells what is kept
