"""A run's numbers on Weights & Biases, if the user wants them there.

Owns the key names and wandb's own rules. It takes and stores no key: wandb uses its own login.
An outage never ends a training run: it is said once, and the numbers are in metrics.jsonl anyway.
"""

from __future__ import annotations

import json
import logging
import secrets
from collections.abc import Callable
from pathlib import Path

from ..dataset.files import atomic_write_text
from .config import LoggingConfig
from .errors import PistachioError

log = logging.getLogger("pistachio")

STEP = "train/step"
INIT_TIMEOUT_SECONDS = 30.0
TRAIN_KEYS = ("loss", "loss_ema", "lr")
EVAL_KEYS = ("loss", "loss_delta", "loss_delta_pct", "se", "se_vs_best", "n_images", "seconds")
PROBE_KEYS = ("train_delta", "transfer_ratio")
SELECT_KEYS = ("best_step", "chosen_step", "tied_lo", "tied_hi", "state")


def wandb_values(row: dict) -> dict[str, float]:
    """The wandb keys of one metrics row; empty for a row that wandb does not show."""
    kind = row["kind"]
    if kind == "train":
        values = {f"train/{key}": row.get(key) for key in TRAIN_KEYS}
    elif kind == "eval":
        values = {f"eval/{key}": row.get(key) for key in EVAL_KEYS}
        values |= {f"eval/t_q{q}/delta_pct": value for q, value in enumerate(row["t_q"], start=1)}
        values |= {f"eval/image/{short_hash}": delta for short_hash, delta in row["images"].items()}
    elif kind == "probe":
        values = {f"probe/{key}": row.get(key) for key in PROBE_KEYS}
    else:
        return {}
    return {STEP: row["step"]} | {key: value for key, value in values.items() if value is not None}


def sample_keys(row: dict) -> dict[str, dict]:
    """Key -> picture of a row of samples; a prompt keeps its key over the steps. Empty for every other row."""
    pictures = row["pictures"] if row["kind"] == "sample" else ()
    return {f"samples/{Path(picture['file']).stem}": picture for picture in pictures}


def selection_values(report: dict) -> dict[str, float | str]:
    tied_lo, tied_hi = report["tied_range"]
    found = report | {"tied_lo": tied_lo, "tied_hi": tied_hi}
    return {f"select/{key}": found[key] for key in SELECT_KEYS}


class WandbLogger:
    """One wandb run beside one run folder; does nothing when the mode is 'off'.

    Raises PistachioError when wandb is not installed or, for 'online', has no login.
    """

    def __init__(
        self,
        config: LoggingConfig,
        run_folder: Path,
        run_name: str,
        resolved_config: dict,
        *,
        init_timeout_seconds: float = INIT_TIMEOUT_SECONDS,
    ):
        self._run = None
        self._failed = False
        self.folder = run_folder
        if config.wandb == "off":
            return
        wandb = _import_wandb()
        if config.wandb == "online":
            _require_login(wandb)
        self._guard(lambda: self._start(wandb, config, run_folder, run_name, resolved_config, init_timeout_seconds))

    @property
    def active(self) -> bool:
        return self._run is not None and not self._failed

    def log(self, row: dict) -> None:
        """One row of metrics.jsonl. Steps are a value of the row, so a late evaluation is never dropped as out of order."""
        values = wandb_values(row) if self.active else {}
        if values:
            self._guard(lambda: self._run.log(values))
        pictures = sample_keys(row) if self.active else {}
        if pictures:
            self._guard(lambda: self._log_pictures(row["step"], pictures))

    def finish(self, report: dict | None = None) -> None:
        """Close the wandb run; `report` (report.json) adds the choice to its summary. Safe to call twice."""
        run, self._run = self._run, None
        if run is None or self._failed:
            return
        if report is not None:
            self._guard(lambda: run.summary.update(selection_values(report)))
        self._guard(lambda: run.finish(exit_code=0 if report is not None else 1))

    def _start(self, wandb, config, run_folder, run_name, resolved_config, init_timeout_seconds) -> None:
        self._run = wandb.init(
            project=config.project,
            entity=config.entity or None,
            name=run_name,
            id=_run_id(run_folder),
            # An offline run can't look up its past; wandb joins the parts by id when they are synced.
            resume="allow" if config.wandb == "online" else None,
            config=resolved_config,
            tags=list(config.tags) or None,
            mode=config.wandb,
            dir=str(run_folder),
            settings=wandb.Settings(
                # The host's console, its code and its command line are none of this run's business.
                console="off", disable_git=True, disable_code=True, x_disable_meta=True, silent=True,
                init_timeout=init_timeout_seconds, reinit="create_new",
            ),
        )
        self._run.define_metric(STEP)
        self._run.define_metric("*", step_metric=STEP)
        self._run.define_metric("eval/loss_delta", summary="min", step_metric=STEP)

    def _log_pictures(self, step: int, pictures: dict[str, dict]) -> None:
        wandb = _import_wandb()
        images = {key: wandb.Image(str(self.folder / picture["file"]), caption=picture["prompt"]) for key, picture in pictures.items()}
        self._run.log({STEP: step} | images)

    def _guard(self, action: Callable[[], None]) -> None:
        if self._failed:
            return
        try:
            action()
        # Whatever goes wrong inside wandb (network, service process, disk) is its own: training goes on.
        except Exception as error:
            self._failed = True
            log.warning("wandb stopped working (%s: %s). Training goes on; the numbers are in metrics.jsonl.", type(error).__name__, error)


def _import_wandb():
    try:
        import wandb
    except ImportError as error:
        raise PistachioError(
            "Logging to wandb is switched on, but the package 'wandb' is not installed. "
            "Install it with 'pip install wandb' in ComfyUI's Python, or choose 'off' in Logging Settings."
        ) from error
    return wandb


def _require_login(wandb) -> None:
    """wandb would ask for a key in the server's terminal, where nobody sees it: ask it for its login beforehand."""
    try:
        logged_in = wandb.login(timeout=1, verify=False)
    except (wandb.errors.Error, TimeoutError, ValueError) as error:
        raise PistachioError(_NO_LOGIN) from error
    if not logged_in:
        raise PistachioError(_NO_LOGIN)


_NO_LOGIN = (
    "wandb is set to 'online' but has no login on this machine. "
    "Run 'wandb login' once in ComfyUI's Python, or choose 'offline' in Logging Settings."
)


def _run_id(run_folder: Path) -> str:
    """Kept in the run folder, so that a resumed run goes on in the same wandb run."""
    path = run_folder / "wandb.json"
    if path.is_file():
        return json.loads(path.read_text("utf-8"))["id"]
    run_id = secrets.token_hex(4)
    atomic_write_text(path, json.dumps({"id": run_id}))
    return run_id
