"""Step time and peak memory of the arms over a network, each measured for itself in one process.

Arms take turns: each is built, warmed up, measured for some steps and taken down, then the next round begins. What stays on
the card after an arm is told, and a process that can't get rid of it ends (the suite starts another). A rehearsal runs the
same code over small networks on the CPU and returns that it ran, without a figure.
"""

from __future__ import annotations

import gc
import statistics
import time
from collections.abc import Callable
from dataclasses import replace

import torch

from bench_arms import Planned, Workload
from gpu_arms import ARMS, Arm, Own, forget_compiled, levers, why_unavailable
from gpu_card import MEASURED, WARMUP, DeviceClock, clocks, fault
from gpu_models import REHEARSED_BY, Network, build_patcher, captions, full_networks, latents, small_networks
from gpu_parts import FLOPS
from gpu_results import summary

RANK = 32
REHEARSED_TOKENS = 16  # of a caption
PICTURES = 4
WARMUP_STEPS, ROUND_STEPS = 4, 10  # of an arm, each round
LEFT_BYTES = 1 << 30  # after an arm: more is somebody's leak
COMPILING = 3.0  # times as long as another arm, where no compiled one was measured
ABLATED, ABLATED_LAYERS = "wan14b", 8  # the width of Wan-14B, and as many of its 40 blocks


def network_for(name: str, *, rehearse: bool) -> Network:
    if not rehearse:
        return full_networks()[name]
    small = small_networks()[REHEARSED_BY[name]]
    narrow = {"model_channels": 64} if name == "sdxl" else {}  # no file is told by it here
    return replace(small, caption_shape=(1, REHEARSED_TOKENS, small.caption_shape[2]), network=small.network | narrow)


def ablated_network(*, rehearse: bool) -> Network:
    whole = network_for(ABLATED, rehearse=rehearse)
    return whole if rehearse else replace(whole, network=whole.network | {"num_layers": ABLATED_LAYERS})


def workload_for(network: Network, device: torch.device, *, precision: str = "bf16") -> Workload:
    dtype = torch.bfloat16 if precision == "bf16" else torch.float32
    return Workload(
        model=build_patcher(network, device=device, dtype=dtype), latents=latents(network, PICTURES), captions=captions(network, PICTURES), batch=1,
        rank=RANK, precision=precision,
    )


class Measurer:
    """One process's work over a network; `left_bytes`: what is still on the card after the last arm."""

    def __init__(self, network: Network, arms: dict[str, Arm], device: torch.device, *, rehearse: bool, predicts: bool = True):
        self.network, self.arms, self.device, self.rehearse, self.predicts = network, arms, device, rehearse, predicts
        self.left_bytes, self.is_usable = 0, True

    def measure(self, name: str) -> dict:
        """A row; nothing of the arm is left on the card when it returns, or `left_bytes` says what."""
        from pistachio.training.errors import PistachioError

        arm = self.arms[name]
        reason = why_unavailable(arm)
        if reason:
            return {"arm": name, "unavailable": reason}
        try:
            row = self._measured(arm)
        except PistachioError as error:  # no plan fits the limit, no such attention
            row = {"unavailable": str(error)}
        except torch.OutOfMemoryError as error:
            row = {"out_of_memory": str(error).splitlines()[0]}
        except Exception as error:  # one arm must not hide the others
            row = {"failed": f"{type(error).__name__}: {str(error).strip()[-1500:]}"}
        return {"arm": name, "ours": arm.ours, "bits": arm.bits, **row, **self._taken_down()}

    def counted(self) -> dict:
        """The row of a step's work."""
        try:
            row = count_row(self.network, self.device, rehearse=self.rehearse)
        except (RuntimeError, TypeError, ValueError, AttributeError) as error:
            row = {"arm": FLOPS, "failed": f"{type(error).__name__}: {str(error).strip()[-1500:]}"}
        return {**row, **self._taken_down()}

    def _measured(self, arm: Arm) -> dict:
        began = time.perf_counter()
        trainer = arm.make(workload_for(self.network, self.device))
        if self.rehearse:
            marks = len(trainer.run(2).steps())
            prediction = _prediction(trainer, None) if self.predicts else {}
            return {"rehearsed": marks == 1 and prediction.get("peak_predicted", True) and "not_predicted" not in prediction, **_told(trainer), **prediction}
        gc.collect()
        torch.cuda.empty_cache()
        torch.cuda.synchronize()
        base_bytes = torch.cuda.memory_allocated()
        torch.cuda.reset_peak_memory_stats()
        built_s = time.perf_counter() - began
        clock = DeviceClock()
        trainer.run(WARMUP_STEPS + ROUND_STEPS, clock)
        told = clocks(self.device)
        steps = clock.seconds(WARMUP_STEPS)
        peak_bytes = torch.cuda.max_memory_allocated()
        return {
            "times_s": [steps], **summary([steps]), "first_step_s": clock.marks[0].elapsed_time(clock.marks[1]) / 1e3, "built_s": built_s,
            "total_s": time.perf_counter() - began, "base_gib": base_bytes / 2**30, "peak_gib": peak_bytes / 2**30, "clocks": [told],
            **_told(trainer), **_prediction(trainer, peak_bytes),
        }

    def _taken_down(self) -> dict:
        """For the row: what the card has against another arm in this process."""
        try:
            self._take_down()
            unusable = fault(self.device)
        except RuntimeError as error:  # the first to meet what the arm has left
            unusable = f"{type(error).__name__}: {(str(error).strip().splitlines() or [''])[0][:300]}"
        self.is_usable = not unusable
        return {"device_fault": unusable} if unusable else {}

    def _take_down(self) -> None:
        import comfy.model_management

        comfy.model_management.unload_all_models()
        comfy.model_management.current_loaded_models.clear()
        forget_compiled()
        if self.device.type == "cuda":
            torch.cuda.set_per_process_memory_fraction(1.0)
            gc.collect()
            torch.cuda.empty_cache()
            self.left_bytes = torch.cuda.memory_allocated()

    @property
    def is_clean(self) -> bool:
        return self.is_usable and self.left_bytes < LEFT_BYTES


def _told(trainer) -> dict:
    notes = list(getattr(trainer, "notes", ()))
    return {**getattr(trainer, "told", {}), **({"notes": notes} if notes else {})}


def predicted_bytes(trainer) -> int | None:
    """The peak that the planner predicts for an arm of ours, the base's weights included; None where it plans no such thing."""
    from pistachio.bridge.planning import Planner
    from pistachio.training.config.memory import MemoryConfig
    from pistachio.training.memory.estimate import predict
    from pistachio.training.memory.plan import MemoryPlan

    if isinstance(trainer, Planned):
        return trainer.plan.phases["step"]
    if not isinstance(trainer, Own) or trainer.setup.streamed_share or trainer.setup.keep_in_ram or trainer.setup.compile != "off":
        return None
    setup, config = trainer.setup, trainer.config()
    planner = Planner(trainer.workload.model, trainer.items, config, MemoryConfig(), device=trainer.model.device, has_held_out=False, limit=1)
    places = dict(optimizer_state=setup.optimizer_place, weight_average=setup.optimizer_place)
    return predict(MemoryPlan(batch_size=config.batch_size, accumulation=1, keep=setup.keep, **places), planner.facts).phases["step"]


def _prediction(trainer, peak_bytes: int | None) -> dict:
    """Beside a measured peak; of a rehearsal only that there was one."""
    try:
        predicted = predicted_bytes(trainer)
    except Exception as error:  # a network that can't be traced costs its prediction, not its time
        return {"not_predicted": f"{type(error).__name__}: {str(error)[:200]}"}
    if predicted is None:
        return {}
    return {"peak_predicted": predicted > 0} if peak_bytes is None else {"predicted_peak_gib": predicted / 2**30, "peak_over_predicted": peak_bytes / predicted}


def arms_of(part: str) -> dict[str, Arm]:
    return levers() if part == "ablation" else ARMS


def run_part(
    part: str, names: list[str], device: torch.device, *, rehearse: bool, begin: Callable[[str], None], emit: Callable[[str, dict], None],
    has_time: Callable[[float], bool], seconds: dict[str, float], first_seconds: float = 0.0, predicts: bool = True,
) -> bool:
    """`names`: arms in the order in which they are to be measured; a name may come again, for another round. False: begin a new process.

    `seconds`: what an arm took before, where it is known; `has_time(seconds)`: is there so much left?"""
    network = ablated_network(rehearse=rehearse) if part == "ablation" else network_for(part, rehearse=rehearse)
    arms = arms_of(part)
    measurer = Measurer(network, arms, device, rehearse=rehearse, predicts=predicts)
    is_compiled = lambda name: name in arms and arms[name].compiles
    longest = {False: first_seconds, True: COMPILING * first_seconds}  # compiled arms by themselves: one would have all others skipped
    for name, taken in seconds.items():
        longest[is_compiled(name)] = max(longest[is_compiled(name)], taken)
    settled: dict[str, dict] = {}  # rows that another round would not change
    for name in names:
        begin(name)
        if name in settled:
            emit(name, settled[name])
            continue
        expected = 0.0 if rehearse else seconds.get(name, longest[is_compiled(name)])
        if not has_time(expected):
            emit(name, {"arm": name, "skipped": f"no time left for about {expected:.0f} s"})
            continue
        before = time.perf_counter()
        row = measurer.counted() if name == FLOPS else measurer.measure(name)
        longest[is_compiled(name)] = max(longest[is_compiled(name)], time.perf_counter() - before)
        if "times_s" not in row:
            settled[name] = row
        emit(name, row)
        if not measurer.is_clean:
            return False
    return True


# ---- what a step costs ---------------------------------------------------


def count_row(network: Network, device: torch.device, *, rehearse: bool) -> dict:
    counted = count_flops(network, device)
    rate = matmul_flop_per_s(device, rehearse=rehearse)
    if rehearse:
        return {"arm": FLOPS, "rehearsed": counted["forward_flop"] > counted["attention_flop"] > 0 and rate is None}
    return {"arm": FLOPS, **counted, "matmul_flop_per_s": rate, "clocks": [clocks(device)]}


def count_flops(network: Network, device: torch.device) -> dict:
    """Of one training step at batch 1 without recompute: two passes over frozen layers, 3.5 over attention."""
    from torch.utils.flop_counter import FlopCounterMode, sdpa_flop_count

    from bench_arms import Ours

    arm = Ours(workload_for(network, device))
    item = arm.items[0]
    # The CPU's attention, which the counter does not know.
    extra = {
        torch.ops.aten._scaled_dot_product_flash_attention_for_cpu:
            lambda q_shape, k_shape, v_shape, *args, out_shape=None, **kwargs: sdpa_flop_count(q_shape, k_shape, v_shape)
    }
    with arm.model.training(), torch.no_grad(), FlopCounterMode(display=False, custom_mapping=extra) as counter:
        sigma = arm.model.sigma_at(torch.tensor([0.5]))
        arm.model.predict(item.latents.to(arm.model.device), sigma, [item.condition])
    by_operation = counter.get_flop_counts()["Global"]
    attention = sum(count for operation, count in by_operation.items() if "scaled_dot" in str(operation) or "bmm" in str(operation))
    forward = counter.get_total_flops()
    return {"forward_flop": forward, "attention_flop": attention, "step_flop": 2 * (forward - attention) + 3.5 * attention}


def matmul_flop_per_s(device: torch.device, *, rehearse: bool) -> float | None:
    """The card's own rate for a large bf16 product of random numbers, back to back as in a step; None in a rehearsal."""
    size = 64 if rehearse else 8192
    a, b = (torch.randn(size, size, device=device, dtype=torch.bfloat16) for _ in range(2))
    for _ in range(3):
        a @ b
    if device.type != "cuda":
        return None
    clock = DeviceClock()
    for _ in range(WARMUP + MEASURED):
        a @ b
        clock.mark()
    return 2 * size**3 / statistics.median(clock.seconds(WARMUP))


def add_utilisation(rows: list[dict]) -> None:
    """Model FLOP utilisation: a step's FLOPs without recompute, over its time at the card's measured matmul rate."""
    flops = next((row for row in rows if "forward_flop" in row), None)
    for row in rows:
        if flops and "step_s" in row:
            row["mfu"] = flops["step_flop"] / (row["step_s"] * flops["matmul_flop_per_s"])
