"""Is training on the card right: gradients, files and evaluation of every small family against the CPU.

Each check returns what it measured and whether that passes; the suite prints and writes it.
"""

from __future__ import annotations

import tempfile
from dataclasses import dataclass
from pathlib import Path

import torch

from bench_arms import Ours, Workload
from gpu_models import Network, build_patcher, captions, latents

PICTURES = 3
RANK = 4
GRADIENT_TOLERANCE = 1e-3  # ||g - g_cpu|| / ||g_cpu||, both fp32: only the order of sums differs
BF16_COSINE = 0.98
FORWARD_TOLERANCE = 1e-4  # stock loader against the trained forward, fp32


@dataclass(frozen=True, kw_only=True, slots=True)
class Check:
    name: str
    passed: bool
    figure: str  # what was measured, in words


def check_family(network: Network, device: torch.device) -> list[Check]:
    from gpu_runtime import check_runtime

    return [check for run in (_gradients, _file, _evaluation, check_runtime, _restored) for check in run(network, device)]


def _patcher(network: Network, device: torch.device):
    """The same weights on any device: random generators differ between devices, so the CPU's are copied."""
    patcher = build_patcher(network, device=torch.device("cpu"), dtype=torch.float32)
    patcher.model.to(device)
    patcher.load_device = device
    patcher.offload_device = torch.device("cpu")
    return patcher


def _arm(network: Network, device: torch.device, *, precision: str = "fp32", keep: str = "everything") -> Ours:
    workload = Workload(
        model=_patcher(network, device), latents=latents(network, PICTURES), captions=captions(network, PICTURES),
        batch=2, rank=RANK, precision=precision,
    )
    return Ours(workload, keep=keep)


def _with_adapter(arm: Ours):
    """A Trainer whose adapters are not zero: at B = 0 most of the gradient is."""
    from pistachio.training.trainer import Trainer

    trainer = Trainer(arm.model, arm.items, arm.config(), keep=arm.keep)
    with torch.no_grad():
        noise = torch.randn(trainer.network.parameters.shape, generator=torch.Generator().manual_seed(5)) * 0.05
        trainer.network.parameters.copy_(noise)
    return trainer


def _gradient(network: Network, device: torch.device, **options) -> torch.Tensor:
    from pistachio.training.batches import micro_batches
    from pistachio.training.objective import prediction_error

    arm = _arm(network, device, **options)
    with arm.model.training():
        trainer = _with_adapter(arm)
        with trainer.network:
            for samples in micro_batches(trainer.plan.samples(1), 2):
                place = lambda tensors: torch.cat(tensors).to(device)
                sigma = arm.model.sigma_at(torch.stack([sample.t for sample in samples]))
                errors = prediction_error(
                    arm.model, place([s.item.latents for s in samples]), place([s.noise for s in samples]), sigma,
                    [s.condition for s in samples],
                )
                errors.sum().backward()
            return trainer.network.gradients.detach().cpu().clone()


def _gradients(network: Network, device: torch.device) -> list[Check]:
    reference = _gradient(network, torch.device("cpu"))
    checks = []
    for name, options in (("gradient", {}), ("gradient with block checkpointing", {"keep": "blocks"})):
        difference = ((_gradient(network, device, **options) - reference).norm() / reference.norm()).item()
        checks.append(Check(
            name=f"{name} against the CPU, fp32", passed=difference <= GRADIENT_TOLERANCE, figure=f"relative difference {difference:.1e}"
        ))
    cosine = torch.nn.functional.cosine_similarity(_gradient(network, device, precision="bf16"), reference, dim=0).item()
    checks.append(Check(name="gradient in bf16 against fp32", passed=cosine >= BF16_COSINE, figure=f"cosine {cosine:.4f}"))
    return checks


def _predict(arm: Ours) -> torch.Tensor:
    item = arm.items[0]
    with torch.no_grad():
        sigma = arm.model.sigma_at(torch.tensor([0.5]))
        noise = torch.randn(item.latents.shape, generator=torch.Generator().manual_seed(6)).to(arm.model.device)
        x_t = arm.model.add_noise(item.latents.to(arm.model.device), noise, sigma)
        return arm.model.predict(x_t, sigma, [item.condition]).float().cpu()


def _file(network: Network, device: torch.device) -> list[Check]:
    """The saved adapter through the code of the stock LoRA loader."""
    import comfy.lora
    import comfy.model_management
    import comfy.sd
    import comfy.utils
    import safetensors.torch

    arm = _arm(network, device)
    with arm.model.training():
        base = _predict(arm)
        trainer = _with_adapter(arm)
        with trainer.network:
            trained = _predict(arm)
        state = trainer.network.state_dict()
    with tempfile.TemporaryDirectory() as folder:
        path = str(Path(folder) / "adapter.safetensors")
        safetensors.torch.save_file(state, path)
        loaded = comfy.utils.load_torch_file(path, safe_load=True)
    keys = comfy.lora.model_lora_keys_unet(arm.model.base_model, {})
    matched = len(comfy.lora.load_lora(dict(loaded), keys, log_missing=False))
    expected = len(trainer.network.adapters)
    patched, _ = comfy.sd.load_lora_for_models(arm.workload.model, None, loaded, 1.0, 0)
    comfy.model_management.load_models_gpu([patched], force_full_load=True)
    try:
        with arm.model.training():
            stock = _predict(arm)
    finally:
        comfy.model_management.unload_all_models()
    error = ((stock - trained).norm() / trained.norm()).item()
    effect = ((trained - base).norm() / base.norm()).item()
    return [
        Check(name="every key of the file is matched", passed=matched == expected, figure=f"{matched} of {expected}"),
        Check(
            name="the stock loader gives the trained forward", passed=error <= FORWARD_TOLERANCE < effect,
            figure=f"relative error {error:.1e}; the adapter changes the output by {effect:.1e}",
        ),
    ]


def _evaluation(network: Network, device: torch.device) -> list[Check]:
    from pistachio.training.evaluation import EvalItem, evaluate, plan_draws

    arm = _arm(network, device)
    items = [EvalItem(content_hash=i.content_hash, latents=i.latents, condition=i.condition, group=i.group) for i in arm.items]
    with arm.model.training():
        trainer = _with_adapter(arm)
        draws = plan_draws(items, num_timesteps=4, distribution=trainer.distribution)
        with trainer.network:
            first, second = (evaluate(arm.model, items, draws, batch_size=4) for _ in range(2))
            losses = [trainer.advance().loss for _ in range(3)]
            third = evaluate(arm.model, items, draws, batch_size=4)
    return [
        Check(name="evaluation repeats to the bit", passed=first == second, figure=f"{sum(map(len, first.values()))} errors"),
        Check(
            name="three steps of training", passed=all(torch.isfinite(torch.tensor(losses))) and third != first,
            figure="losses " + ", ".join(f"{loss:.4f}" for loss in losses),
        ),
    ]


def _restored(network: Network, device: torch.device) -> list[Check]:
    arm = _arm(network, device)
    before = {name: tensor.detach().cpu().clone() for name, tensor in arm.model.network.state_dict().items()}
    arm.run(2)
    after = arm.model.network.state_dict()
    changed = [name for name, tensor in before.items() if not torch.equal(tensor, after[name].cpu())]
    shadowed = [path for path, module in arm.model.network.named_modules() if "forward" in vars(module)]
    return [Check(
        name="the MODEL is as it was", passed=not changed and not shadowed,
        figure=f"{len(before)} tensors, {len(changed)} changed, {len(shadowed)} modules left altered",
    )]


