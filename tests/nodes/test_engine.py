"""The engine over every named family's own classes: right gradients, right batches, files the stock loader reads, nothing left behind."""

from __future__ import annotations

import pytest
import torch

FAMILIES = ("sd15", "sdxl", "sd3", "flux", "wan21")


@pytest.fixture(params=FAMILIES)
def prepared(request, tiny):
    return Prepared(tiny(request.param))


class Prepared:
    """A host model, two pictures and an adapter away from its start."""

    def __init__(self, tiny):
        from pistachio.bridge.conditions import prepare
        from pistachio.bridge.model import HostModel

        self.tiny = tiny
        with torch.inference_mode():
            self.model = HostModel(tiny.model, precision="fp32")
        shape = (2, *tiny.latent_shape[1:])
        self.latents = torch.randn(shape, generator=torch.Generator().manual_seed(1))
        self.noise = torch.randn(shape, generator=torch.Generator().manual_seed(2))
        self.sigma = self.model.sigma_at(torch.tensor([0.7, 0.4]))
        self.conditions = [prepare(self.model.base_model, tiny.condition(text), self.latents[:1]) for text in ("a red cat", "a blue dog")]

    def network(self, *, targets="all-linear", checkpointing=False):
        from pistachio.training.adapted import AdaptedNetwork
        from pistachio.training.config import AdapterConfig

        network = AdaptedNetwork(
            self.model, AdapterConfig(rank=4, alpha=2, targets=targets), seed=0, checkpointing=checkpointing
        )
        with torch.no_grad():
            network.parameters.copy_(0.05 * torch.randn(network.parameters.shape, generator=torch.Generator().manual_seed(3)))
        return network

    def errors(self, which=(0, 1)):
        from pistachio.training.objective import prediction_error

        which = list(which)
        return prediction_error(
            self.model, self.latents[which], self.noise[which], self.sigma[which], [self.conditions[i] for i in which]
        )

    def gradient(self, network, *passes):
        network.gradients.zero_()
        for which in passes or ((0, 1),):
            (self.errors(which).sum() / 2).backward()
        return network.gradients.clone()


def relative(a, b):
    return ((a - b).norm() / b.norm()).item()


def snapshot(network: torch.nn.Module):
    """Values, identities and instance attributes of everything under the network."""
    weights = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    shape = {path: (sorted(vars(module)), [id(p) for p in module._parameters.values()], vars(module).get("forward")) for path, module in network.named_modules()}
    return weights, shape


def _bytes(tensor):
    return tensor.contiguous().flatten().view(torch.uint8).numpy().tobytes()  # bits: some buffers hold NaN


def unchanged(network, before):
    weights, shape = snapshot(network)
    return shape == before[1] and all(_bytes(weights[name]) == _bytes(before[0][name]) for name in weights) and weights.keys() == before[0].keys()


@pytest.mark.parametrize("checkpointing", [False, True])
def test_gradients_equal_finite_differences(prepared, checkpointing):
    targets = "all-linear+conv" if prepared.tiny.family in ("sd15", "sdxl") else "all-linear"
    with prepared.model.training():
        network = prepared.network(targets=targets, checkpointing=checkpointing)
        with network:
            gradient = prepared.gradient(network)
            direction = gradient / gradient.norm()
            epsilon = 3e-3
            with torch.no_grad():
                network.parameters.add_(direction, alpha=epsilon)
                above = prepared.errors().double().mean().item()
                network.parameters.sub_(direction, alpha=2 * epsilon)
                below = prepared.errors().double().mean().item()
    numeric = (above - below) / (2 * epsilon)
    assert abs(gradient.norm().item() - numeric) / abs(numeric) < 1e-3


def test_checkpointing_changes_no_gradient(prepared):
    with prepared.model.training():
        kept, again = prepared.network(), prepared.network(checkpointing=True)
        with kept:
            expected = prepared.gradient(kept)
        with again:
            found = prepared.gradient(again)
    assert len(prepared.model.blocks()) >= 2
    assert relative(found, expected) < 1e-5


def test_a_batch_is_its_pictures_and_accumulation_is_the_larger_batch(prepared):
    with prepared.model.training(), prepared.network() as network:
        with torch.no_grad():
            together = prepared.errors()
            apart = torch.cat([prepared.errors([0]), prepared.errors([1])])
        assert relative(together, apart) < 1e-5
        assert relative(prepared.gradient(network, [0], [1]), prepared.gradient(network, [0, 1])) < 1e-4


def test_a_batch_costs_its_size(prepared):
    """The network sees B samples for a batch of B, where crossing every caption with every picture would make B x B."""
    seen = []
    handle = prepared.model.network.register_forward_pre_hook(lambda module, args: seen.append(args[0].shape[0]))
    try:
        with prepared.model.training(), prepared.network():
            prepared.errors()
    finally:
        handle.remove()
    assert seen == [2]


def test_the_saved_file_gives_the_trained_forward_in_the_stock_loader(prepared, tmp_path, caplog):
    import comfy.sd
    import comfy.utils
    import comfy.model_management
    from safetensors.torch import save_file

    targets = "all-linear+conv" if prepared.tiny.family in ("sd15", "sdxl") else "all-linear"
    with prepared.model.training(), prepared.network(targets=targets) as network, torch.no_grad():
        trained = prepared.model.predict(prepared.latents, prepared.sigma, prepared.conditions)
        with network.disabled():
            base = prepared.model.predict(prepared.latents, prepared.sigma, prepared.conditions)
        save_file(network.state_dict(), tmp_path / "lora.safetensors")
        num_adapters = len(network.adapters)
    with caplog.at_level("WARNING"), torch.inference_mode():
        lora = comfy.utils.load_torch_file(str(tmp_path / "lora.safetensors"), safe_load=True)
        loaded, _ = comfy.sd.load_lora_for_models(prepared.tiny.model, None, lora, 1.0, 0.0)
        assert not [r for r in caplog.records if "not loaded" in r.getMessage().lower()]
        assert len(loaded.patches) == num_adapters
        from pistachio.bridge.model import HostModel

        with_lora = HostModel(loaded, precision="fp32")
        stock = with_lora.predict(prepared.latents, prepared.sigma, prepared.conditions)
        comfy.model_management.load_models_gpu([prepared.tiny.model])  # takes the LoRA off the shared network again
    assert relative(trained, base) > 1e-3  # the adapter does something
    assert relative(stock, trained) < 1e-4


class Boom(Exception):
    pass


@pytest.mark.parametrize("accident", [None, Boom, KeyboardInterrupt])
def test_the_callers_model_is_bit_identical_afterwards(prepared, accident):
    before = snapshot(prepared.tiny.model.model.diffusion_model)
    attributes = dict(vars(prepared.tiny.model.model))
    try:
        with prepared.model.training(), prepared.network(checkpointing=True) as network:
            prepared.gradient(network)
            if accident:
                raise accident
    except (Boom, KeyboardInterrupt):
        pass
    assert unchanged(prepared.tiny.model.model.diffusion_model, before)
    assert {k: v for k, v in vars(prepared.tiny.model.model).items() if k != "_modules"}.keys() == {k for k in attributes if k != "_modules"}
    assert prepared.tiny.model.model.manual_cast_dtype == attributes["manual_cast_dtype"]


def test_bf16_compute_keeps_the_direction(prepared):
    from pistachio.bridge.model import HostModel

    with prepared.model.training(), prepared.network() as network:
        exact = prepared.gradient(network)
    full = prepared.model
    with torch.inference_mode():
        prepared.model = HostModel(prepared.tiny.model, precision="bf16")
    with prepared.model.training(), prepared.network() as network:
        rounded = prepared.gradient(network)
    prepared.model = full
    assert network.parameters.dtype == torch.float32
    assert torch.nn.functional.cosine_similarity(exact, rounded, dim=0) > 0.98
    assert relative(rounded, exact) > 1e-5  # it did compute in bf16
