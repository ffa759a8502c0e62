"""Which checkpoint to keep, when to stop, and the verdict in words.

Owns the statistics over held-out errors; the picture is the unit of every standard error.
It knows no model, no file and no host: in go `EvaluationRecord`s, out comes a `Selection`.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import numpy as np

from .config import EvaluationConfig
from .errors import PistachioError
from .messages import Listed, Message, counted, message

STATES = ("diverged", "unclear", "overfit", "still improving", "plateau")
NOT_MEASURED = "not measured"  # the state of a run without held-out pictures

TIE_SHARE = 0.02  # of the gain: the earliest checkpoint this near to the best is chosen
CONFIDENCE = 0.80  # one-sided
TAIL_LENGTH = 3  # evaluations at the end
OVERFIT_SHARE = 0.10  # of the gain
NEAR_BEST_SHARE = 0.05  # of the gain
PATIENCE = EvaluationConfig().patience  # evaluations
MIN_IMAGES = 4
ENOUGH_IMAGES = 8
WIDEST_TIE_RATIO = 3.0  # last tied step / first tied step
NUM_QUARTERS = 4


@dataclass(frozen=True, kw_only=True, slots=True)
class EvaluationRecord:
    step: int
    errors: dict[str, tuple[float, ...]]  # content hash -> error per draw
    seconds: float
    t_values: dict[str, tuple[float, ...]]  # content hash -> t per draw, in the same places


@dataclass(frozen=True, kw_only=True, slots=True)
class Selection:
    chosen_step: int  # 0: no checkpoint can be kept
    best_step: int  # lowest held-out loss
    last_step: int
    tied_steps: tuple[int, ...]  # can't be told apart from the best
    state: str  # one of STATES, or NOT_MEASURED
    words: tuple[str, ...]  # sentences for the user, `Message`s where they are made here; the verdict is the first
    base_loss: float  # mean held-out loss before training
    gain: float  # how far the best checkpoint is below the base; negative when none is
    eval_delta: float  # chosen minus base
    eval_delta_pct: float
    eval_se: float  # of eval_delta; infinite with one picture
    se_vs_best: float  # of chosen minus best
    n_images: int
    too_few: bool
    overridden: bool = False
    automatic_step: int | None = None  # what the protocol chose, when a person chose another

    @property
    def tied_lo(self) -> int:
        return min(self.tied_steps, default=self.chosen_step)

    @property
    def tied_hi(self) -> int:
        return max(self.tied_steps, default=self.chosen_step)

    @property
    def verdict(self) -> str:
        return self.words[0]


@dataclass(frozen=True, kw_only=True, slots=True)
class Curve:
    """Held-out errors as arrays: C evaluations (the first is step 0), N pictures."""

    steps: tuple[int, ...]
    hashes: tuple[str, ...]
    errors_CN: np.ndarray = field(repr=False)  # mean over a picture's draws
    delta_C: np.ndarray = field(repr=False)  # E: mean over pictures of the change since step 0
    base_loss: float

    @property
    def n_images(self) -> int:
        return len(self.hashes)

    @property
    def finite(self) -> list[int]:
        """Indices of the evaluations after step 0 that can be chosen."""
        return [c for c in range(1, len(self.steps)) if np.isfinite(self.delta_C[c])]

    @property
    def best(self) -> int | None:
        """Index of the lowest E after step 0, unsmoothed; the earlier of equals."""
        return min(self.finite, key=lambda c: self.delta_C[c], default=None)

    def standard_error(self, first_N: np.ndarray, second_N: np.ndarray) -> float:
        """Paired: sd over pictures of the difference / sqrt(N)."""
        if self.n_images < 2:
            return math.inf
        return float(np.std(first_N - second_N, ddof=1) / math.sqrt(self.n_images))

    def se(self, a: int, b: int) -> float:
        return self.standard_error(self.errors_CN[a], self.errors_CN[b])


@dataclass(frozen=True, kw_only=True, slots=True)
class Quarters:
    """The curve split by timestep: quarter 1 is the lowest noise, 4 the highest."""

    delta_pct: tuple[tuple[float | None, ...], ...]  # per evaluation, per quarter; None: no draw there
    best_steps: tuple[int | None, ...]
    best_step_low_noise: int | None  # quarters 1 and 2 together
    best_step_high_noise: int | None


def build_curve(records: Sequence[EvaluationRecord]) -> Curve:
    if not records:
        raise PistachioError("The run has no evaluation yet. Let it reach its first evaluation, then select again.")
    records = sorted(records, key=lambda record: record.step)
    steps = tuple(record.step for record in records)
    if steps[0] != 0:
        raise PistachioError(f"The run's first evaluation is at step {steps[0]}; step 0 is missing. Train again under a new run name.")
    if len(set(steps)) != len(steps):
        raise PistachioError("The run holds two evaluations of one step. Train again under a new run name.")
    shape = {h: len(values) for h, values in records[0].errors.items()}
    for record in records:
        if {h: len(values) for h, values in record.errors.items()} != shape:
            raise PistachioError(
                f"Step {record.step} was evaluated on other pictures or draws than step 0, so they can't be compared. "
                "Train again under a new run name."
            )
    hashes = tuple(sorted(shape))
    errors_CN = np.array([[math.fsum(r.errors[h]) / len(r.errors[h]) for h in hashes] for r in records], dtype=np.float64)
    delta_C = (errors_CN - errors_CN[0]).mean(axis=1)
    return Curve(steps=steps, hashes=hashes, errors_CN=errors_CN, delta_C=delta_C, base_loss=float(errors_CN[0].mean()))


def critical_t(n_images: int) -> float:
    """One-sided 80 % point of Student's t with N - 1 degrees of freedom; infinite for one picture."""
    from scipy.special import stdtrit

    return float(stdtrit(n_images - 1, CONFIDENCE)) if n_images > 1 else math.inf


def select(records: Sequence[EvaluationRecord], *, non_finite_training: bool = False) -> Selection:
    """Argmin of E over the checkpoints, unsmoothed; then the earliest within 2 % of the gain.

    `non_finite_training`: the training loss became NaN or infinite, which no saved evaluation shows.
    """
    curve = build_curve(records)
    best = curve.best
    broken = non_finite_training or not np.isfinite(curve.delta_C).all()
    if best is None:
        return _nothing_to_keep(curve, broken)
    gain = float(-curve.delta_C[best])
    within = TIE_SHARE * max(gain, 0.0)
    chosen = next(c for c in curve.finite if curve.delta_C[c] <= curve.delta_C[best] + within)
    q = critical_t(curve.n_images)
    tied = [c for c in curve.finite if c == best or _tied(curve, c, best, q)]
    tied_steps = tuple(curve.steps[c] for c in tied)
    too_few = curve.n_images < MIN_IMAGES or tied_steps[-1] > WIDEST_TIE_RATIO * tied_steps[0]
    state = _state(curve, best, gain, q, broken)
    words = [
        verdict_words(state, best_step=curve.steps[best], chosen_step=curve.steps[chosen]),
        _tied_words(curve, tied, best, chosen),
    ]
    if too_few:
        words.append(message(
            "selection.too_few", "Only {pictures} held out; the best step is uncertain ({first} to {last}).",
            pictures=_pictures(curve.n_images), first=tied_steps[0], last=tied_steps[-1],
        ))
    words.append(_count_words(curve.n_images, said=too_few))
    return Selection(
        chosen_step=curve.steps[chosen], best_step=curve.steps[best], last_step=curve.steps[-1], tied_steps=tied_steps,
        state=state, words=tuple(words), gain=gain, n_images=curve.n_images, too_few=too_few,
        **_measures(curve, chosen, best),
    )


def override(selection: Selection, records: Sequence[EvaluationRecord], step: int) -> Selection:
    """A person's own choice of an evaluated step, recorded as such."""
    curve = build_curve(records)
    if step not in curve.steps[1:]:
        raise PistachioError(f"Step {step} has no checkpoint. Choose one of {', '.join(map(str, curve.steps[1:]))}.")
    automatic = selection.automatic_step if selection.overridden else selection.chosen_step
    words = tuple(word for word in selection.words if not (selection.overridden and word.startswith("You chose step")))
    return replace(
        selection, chosen_step=step, overridden=True, automatic_step=automatic,
        words=(*words, override_words(step, automatic)),
        **_measures(curve, curve.steps.index(step), curve.best),
    )


def not_measured(last_step: int) -> Selection:
    """A run without held-out pictures: its preset number of steps. Training loss is never a substitute."""
    return Selection(
        chosen_step=last_step, best_step=last_step, last_step=last_step, tied_steps=(), state=NOT_MEASURED,
        words=(
            message("verdict.not_measured", "Nothing here can detect memorising."),
            message("selection.not_measured", "No pictures were held out: step {step} is the preset end of the run.", step=last_step),
        ),
        base_loss=math.nan, gain=math.nan, eval_delta=math.nan, eval_delta_pct=math.nan, eval_se=math.nan,
        se_vs_best=math.nan, n_images=0, too_few=True,
    )


def should_stop(records: Sequence[EvaluationRecord], config: EvaluationConfig) -> str | None:
    """Why the run should end now, as a sentence, or None. A non-finite loss ends it even with early stop off."""
    curve = build_curve(records)
    last = len(curve.steps) - 1
    if not np.isfinite(curve.delta_C[last]):
        return message("stop.not_finite", "The held-out loss is not a finite number at step {step}.", step=curve.steps[last])
    if not config.early_stop or last < 1:
        return None
    if last >= 2 and all(curve.delta_C[c] > 0 and curve.delta_C[c] >= curve.se(c, 0) for c in (last - 1, last)):
        return message(
            "stop.above_base", "Held-out loss is above the base model's by more than its error at steps {before} and {last}.",
            before=curve.steps[last - 1], last=curve.steps[last],
        )
    since_best = last - (curve.best or 0)
    if last >= config.min_evaluations and since_best >= config.patience:
        return message(
            "stop.patience", "No better checkpoint in {evaluations} evaluations since step {step}.", evaluations=since_best, step=curve.steps[curve.best],
        )
    return None


def quarters(records: Sequence[EvaluationRecord]) -> Quarters:
    """The change in % per quarter of the noise scale, by rank of t among all timesteps in use."""
    records = sorted(records, key=lambda record: record.step)
    base = records[0]
    grid = sorted({t for values in base.t_values.values() for t in values})
    quarter_of = {t: rank * NUM_QUARTERS // len(grid) for rank, t in enumerate(grid)}
    places = [[] for _ in range(NUM_QUARTERS)]
    for content_hash, values in base.t_values.items():
        for j, t in enumerate(values):
            places[quarter_of[t]].append((content_hash, j))

    def change_pct(record: EvaluationRecord, members: list[tuple[str, int]]) -> float | None:
        if not members:
            return None
        before = math.fsum(base.errors[h][j] for h, j in members)
        return 100 * (math.fsum(record.errors[h][j] for h, j in members) - before) / before

    def best_step(members: list[tuple[str, int]]) -> int | None:
        changes = [(change_pct(record, members), record.step) for record in records[1:]] if members else []
        return min((pair for pair in changes if math.isfinite(pair[0])), default=(0.0, None))[1]

    return Quarters(
        delta_pct=tuple(tuple(change_pct(record, members) for members in places) for record in records),
        best_steps=tuple(best_step(members) for members in places),
        best_step_low_noise=best_step(places[0] + places[1]),
        best_step_high_noise=best_step(places[2] + places[3]),
    )


def verdict_words(state: str, *, best_step: int, chosen_step: int) -> Message:
    return {
        "diverged": message(
            "verdict.diverged",
            "Training broke the model: it now does worse than before training. Lower the learning rate. We kept step {chosen}.",
            chosen=chosen_step,
        ),
        "unclear": message(
            "verdict.unclear", "We can't tell whether training helped; add images or train longer. Treat the pick as a guess."
        ),
        "overfit": message(
            "verdict.overfit", "From about step {best} it began memorising your training pictures. We kept step {chosen}.",
            best=best_step, chosen=chosen_step,
        ),
        "still improving": message("verdict.improving", "Not finished: results were still improving. Continue from here."),
        "plateau": message("verdict.plateau", "Finished: more steps changed nothing measurable."),
    }[state]


def override_words(step: int, automatic: int) -> Message:
    return message("selection.override", "You chose step {step}; the automatic choice was step {automatic}.", step=step, automatic=automatic)


def _measures(curve: Curve, chosen: int, best: int | None) -> dict[str, float]:
    delta = float(curve.delta_C[chosen])
    return {
        "base_loss": curve.base_loss,
        "eval_delta": delta,
        "eval_delta_pct": 100 * delta / curve.base_loss,
        "eval_se": curve.se(chosen, 0),
        "se_vs_best": curve.se(chosen, chosen if best is None else best),
    }


def _tied(curve: Curve, c: int, best: int, q: float) -> bool:
    difference = float(curve.delta_C[c] - curve.delta_C[best])
    return difference == 0 or difference <= q * curve.se(c, best)


def _state(curve: Curve, best: int, gain: float, q: float, broken: bool) -> str:
    """The table of verdicts, in its order; `q` times a standard error is what counts as measurable."""
    # The protocol's tail is the mean of the last three. One that begins before the best calls a run that falls to its end
    # overfit: `bench selection` counted 641 such verdicts, and after 589 of them the true loss fell by more than 2 % of the gain.
    tail_N = curve.errors_CN[max(best, len(curve.steps) - TAIL_LENGTH) :].mean(axis=0)
    tail = float((tail_N - curve.errors_CN[0]).mean())
    if broken or (tail > 0 and tail > gain / 2):
        return "diverged"
    if gain <= q * curve.se(0, best):
        return "unclear"
    rise = tail + gain
    if rise > q * curve.standard_error(tail_N, curve.errors_CN[best]) and rise > OVERFIT_SHARE * gain:
        return "overfit"
    falling = _tail_slope(curve) < 0
    last = len(curve.steps) - 1
    near_best = float(curve.delta_C[last]) + gain <= NEAR_BEST_SHARE * gain
    # A dip long after the best is noise: a run that patience would end is not called unfinished (in `bench selection` the
    # true loss fell later in 1 of 10).
    if falling and (best >= last - 1 or (near_best and last - best < PATIENCE)):
        return "still improving"
    return "plateau"


def _tail_slope(curve: Curve) -> float:
    """Least-squares change of E per step over the last three evaluations (step 0 counts when there are fewer)."""
    steps = np.array(curve.steps[-TAIL_LENGTH:], dtype=np.float64)
    return float(np.polyfit(steps - steps.mean(), curve.delta_C[-TAIL_LENGTH:], 1)[0])


def _nothing_to_keep(curve: Curve, broken: bool) -> Selection:
    state = "diverged" if broken else "unclear"
    why = (
        message("selection.none_finite", "No checkpoint has a finite held-out loss; step 0 is the model before training.")
        if broken else message("selection.none", "The run ended before its first checkpoint.")
    )
    return Selection(
        chosen_step=0, best_step=0, last_step=curve.steps[-1], tied_steps=(), state=state, gain=0.0,
        words=(verdict_words(state, best_step=0, chosen_step=0), why, _count_words(curve.n_images)),
        n_images=curve.n_images, too_few=curve.n_images < MIN_IMAGES, **_measures(curve, 0, None),
    )


def _tied_words(curve: Curve, tied: list[int], best: int, chosen: int) -> Message:
    said = {"pictures": _pictures(curve.n_images), "chosen": curve.steps[chosen]}
    best_step = curve.steps[best]
    if len(tied) == 1 and chosen == best:
        return message("selection.alone", "Step {best} can be told apart from every other with {pictures}; we chose {chosen}.", best=best_step, **said)
    if len(tied) == 1:
        return message(
            "selection.alone_earlier",
            "Step {best} can be told apart from every other with {pictures}; we chose {chosen}, the earliest within 2 % of step {best}'s gain.",
            best=best_step, **said,
        )
    spans, start = [], 0
    for i in range(1, len(tied) + 1):  # runs of neighbouring evaluations
        if i == len(tied) or curve.finite.index(tied[i]) != curve.finite.index(tied[i - 1]) + 1:
            spans.append((curve.steps[tied[start]], curve.steps[tied[i - 1]]))
            start = i
    steps = Listed([lo if lo == hi else message("selection.span", "{first} to {last}", first=lo, last=hi) for lo, hi in spans])
    if chosen == best:
        return message("selection.tied", "Steps {steps} can't be told apart with {pictures}; we chose {chosen}.", steps=steps, **said)
    return message(
        "selection.tied_earlier",
        "Steps {steps} can't be told apart with {pictures}; we chose {chosen}, the earliest within 2 % of step {best}'s gain.",
        steps=steps, best=best_step, **said,
    )


def _count_words(n_images: int, said: bool = False) -> Message:
    """`said`: an earlier sentence gave the count already."""
    if n_images >= ENOUGH_IMAGES:
        return counted("selection.count", n_images, "{count} picture was held out.", "{count} pictures were held out.")
    least = {"least": MIN_IMAGES, "enough": ENOUGH_IMAGES}
    if said:
        return message("selection.advice", "{least} pictures is the minimum we trust; {enough} is clearly better.", **least)
    return counted(
        "selection.count_advice", n_images,
        "{count} picture was held out: {least} pictures is the minimum we trust; {enough} is clearly better.",
        "{count} pictures were held out: {least} pictures is the minimum we trust; {enough} is clearly better.", **least,
    )


def _pictures(count: int) -> Message:
    return counted("pictures", count, "{count} picture", "{count} pictures")
