"""Step time and peak memory at full size on the card: ours, ComfyUI's built-in trainer, and PEFT.

One process measures one arm over one network, so that neither a peak nor an out-of-memory leaks into the next. A
rehearsal runs the same code over small networks on the CPU and returns that it ran, without a figure.
"""

from __future__ import annotations

import statistics
import time

import torch

from bench_arms import LEARNING_RATE, BuiltIn, Ours, Planned, StepClock, Workload, _OnHostModel
from gpu_models import REHEARSED_BY, Network, build_patcher, captions, full_networks, latents, small_networks

RANK = 32
PICTURES = 4
WARMUP = 5
MEASURED = 20


class DeviceClock(StepClock):
    """Marks with CUDA events, which the card stamps itself; seconds once the last has passed."""

    def _now(self):
        event = torch.cuda.Event(enable_timing=True)
        event.record()
        return event

    def seconds(self, warmup: int) -> list[float]:
        torch.cuda.synchronize()
        marks = self.marks[warmup:]
        return [a.elapsed_time(b) / 1e3 for a, b in zip(marks, marks[1:])]


class Peft(_OnHostModel):
    """PEFT's LoRA injected into the same layers, eager, with the same batches, blocks checkpointed and AdamW."""

    def run(self, steps: int, clock: StepClock | None = None) -> StepClock:
        from peft import LoraConfig, inject_adapter_in_model
        from pistachio.training.batches import BatchPlan, micro_batches
        from pistachio.training.saving import saved_blocks
        from pistachio.training.objective import prediction_error
        from pistachio.training.timesteps import resolve

        clock = clock or StepClock()
        model, network, batch = self.model, self.model.network, self.workload.batch
        plan = BatchPlan(self.items, batch=batch, seed=1, prior_fraction=0.0, distribution=resolve("auto", is_flow=model.is_flow))
        with model.training():
            network.requires_grad_(False)
            names = [path for path, module in network.named_modules() if isinstance(module, torch.nn.Linear)]
            config = LoraConfig(r=self.workload.rank, lora_alpha=self.workload.rank, target_modules=names)
            inject_adapter_in_model(config, network)
            parameters = [parameter for parameter in network.parameters() if parameter.requires_grad]
            optimizer = torch.optim.AdamW(parameters, lr=LEARNING_RATE, fused=True)
            with saved_blocks(model, "blocks"):
                for step in range(1, steps + 1):
                    samples = plan.samples(step)
                    for group in micro_batches(samples, batch):
                        place = lambda tensors: torch.cat(tensors).to(model.device)
                        sigma = model.sigma_at(torch.stack([sample.t for sample in group]))
                        errors = prediction_error(
                            model, place([s.item.latents for s in group]), place([s.noise for s in group]), sigma,
                            [s.condition for s in group],
                        )
                        (errors.sum() / len(samples)).backward()
                    torch.nn.utils.clip_grad_norm_(parameters, 1.0)
                    optimizer.step()
                    optimizer.zero_grad()
                    clock.mark()
        return clock


def _bypass(workload: Workload) -> BuiltIn:
    return BuiltIn(workload, bypass_mode=True, checkpoint_depth=2)


ARMS = {
    "ours": lambda workload: Ours(workload),
    "ours, products kept": lambda workload: Ours(workload, keep="products"),
    "ours, attention kept": lambda workload: Ours(workload, keep="attention"),
    "ours, blocks checkpointed": lambda workload: Ours(workload, keep="blocks"),
    "ours, planned for 16 GB": lambda workload: Planned(workload, limit_gb=16.0),
    "ours, planned for 12 GB": lambda workload: Planned(workload, limit_gb=12.0),
    "built-in, default": lambda workload: BuiltIn(workload),
    "built-in, bypass, depth 2": _bypass,
    "PEFT eager, blocks checkpointed": lambda workload: Peft(workload),
}
NEEDS_INPUT = {"built-in, bypass, depth 2": "bypass_mode"}  # of the built-in node, which 0.3.75 lacks


def network_for(name: str, *, rehearse: bool) -> Network:
    return small_networks()[REHEARSED_BY[name]] if rehearse else full_networks()[name]


def workload_for(name: str, device: torch.device, *, rehearse: bool) -> Workload:
    network = network_for(name, rehearse=rehearse)
    return Workload(
        model=build_patcher(network, device=device, dtype=torch.bfloat16), latents=latents(network, PICTURES),
        captions=captions(network, PICTURES), batch=1, rank=RANK, precision="bf16",
    )


def unavailable(arm: str) -> str | None:
    """Why this host or environment has no such arm."""
    import comfy_extras.nodes_train as nodes_train

    needed = NEEDS_INPUT.get(arm)
    if needed and needed not in {entry.id for entry in nodes_train.TrainLoraNode.define_schema().inputs}:
        return f"this ComfyUI's Train LoRA has no {needed}"
    if arm.startswith("PEFT"):
        try:
            import peft  # noqa: F401
        except ImportError:
            return "peft is not installed (pip install peft)"
    return None


def predicted_bytes(arm: Ours) -> int:
    """The peak that the planner predicts for an arm of ours, the base's weights included."""
    from pistachio.bridge.planning import Planner
    from pistachio.training.config.memory import MemoryConfig
    from pistachio.training.memory.estimate import predict
    from pistachio.training.memory.plan import MemoryPlan

    if isinstance(arm, Planned):
        return arm.plan.phases["step"]
    config = arm.config(targets=arm.targets)
    planner = Planner(arm.workload.model, arm.items, config, MemoryConfig(), device=arm.model.device, has_held_out=False, limit=1)
    return predict(MemoryPlan(batch_size=config.batch_size, accumulation=1, keep=arm.keep), planner.facts).phases["step"]


def _prediction(arm: Ours, peak_bytes: int | None) -> dict:
    """Beside a measured peak; of a rehearsal only that there was one."""
    predicted = predicted_bytes(arm)
    if peak_bytes is None:
        return {"peak_predicted": predicted > 0}
    said = {"predicted_peak_gib": predicted / 2**30, "peak_over_predicted": peak_bytes / predicted}
    return said | ({"plan": words_of_plan(arm)} if isinstance(arm, Planned) else {})


def words_of_plan(arm: Planned) -> str:
    from pistachio.training.memory.plan import words_of

    return words_of(arm.plan)


def measure_arm(name: str, arm: str, device: torch.device, *, rehearse: bool) -> dict:
    """Figures of one arm on a card; in a rehearsal only that it ran."""
    reason = unavailable(arm)
    if reason:
        return {"network": name, "arm": arm, "unavailable": reason}
    from pistachio.training.errors import PistachioError

    try:
        trainer = ARMS[arm](workload_for(name, device, rehearse=rehearse))
    except PistachioError as error:  # no plan fits the limit
        return {"network": name, "arm": arm, "unavailable": str(error)}
    is_ours = isinstance(trainer, Ours)
    if rehearse:
        marks = len(trainer.run(2).steps())
        prediction = _prediction(trainer, None) if is_ours else {}
        return {"network": name, "arm": arm, "rehearsed": marks == 1 and prediction.get("peak_predicted", True), **prediction}
    torch.cuda.synchronize()
    base_bytes = torch.cuda.memory_allocated()
    torch.cuda.reset_peak_memory_stats()
    start = time.perf_counter()
    clock = DeviceClock()
    try:
        trainer.run(WARMUP + MEASURED, clock)
    except torch.OutOfMemoryError as error:
        return {"network": name, "arm": arm, "out_of_memory": str(error).splitlines()[0]}
    steps = clock.seconds(WARMUP)
    first = clock.marks[0].elapsed_time(clock.marks[1]) / 1e3
    peak_bytes = torch.cuda.max_memory_allocated()
    if isinstance(trainer, Planned):
        torch.cuda.set_per_process_memory_fraction(1.0)
    return {
        "network": name, "arm": arm, "step_s": statistics.median(steps), "step_s_range": [min(steps), max(steps)],
        "first_step_s": first, "num_steps": len(steps), "total_s": time.perf_counter() - start,
        "base_gib": base_bytes / 2**30, "peak_gib": peak_bytes / 2**30,
        **(_prediction(trainer, peak_bytes) if is_ours else {}),
    }


def count_flops(name: str, device: torch.device, *, rehearse: bool) -> dict:
    """Of one training step at batch 1 without recompute: two passes over frozen layers, 3.5 over attention."""
    from torch.utils.flop_counter import FlopCounterMode, sdpa_flop_count

    arm = Ours(workload_for(name, device, rehearse=rehearse))
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
    """The card's own rate for a large bf16 product of random numbers; None in a rehearsal."""
    size = 64 if rehearse else 8192
    a, b = (torch.randn(size, size, device=device, dtype=torch.bfloat16) for _ in range(2))
    for _ in range(3):
        a @ b
    if rehearse:
        return None
    clock = DeviceClock()
    for _ in range(MEASURED):
        a @ b
        clock.mark()
    return 2 * size**3 / statistics.median(clock.seconds(WARMUP))


