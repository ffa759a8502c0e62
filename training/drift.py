"""What a checkpoint does beside its character: base drift and memorising. Advice in numbers; neither chooses.

Base drift: how far the LoRA moves the base's predictions on captions without the trigger word, in units of the base's
own loss there, beside the same with the trigger word. Memorising: whether a held-out caption in almost pure noise is
answered with a training picture, and how far the loss fell on training pictures beside held-out ones.
It knows the model only through `TrainableModel`, and no file.

Shapes: B batch.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from .adapted import AdaptedNetwork
from .evaluation import EvalItem, noise_for, undisturbed
from .model import TrainableModel
from .seeds import seed_from
from .selection import TIE_SHARE, EvaluationRecord, Selection, build_curve
from .timesteps import sample

DRIFT_IMAGES = 4  # one timestep each, stratified over the training distribution
NEAREST_IMAGES = 8  # held-out pictures
NEAREST_TRAIN = 64  # training pictures each is compared with: disk reads at every candidate, so not all of 10,000
COPY_RATIO = 1 / 3  # nearest over second nearest; Yoon et al. 2023, "Diffusion probabilistic models generalize when they fail to memorize"
HIGH_NOISE = 0.95  # share of the distribution below: what is predicted there is the caption's, not the noisy picture's


class Watch:
    """The fixed draws of one run. The same numbers for the same weights, whenever they are measured."""

    def __init__(
        self, model: TrainableModel, network: AdaptedNetwork, train_items: Sequence, eval_items: Sequence[EvalItem], distribution, *, has_trigger: bool
    ):
        self.model, self.network, self.distribution = model, network, distribution
        by_hash = sorted(train_items, key=lambda item: item.content_hash)
        self.drift_items = by_hash[:DRIFT_IMAGES] if has_trigger else []
        self.train_items = by_hash[:NEAREST_TRAIN]
        self.eval_items = sorted(eval_items, key=lambda item: item.content_hash)[:NEAREST_IMAGES]
        self._base: dict[str, float] | None = None
        self._base_predictions: list[tuple[Tensor, Tensor]] = []

    def measure(self, check_interrupted=lambda: None) -> dict[str, float | int | None]:
        """With the weights that the network has now."""
        with torch.no_grad(), undisturbed(self.model):
            if self._base is None:
                with self.network.disabled():
                    self._base_predictions = [self._drift_pair(i) for i in range(len(self.drift_items))]
                    self._base = self._nearest(check_interrupted)
            drift = self._drift(check_interrupted)
            return drift | self._nearest(check_interrupted) | {f"base_{name}": value for name, value in self._base.items()}

    def _drift_pair(self, index: int) -> tuple[Tensor, Tensor]:
        """[2, ...] predictions without and with the trigger word, and the sigmas."""
        item = self.drift_items[index]
        t = sample(self.distribution, torch.tensor([(index + 0.5) / len(self.drift_items)], dtype=torch.float64), item.shape)
        x_t, sigma_B = self._noised(item, t, "drift")
        parts = [self.model.predict(x_t, sigma_B, [condition]).float() for condition in (item.prior_condition, item.condition)]
        return torch.cat(parts), sigma_B

    def _drift(self, check_interrupted) -> dict[str, float | None]:
        if not self.drift_items:
            return {"drift_pct": None, "trigger_change_pct": None}
        moved, lost = torch.zeros(2, dtype=torch.float64), torch.zeros(2, dtype=torch.float64)
        for index, (item, (base, sigma_B)) in enumerate(zip(self.drift_items, self._base_predictions)):
            check_interrupted()
            now, _ = self._drift_pair(index)
            scale = self.model.output_scale(sigma_B).double().square().cpu()
            latents = item.latents.to(base.device, torch.float32)
            moved += (now - base).square().flatten(1).mean(1).double().cpu() / scale
            lost += (base - latents).square().flatten(1).mean(1).double().cpu() / scale
        without, with_trigger = (100 * moved / lost).tolist()
        return {"drift_pct": _number(without), "trigger_change_pct": _number(with_trigger)}

    def _nearest(self, check_interrupted) -> dict[str, float | int | None]:
        """What the held-out captions are answered with: distance to the nearest training picture over that to the second nearest."""
        ratios = []
        for item in self.eval_items:
            others = [other for other in self.train_items if other.shape == item.shape]
            if len(others) < 2:
                continue
            check_interrupted()
            t = sample(self.distribution, torch.tensor([HIGH_NOISE], dtype=torch.float64), item.shape)
            x_t, sigma_B = self._noised(item, t, "nearest")
            predicted = self.model.predict(x_t, sigma_B, [item.condition]).float().cpu()
            nearest, second = sorted(_distance(predicted, other.latents) for other in others)[:2]
            ratios.append(nearest / max(second, 1e-12))
        return {
            "nearest_ratio": _number(min(ratios, default=math.nan)), "copies": sum(ratio < COPY_RATIO for ratio in ratios), "compared": len(ratios),
        }

    def _noised(self, item, t: Tensor, tag: str) -> tuple[Tensor, Tensor]:
        noise = noise_for(seed_from("pistachio-watch-1", tag, item.content_hash, "x".join(map(str, item.shape))), item.shape)
        latents = item.latents.to(self.model.device, torch.float32)
        sigma_B = self.model.sigma_at(t.float().to(self.model.device))
        return self.model.add_noise(latents, noise.to(self.model.device), sigma_B), sigma_B


def _distance(first: Tensor, second: Tensor) -> float:
    return (first - second.float()).square().mean().sqrt().item()


def _number(value: float) -> float | None:
    """JSON has no NaN and no infinity."""
    return value if math.isfinite(value) else None


def is_candidate(records: Sequence[EvaluationRecord]) -> bool:
    """Whether the latest evaluation can still become the chosen one: later bests only narrow what is within the tie."""
    curve = build_curve(records)
    last = len(curve.steps) - 1
    if last < 1 or last not in curve.finite:
        return False
    gain = max(0.0, -float(curve.delta_C[curve.best]))
    return float(curve.delta_C[last]) <= float(curve.delta_C[curve.best]) + TIE_SHARE * gain


def drift_report(checks: dict | None) -> dict:
    """report.json's `base_drift`."""
    if not checks or checks["drift_pct"] is None:
        return {"measured": False, "words": "Base drift was not measured: that needs a trigger word and a chosen checkpoint with held-out pictures."}
    without, with_trigger = checks["drift_pct"], checks["trigger_change_pct"]
    sentence = (
        f"Captions without the trigger word: the LoRA moves the model's predictions by {_pct(without)} of its loss there, "
        f"and by {_pct(with_trigger)} with the trigger word."
    )
    if without > with_trigger / 2:
        sentence += " The character will show without its trigger word: raise prior preservation on Train LoRA."
    return {"measured": True, "drift_pct": without, "trigger_change_pct": with_trigger, "words": sentence}


def memorising_report(checks: dict | None, rows: Sequence[dict], selection: Selection) -> dict:
    """report.json's `memorising`: the gap between training and held-out pictures, and predictions that are training pictures."""
    found: dict = {"measured": False, "words": []}
    gap = _gap(rows, selection.chosen_step)
    if gap is not None:
        step, train_pct, held_out_pct = gap
        share = f": {max(0.0, 100 * held_out_pct / train_pct):.0f} % of it carries over" if train_pct < 0 else ""
        found |= {"measured": True, "gap_step": step, "train_delta_pct": train_pct, "held_out_delta_pct": held_out_pct}
        found["words"] = [
            f"At step {step} the loss had changed by {train_pct:+.1f} % on training pictures and by {held_out_pct:+.1f} % on held-out ones{share}."
        ]
    if checks and checks["compared"]:
        copies, total, ratio, before = checks["copies"], checks["compared"], checks["nearest_ratio"], checks["base_nearest_ratio"]
        found |= {"measured": True, "copies": copies, "compared": total, "nearest_ratio": ratio, "nearest_ratio_before_training": before}
        found["words"] = [
            *found["words"],
            f"From almost pure noise, {copies} of {total} held-out captions were answered with a copy of a training picture (nearest over second "
            f"nearest distance {_ratio(ratio)} at the least, {_ratio(before)} before training; below {COPY_RATIO:.2f} is a copy).",
        ]
    if not found["measured"]:
        found["words"] = ["Memorising was not measured: no pictures were held out."]
    found["words"] = " ".join(found["words"])
    return found


def _gap(rows: Sequence[dict], chosen_step: int) -> tuple[int, float, float] | None:
    """The last train probe up to the chosen step, else the first after step 0: (step, % on training pictures, % on held-out ones)."""
    probes = [row for row in rows if row["kind"] == "probe" and row["step"] > 0 and row["train_loss"] is not None]
    start = next((row for row in rows if row["kind"] == "probe" and row["step"] == 0), None)
    held_out = {row["step"]: row["loss_delta_pct"] for row in rows if row["kind"] == "eval" and row["loss_delta_pct"] is not None}
    probes = [row for row in probes if row["step"] in held_out]
    if not probes or start is None or not start["train_loss"]:
        return None
    row = max((p for p in probes if p["step"] <= chosen_step), key=lambda p: p["step"], default=probes[0])
    return row["step"], 100 * (row["train_loss"] / start["train_loss"] - 1), held_out[row["step"]]


def _ratio(value: float | None) -> str:
    return "unknown" if value is None else f"{value:.2f}"


def _pct(value: float) -> str:
    return f"{value:.0f} %" if value >= 10 else f"{value:.2g} %"
