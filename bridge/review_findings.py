"""What Check Dataset finds, for the review's filter: worked out in a thread of its own, and asked for until it is there.

One at a time for a folder; a finished one counts until a picture or caption changes. Knows nothing about HTTP.
"""

from __future__ import annotations

import logging
import threading
from dataclasses import dataclass
from pathlib import Path

from ..dataset.findings import NOTE, STOP, WARNING, Report
from ..dataset.folder import folder_fingerprint, load_folder
from ..dataset.quality_checks import check_dataset
from ..training.errors import PistachioError
from ..training.messages import as_json
from .folders import allowed_roots, pictures_index

log = logging.getLogger(__name__)
KEPT = 8  # of the last folders


@dataclass(frozen=True, kw_only=True, slots=True)
class FindingsAsked:
    folder: Path
    recursive: bool = True
    trigger_word: str = ""
    resolution: int = 1024


class _Job:
    def __init__(self, asked: FindingsAsked):
        self.asked = asked
        self.fingerprint = folder_fingerprint(asked.folder, recursive=asked.recursive)
        self.done, self.total = 0, 0
        self.report: Report | None = None
        self.error = ""
        threading.Thread(target=self._run, name="pistachio findings", daemon=True).start()

    def _run(self) -> None:
        try:
            dataset = load_folder(
                self.asked.folder, recursive=self.asked.recursive, roots=allowed_roots(), index=pictures_index(), progress=self._progress(0),
            )
            self.report = check_dataset(
                dataset, trigger_word=self.asked.trigger_word, resolution=self.asked.resolution, progress=self._progress(len(dataset.pictures))
            )
        except (PistachioError, OSError) as error:
            self.error = str(error)
        except Exception as error:  # of a thread nobody would hear otherwise
            log.exception("Checking '%s' failed", self.asked.folder)
            self.error = f"The check failed: {error}. The log says more."

    def _progress(self, before: int):
        """Reading and measuring are half each."""

        def progress(done: int, total: int) -> None:
            self.done, self.total = before + done, 2 * total

        return progress

    def answer(self) -> dict:
        if self.error:
            return {"state": "failed", "error": self.error}
        if self.report is None:
            return {"state": "running", "done": self.done, "total": self.total}
        told = [finding for finding in self.report.of(NOTE, WARNING, STOP) if finding.pictures]
        return {
            "state": "done", "verdict": self.report.verdict, "verdict_message": as_json(self.report.verdict),
            "findings": [finding.as_json() | finding.messages() for finding in told],
        }


_jobs: dict[FindingsAsked, _Job] = {}
_starting = threading.Lock()


def findings(asked: FindingsAsked, *, start: bool) -> dict:
    """`state` none, running (with done and total), failed (with error), done (with findings). `start` begins it where it isn't known."""
    with _starting:
        job = _jobs.get(asked)
        is_over = job is not None and (job.report is not None or bool(job.error))
        if start and (job is None or is_over and job.fingerprint != folder_fingerprint(asked.folder, recursive=asked.recursive)):
            _jobs.pop(asked, None)
            job = _jobs[asked] = _Job(asked)
            while len(_jobs) > KEPT:
                _jobs.pop(next(iter(_jobs)))
        return job.answer() if job is not None else {"state": "none"}
