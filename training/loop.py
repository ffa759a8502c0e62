"""The training loop: steps, evaluations, saves, and coming back from a stop.

It owns the order of things and nothing else: `trainer` makes the step, `evaluation` measures,
`selection` chooses, `run` writes.
"""

from __future__ import annotations

import logging
import math
import time
from dataclasses import dataclass, field
from typing import Callable, Sequence

import torch

from . import schedules
from .adapters.start import AdapterStart
from .batches import TrainItem
from .budget import timing_of
from .config import TrainConfig, to_dict
from .drift import Watch, drift_report, is_candidate, memorising_report
from .errors import DeviceMemoryError, NonFiniteLossError, PistachioError
from .evaluation import EvalItem, Schedule, evaluate, mean_error, plan_draws, plan_schedule, resume_note, self_test, t_values
from .folds import Refit
from .memory.record import MemoryRecord
from .messages import message
from .metadata import lora_metadata
from .model import TrainableModel
from .report import build_report, eval_row, gap_rows, note_row, records_from_rows, seconds_spent, write_report
from .run import RunFolder
from .runtime import choose_runtime
from .samples import SAMPLING_ERRORS, Sampler, sample_row, sample_steps
from .selection import EvaluationRecord, Selection, not_measured, select, should_stop
from .streaming.ring import Ring
from .trainer import Trainer
from .wishes import Wishes

log = logging.getLogger("pistachio")

# A backward costs about two forwards.
FORWARDS_PER_STEP = 3
PROBE_IMAGES = 16
PROBE_TIMESTEPS = 2


@dataclass(frozen=True, kw_only=True)
class RunInfo:
    """What the files of a run say about where it came from."""

    name: str
    trigger: str = ""
    split_id: str = ""
    base_model_hash: str = ""
    base_model: str = ""  # name of its file, where it is known
    resolution: tuple[int, int] | None = None
    versions: dict[str, str] = field(default_factory=dict)
    notes: tuple[str, ...] = ()  # sentences for the report of a new run
    start: AdapterStart | None = None  # weights of a file that a new run begins at


def train(
    model: TrainableModel,
    train_items: Sequence[TrainItem],
    eval_items: Sequence[EvalItem],
    config: TrainConfig,
    run: RunFolder,
    info: RunInfo,
    *,
    continued_from: int = 0,
    keep: str = "everything",
    keep_in_ram: bool = False,
    memory: MemoryRecord | None = None,
    ring: Ring | None = None,
    sampler: Sampler | None = None,
    save_interval_seconds: float = 0.0,
    refit: Refit | None = None,
    wishes: Wishes | None = None,
    log_row: Callable[[dict], None] = lambda row: None,
    check_interrupted: Callable[[], None] = lambda: None,
) -> Selection:
    """Train to the end, or to an early stop, from wherever the run folder stands. Call inside `model.training()`.

    `continued_from`: the step where a finished run was extended; its patience begins anew there.
    `refit`: other runs have chosen the last step; nothing is measured here, and the report says what they found.
    `keep`, `keep_in_ram`: what each block keeps for its backward, and where, see `saving`.
    `memory`: the plan that says so, with its batch; the real peak is measured beside it.
    `ring`: through which blocks are streamed, where they are.
    `wishes`: what a person asks meanwhile; measuring, sampling or stopping at a step changes no step before it.
    `save_interval_seconds`: the state is also saved when so much time has passed since; 0: at evaluations only.

    Whatever stops it (cancel, out of memory, an error) leaves a run that goes on from its last step; a kill,
    one that goes on from its last save. The numbers are the same as without the stop.
    """
    trainer = Trainer(model, train_items, config, keep=keep, keep_in_ram=keep_in_ram, start=info.start, **(memory.trainer_settings if memory else {}))
    if memory:
        plan = memory.plan
        choose_runtime(
            trainer, cuda_graph=plan.cuda_graph, compile=plan.compile, is_streaming=ring is not None, tell=lambda text: trainer.tell(text)
        )
    with trainer.network:
        session = _Session(trainer, train_items, eval_items, run, info, continued_from, log_row, check_interrupted)
        session.sampler, session.save_interval_seconds, session.memory = sampler, save_interval_seconds, memory
        session.wishes, session.ring = wishes or Wishes(), ring
        if refit is not None:
            session.refit_by(refit)
        return session.run()


class _Session:
    """One sitting of a run."""

    def __init__(self, trainer, train_items, eval_items, run, info, continued_from, log_row, check_interrupted):
        self.trainer, self.model, self.config = trainer, trainer.model, trainer.config
        self.run_folder, self.info, self.continued_from = run, info, continued_from
        self.log_row, self.check_interrupted = log_row, check_interrupted
        self.eval_items = list(eval_items)
        self.num_train = len(train_items)
        self.precision = "fp32" if getattr(self.model, "compute_dtype", torch.float32) is torch.float32 else "bf16"
        self.train_items = sorted(train_items, key=lambda item: item.content_hash)
        # In forward passes, so that the plan of a run never depends on the machine's mood.
        self._plan(FORWARDS_PER_STEP * self.config.effective_batch, max(1, len(self.eval_items)) * self.config.evaluation.timesteps_per_image)
        self.watch = Watch(self.model, trainer.network, list(train_items), self.eval_items, trainer.distribution, has_trigger=bool(info.trigger))
        self.rows: list[dict] = []
        self.stop_reason: str | None = None
        self.sampler: Sampler | None = None
        self.memory: MemoryRecord | None = None
        self.save_interval_seconds = 0.0
        self.wishes = Wishes()
        self.ring: Ring | None = None
        self.saved_at = time.monotonic()
        self.evaluated_step: int | None = None  # the last whose evaluation is complete, its checkpoint included
        self.refit: Refit | None = None
        self.last_step = self.config.num_steps

    def _plan(self, step_cost: float, evaluation_cost: float) -> None:
        """When to evaluate and on which draws; both costs in one unit."""
        evaluation, distribution = self.config.evaluation, self.trainer.distribution
        probe_items = self.train_items[:PROBE_IMAGES]
        num_forwards = max(1, len(self.eval_items)) * evaluation.timesteps_per_image
        self.schedule = plan_schedule(
            self.config.num_steps,
            num_evaluations=evaluation.num_evaluations,
            num_timesteps=evaluation.timesteps_per_image,
            num_images=max(1, len(self.eval_items)),
            seconds_per_step=step_cost,
            seconds_per_evaluation=evaluation_cost,
            probe_share=PROBE_TIMESTEPS * len(probe_items) / num_forwards,
        )
        self.draws = plan_draws(self.eval_items, num_timesteps=self.schedule.num_timesteps, distribution=distribution) if self.eval_items else ()
        self.probe_items = probe_items if self.schedule.num_probes else []  # they have all that an EvalItem has
        self.probe_draws = (
            plan_draws(self.probe_items, num_timesteps=PROBE_TIMESTEPS, distribution=distribution, for_choice=False) if self.probe_items else ()
        )
        self.probe_steps = {0, *self.schedule.steps[2::2][: self.schedule.num_probes]} if self.probe_items else set()

    def _plan_by_the_clock(self) -> None:
        timing = timing_of(self.run_folder, self.trainer, lambda: self._measure(self.eval_items, self.draws))
        self._plan(timing.seconds_per_step, timing.seconds_per_evaluation)

    def refit_by(self, refit: Refit) -> None:
        # The schedule of learning rates stays that of the whole run: the chosen step was chosen in it.
        self.refit, self.last_step = refit, refit.step
        self.schedule = Schedule(steps=(0, refit.step), num_timesteps=self.schedule.num_timesteps, num_probes=0)
        self.probe_items, self.probe_draws, self.probe_steps = [], (), set()

    # ---- the run ---------------------------------------------------------

    def run(self) -> Selection:
        self._begin()
        self.trainer.tell = self._note_once
        for note in self.ring.device.notes if self.ring else ():
            self._note_once(note)
        begun_at = self.trainer.step
        try:
            if self._evaluation_was_cut_short():
                self._evaluate_and_save()
            self._sample_if_due()
            while self.trainer.step < self.last_step and self.stop_reason is None:
                self.check_interrupted()
                self._advance()
                wished = self.wishes.take()
                if self.trainer.step in self.schedule.steps or wished & {"evaluate", "stop"}:
                    self._evaluate_and_save()
                    if "stop" in wished and self.stop_reason is None:
                        self.stop_reason = message("stop.asked", "you stopped it at step {step}.", step=self.trainer.step)
                    self._sample_if_due(is_wished="sample" in wished)
                elif "sample" in wished:
                    self._sample_if_due(is_wished=True)
                elif 0 < self.save_interval_seconds <= time.monotonic() - self.saved_at:
                    self._save_state()
        except BaseException as error:
            self._save_after(error)
            if isinstance(error, torch.OutOfMemoryError):
                raise DeviceMemoryError(
                    f"Out of GPU memory at step {self.trainer.step + 1}; the run is saved. Set block checkpointing to 'on', or lower the "
                    "batch size on Train LoRA (raise accumulation by as much), or lower the resolution on Encode Dataset.",
                    is_first_step=self.trainer.step == begun_at,
                ) from error
            raise
        return self._finish()

    def _begin(self) -> None:
        if self.config.evaluation.budget == "seconds" and self.eval_items:
            self._plan_by_the_clock()
        if self.memory is not None:
            self.memory.begin()
        weights = self.trainer.network.parameters
        # Every checkpoint, and twice (the new beside the old) a state of weights, average and two moments.
        self.run_folder.check_space(weights.numel() * weights.element_size() * (len(self.schedule.steps) + 8))
        self.run_folder.remove_leftovers()
        state = self.run_folder.load_state()
        if state is None:
            self.rows = self.run_folder.rewind_metrics(-1)
            for note in (self.schedule.note, *self.trainer.notes):
                if note:
                    self._note(note)
            for note in self.trainer.network.notes:
                self._note(note)
            for note in (*self.info.notes, *(self.memory.words if self.memory else ())):
                self._note(note)
            self._measure_base()
            self._save_state()
            return
        self.trainer.load(state)
        step = self.trainer.step
        # A state of an older version doesn't say it; its checkpoint does.
        self.evaluated_step = state.get("evaluated_step", step if step in self.run_folder.checkpoint_steps() else None)
        self.rows = self.run_folder.rewind_metrics(step, keep_evaluation=not self._evaluation_was_cut_short())
        self._note(message("note.resumed", "Resumed from step {step} of {steps}.", step=step, steps=self.config.num_steps))
        for note in self.memory.words if self.memory else ():
            self._note_once(note)
        if step == self.continued_from:
            self._note_once(self._words_on_extension())
        self._compare_after_resume()
        self.stop_reason = self._reason_to_stop()

    def _evaluation_was_cut_short(self) -> bool:
        # What is on the disk can't say it: a run that is killed after saving a checkpoint comes past it again.
        step = self.trainer.step
        return step > 0 and step in self.schedule.steps and step != self.evaluated_step

    def _words_on_extension(self) -> str:
        config, step = self.config, self.trainer.step
        first, last = (
            schedules.learning_rate_at(s, num_steps=config.num_steps, config=config.optimizer) for s in (step + 1, config.num_steps)
        )
        rates = message("note.rate_stays", "stays at {rate}", rate=f"{first:.2g}") if first == last else message(
            "note.rate_goes", "goes on at {first} and ends at {last}", first=f"{first:.2g}", last=f"{last:.2g}",
        )
        return message(
            "note.continued",
            "Continued from step {step} to step {steps}, with the optimiser and the weight average as they were. "
            "The learning rate {rates}: the '{schedule}' schedule over {steps} steps, from step {step} of it.",
            step=step, steps=config.num_steps, rates=rates, schedule=config.optimizer.schedule,
        )

    def _advance(self) -> None:
        start = time.perf_counter()
        result = self.trainer.advance()
        self._emit({
            "kind": "train", "step": self.trainer.step, "loss": _number(result.loss), "loss_ema": self.trainer.loss_ema,
            "prior_loss": result.prior_loss, "grad_norm": result.grad_norm, "lr": result.learning_rate,
            "seconds": time.perf_counter() - start,
        })

    # ---- evaluation ------------------------------------------------------

    @property
    def records(self) -> tuple[EvaluationRecord, ...]:
        return records_from_rows(self.rows)

    def _measure(self, items, draws) -> dict:
        # What fitted in memory with gradients fits without them, and 4 keeps a forward busy; a plan has counted it.
        batch = self.memory.plan.evaluation_batch if self.memory else max(4, self.config.batch_size)
        return evaluate(self.model, items, draws, batch_size=batch, check_interrupted=self.check_interrupted)

    def _measure_base(self) -> None:
        """Step 0, twice: the base alone, and the untrained adapter, which must change nothing."""
        if not self.eval_items:
            return
        network = self.trainer.network
        self._say_phase("evaluating")
        start = time.perf_counter()
        with network.disabled():
            base = self._measure(self.eval_items, self.draws)
        seconds = time.perf_counter() - start
        with network.neutral():
            self_test(base, self._measure(self.eval_items, self.draws), precision=self.precision)
        self._record(0, base, seconds)
        if network.starts_from_file:  # step 0 of the curve stays the base: what the file itself gives is said here
            change = 100 * (mean_error(self._measure(self.eval_items, self.draws)) / mean_error(base) - 1)
            self._note(message("note.start_file", "Before any training the file changes the held-out loss by {change} %.", change=f"{change:+.2f}"))
        self._probe(0)

    def _record(self, step: int, errors: dict, seconds: float) -> dict:
        record = EvaluationRecord(step=step, errors=errors, seconds=seconds, t_values=t_values(self.draws))
        row = eval_row([*self.records, record])
        if step and is_candidate([*self.records, record]):
            row["checks"] = self.watch.measure(self.check_interrupted)
        self._emit(row)
        return row

    def _probe(self, step: int) -> None:
        """How much better the training pictures are predicted than before: memorising shows as a gap to the held-out ones."""
        if step not in self.probe_steps:
            return
        loss = mean_error(self._measure(self.probe_items, self.probe_draws))
        first = next((row for row in self.rows if row["kind"] == "probe"), None)
        delta = loss - (first["train_loss"] if first else loss)
        held_out = next((row["loss_delta"] for row in reversed(self.rows) if row["kind"] == "eval"), None)
        self._emit({
            "kind": "probe", "step": step, "train_loss": _number(loss), "train_delta": _number(delta),
            "transfer_ratio": _number(held_out / delta) if held_out is not None and delta else None,
        })

    def _say_phase(self, phase: str) -> None:
        """To whoever looks on; no file keeps it."""
        self.log_row({"kind": "phase", "step": self.trainer.step, "phase": phase})

    def _evaluate_and_save(self) -> None:
        step = self.trainer.step
        self._say_phase("evaluating")
        row = {"kind": "eval", "step": step}
        with self.trainer.network.weights(self.trainer.average):
            if self.eval_items:
                start = time.perf_counter()
                errors = self._measure(self.eval_items, self.draws)
                row = self._record(step, errors, time.perf_counter() - start)
                self._probe(step)
        self._save_checkpoint(step, row)
        self.evaluated_step = step
        self._save_state()
        self.stop_reason = self._reason_to_stop()

    def _sample_if_due(self, *, is_wished: bool = False) -> None:
        """After the state is saved: a kill while sampling comes back to here."""
        step = self.trainer.step
        if self.sampler is None or any(row["kind"] == "sample" and row["step"] == step for row in reversed(self.rows)):
            return
        is_last = step > 0 and step == self.evaluated_step and self.stop_reason is not None
        if not (is_last or is_wished) and step not in sample_steps(self.schedule.steps, self.sampler.config.every_evaluations):
            return
        start = time.perf_counter()
        self._say_phase("sampling")
        try:
            with self.trainer.network.weights(self.trainer.average):
                pictures = self.sampler.sample(step)
            files = self.run_folder.save_samples(step, {picture.file_name: picture.png for picture in pictures})
        except SAMPLING_ERRORS as error:
            is_memory = isinstance(error, torch.OutOfMemoryError)
            self._note(message(
                "note.no_samples", "No samples at step {step} ({reason}). Training goes on; a smaller size in Sample Settings needs less memory.", step=step,
                reason=message("note.out_of_memory", "out of GPU memory") if is_memory else f"{type(error).__name__}: {error}",
            ))
            return
        self._emit(sample_row(step, pictures, files, time.perf_counter() - start))

    def _reason_to_stop(self) -> str | None:
        records, settings = self.records, self.config.evaluation
        since = sum(record.step > self.continued_from for record in records)
        if not self.eval_items or len(records) < 2 or (self.continued_from and since < settings.patience):
            return None
        return should_stop(records, settings)

    def _compare_after_resume(self) -> None:
        steps = [record.step for record in self.records if record.step in self.run_folder.checkpoint_steps()]
        if not steps or steps[-1] != self.trainer.step:
            return  # the state is from between two evaluations: its average was never measured
        before = next(record for record in self.records if record.step == steps[-1])
        with self.trainer.network.weights(self.trainer.average):
            after = self._measure(self.eval_items, self.draws)
        note = resume_note(before.errors, after, precision=self.precision)
        if note:
            self._note(note)

    # ---- files -----------------------------------------------------------

    def _save_checkpoint(self, step: int, row: dict) -> None:
        records = self.records
        metadata = lora_metadata(
            weights="optimizer" if self.trainer.optimizer.averages else "ema",
            name=self.info.name, step=step, family=self.model.family, config=self.config, is_flow=self.model.is_flow,
            trigger=self.info.trigger, split_id=self.info.split_id, n_train=self.num_train,
            base_model_hash=self.info.base_model_hash, base_file=self.info.base_model, versions=self.info.versions, records=records, resolution=self.info.resolution,
        )
        self.run_folder.save_checkpoint(
            step, self.trainer.network.state_dict(self.trainer.average), metadata,
            self.trainer.network.peft_config(self.info.base_model), row,
        )

    def _save_after(self, error: BaseException) -> None:
        log.info("Run '%s' stopped at step %d (%s); saving it.", self.info.name, self.trainer.step, type(error).__name__)
        try:
            if self._is_good():
                self._save_state()
            if isinstance(error, NonFiniteLossError) and len(self.records) > 1:
                self._write_report(select(self.records, non_finite_training=True), finished=False)
        except PistachioError as failure:
            # The first error is the one to show; this run goes on from its last evaluation instead.
            log.error("The state could not be saved: %s", failure)

    def _save_state(self) -> None:
        self.run_folder.save_state(self.trainer.state() | {"evaluated_step": self.evaluated_step})
        self.saved_at = time.monotonic()

    def _is_good(self) -> bool:
        """Whether the weights may replace those of the last save: not amid an update, and not broken by the step before."""
        trainer = self.trainer
        return not trainer.is_updating and all(bool(torch.isfinite(flat).all()) for flat in (trainer.network.parameters, trainer.average))

    def _finish(self) -> Selection:
        if self.stop_reason:
            self._note_once(message("note.stopped", "Stopped early: {reason}", reason=self.stop_reason))
        if self.ring:
            self._note(self.ring.words)
        selection = self.refit.selection if self.refit else select(self.records) if self.eval_items else not_measured(self.trainer.step)
        report = self._write_report(selection, finished=True)
        self.log_row({"kind": "finished", "step": self.trainer.step, "report": report})
        return selection

    def _write_report(self, selection: Selection, *, finished: bool) -> dict:
        report = build_report(
            run=self.info.name, selection=selection, records=self.refit.records if self.refit else self.records, settings=to_dict(self.config), seed=self.config.seed,
            versions=self.info.versions, split_id=self.info.split_id, n_train=self.num_train, stop_reason=self.stop_reason,
            notes=[row["text"] for row in self.rows if row["kind"] == "note"],
        ) | {"finished": finished, "trigger": self.info.trigger} | (self.refit.report_fields(self.num_train) if self.refit else {})
        checks = next((row.get("checks") for row in self.rows if row["kind"] == "eval" and row["step"] == selection.chosen_step), None)
        report |= {"seconds": seconds_spent(self.rows), "gap": gap_rows(self.rows)}
        report |= {"base_drift": drift_report(checks), "memorising": memorising_report(checks, self.rows, selection)}
        if self.memory is not None:
            report["memory"] = self.memory.report(self.rows)
            self.memory.save(self.run_folder, self.rows)
        write_report(self.run_folder.path, report, self.rows, selection)
        return report

    def _note_once(self, text: str) -> None:
        """For what a resumed run would say again."""
        if not any(row["kind"] == "note" and row["text"] == text for row in self.rows):
            self._note(text)

    def _note(self, text: str) -> None:
        log.info("Run '%s': %s", self.info.name, text)
        self._emit(note_row(self.trainer.step, text))

    def _emit(self, row: dict) -> None:
        self.rows.append(row)
        self.run_folder.append_metric(row)
        self.log_row(row)


def _number(value: float) -> float | None:
    """JSON has no NaN and no infinity."""
    return value if math.isfinite(value) else None
