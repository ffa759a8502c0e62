"""The text encoder in training, on SD1.5's one CLIP and SDXL's two: gradients, file, and nothing left behind."""

from __future__ import annotations

import pytest
import torch

FAMILIES = ("sd15", "sdxl")


@pytest.fixture(params=FAMILIES)
def pair(request, tiny):
    return Pair(tiny(request.param))


def relative(a, b):
    return ((a - b).norm() / b.norm()).item()


def _bytes(tensor):
    return tensor.contiguous().flatten().view(torch.uint8).numpy().tobytes()


class Pair:
    """A model with its text encoder, two pictures with two captions, and adapters away from their start."""

    def __init__(self, tiny):
        from pistachio.bridge.text_encoder import TextTrainedModel

        self.tiny = tiny
        with torch.inference_mode():
            self.model = TextTrainedModel(tiny.model, tiny.clip, precision="fp32")
        shape = (2, *tiny.latent_shape[1:])
        self.latents = torch.randn(shape, generator=torch.Generator().manual_seed(1))
        self.noise = torch.randn(shape, generator=torch.Generator().manual_seed(2))
        with self.model.training():
            self.sigma = self.model.sigma_at(torch.tensor([0.7, 0.4]))
            self.conditions = [self.model.condition(text, self.latents[:1]) for text in ("a red cat", "a (blue:1.2) dog")]

    def network(self, *, keep="everything"):
        from pistachio.training.adapted import AdaptedNetwork
        from pistachio.training.config import AdapterConfig

        network = AdaptedNetwork(self.model, AdapterConfig(rank=4, alpha=2), seed=0, keep=keep)
        with torch.no_grad():
            network.parameters.copy_(0.05 * torch.randn(network.parameters.shape, generator=torch.Generator().manual_seed(3)))
        return network

    def errors(self):
        from pistachio.training.objective import prediction_error

        return prediction_error(self.model, self.latents, self.noise, self.sigma, self.conditions)

    def gradient(self, network):
        network.gradients.zero_()
        self.errors().mean().backward()
        return network.gradients.clone()


def text_slices(network):
    """Where the text encoder's adapters lie in the flat buffer."""
    found, offset = [], 0
    for path, adapter in network.adapters.items():
        size = sum(int(torch.Size(shape).numel()) for shape in adapter.shapes.values())
        if path.startswith("text_encoders.") and ".encoder.layers.0." in path:
            found.append(slice(offset, offset + size))
        offset += size
    return found


@pytest.mark.parametrize("keep", ["everything", "blocks"])
def test_gradients_equal_finite_differences(pair, keep):
    """Along the text encoder's own part of the gradient: the diffusion model's is proved elsewhere."""
    with pair.model.training():
        network = pair.network(keep=keep)
        slices = text_slices(network)
        with network:
            gradient = pair.gradient(network)
            direction = torch.zeros_like(gradient)
            for part in slices:
                direction[part] = gradient[part]
            size = direction.norm()
            direction /= size
            epsilon = 1e-2
            with torch.no_grad():
                network.parameters.add_(direction, alpha=epsilon)
                above = pair.errors().double().mean().item()
                network.parameters.sub_(direction, alpha=2 * epsilon)
                below = pair.errors().double().mean().item()
    assert slices and all(gradient[part].abs().max() > 0 for part in slices)
    assert abs(size.item() - (above - below) / (2 * epsilon)) / size.item() < 1e-3


def test_the_saved_file_gives_the_trained_forward_in_the_stock_loader(pair, request, tmp_path, caplog):
    import comfy.model_management
    import comfy.sd
    import comfy.utils
    from pistachio.bridge.text_encoder import TextTrainedModel
    from safetensors.torch import save_file

    # The host keeps a CLIP in fp16, and the stock loader then rounds weight + update to that: 3e-4 here, whoever trained it.
    encoder = pair.tiny.clip.cond_stage_model
    stored = next(encoder.parameters()).dtype
    with torch.inference_mode():
        encoder.float()
    request.addfinalizer(lambda: encoder.to(stored))
    with pair.model.training(), pair.network() as network, torch.no_grad():
        trained = pair.model.predict(pair.latents, pair.sigma, pair.conditions)
        save_file(network.state_dict(), tmp_path / "lora.safetensors")
        num_adapters = len(network.adapters)
        for part in text_slices(network):
            network.parameters[part] = 0
        without_text = pair.model.predict(pair.latents, pair.sigma, pair.conditions)
    with caplog.at_level("WARNING"), torch.inference_mode():
        lora = comfy.utils.load_torch_file(str(tmp_path / "lora.safetensors"), safe_load=True)
        model, clip = comfy.sd.load_lora_for_models(pair.tiny.model, pair.tiny.clip, lora, 1.0, 1.0)
        assert not [r for r in caplog.records if "not loaded" in r.getMessage().lower()]
        assert len(model.patches) + len(clip.patcher.patches) == num_adapters
        stock = TextTrainedModel(model, clip, precision="fp32").predict(pair.latents, pair.sigma, pair.conditions)
        comfy.model_management.load_models_gpu([pair.tiny.model, pair.tiny.clip.patcher])  # takes the LoRA off again
    assert relative(trained, without_text) > 1e-4  # the text encoder's part does something
    assert relative(stock, trained) < 1e-4


def test_the_callers_clip_is_bit_identical_afterwards(pair):
    encoder = pair.tiny.clip.cond_stage_model
    before = {name: tensor.clone() for name, tensor in encoder.state_dict().items()}
    forwards = {path: vars(module).get("forward") for path, module in encoder.named_modules()}
    with torch.inference_mode():
        said = pair.tiny.condition("a red cat")[0][0].clone()
    with pytest.raises(KeyboardInterrupt), pair.model.training(), pair.network(keep="blocks") as network:
        pair.gradient(network)
        raise KeyboardInterrupt
    assert all(_bytes(tensor) == _bytes(before[name]) for name, tensor in encoder.state_dict().items())
    assert forwards == {path: vars(module).get("forward") for path, module in encoder.named_modules()}
    with torch.inference_mode():
        assert torch.equal(pair.tiny.condition("a red cat")[0][0], said)


def test_captions_encode_as_the_host_does(pair):
    """Live conditions without an adapter give the network what Encode Dataset's cached ones give."""
    from pistachio.bridge.conditions import prepare

    with pair.model.training(), torch.no_grad():
        live = pair.model.predict(pair.latents[:1], pair.sigma[:1], pair.conditions[:1])
    cached = prepare(pair.model.base_model, pair.tiny.condition("a red cat"), pair.latents[:1])
    from pistachio.bridge.model import HostModel

    with torch.inference_mode():
        host = HostModel(pair.tiny.model, precision="fp32")
    with host.training(), torch.no_grad():
        assert torch.equal(live, host.predict(pair.latents[:1], pair.sigma[:1], [cached]))


def test_a_language_model_is_refused(tiny):
    from pistachio.bridge.text_encoder import refuse_text_encoder
    from pistachio.training.errors import PistachioError

    with pytest.raises(PistachioError, match="Disconnect 'clip' from Train LoRA"):
        refuse_text_encoder(tiny("wan21").clip)


def run_with_clip(tiny, folder, runs, **changes):
    from dataclasses import replace

    from pistachio.bridge.encode import clip_fingerprint
    from pistachio.bridge.training import train_lora
    from pistachio.training.config import AdapterConfig, EvaluationConfig, LoggingConfig, OptimizerConfig, TrainConfig
    from support.encoded import encoded_set

    encoded = replace(encoded_set(folder, tiny), clip_fingerprint=clip_fingerprint(tiny.clip))
    config = TrainConfig(
        num_steps=4, seed=5, adapter=AdapterConfig(rank=2, alpha=2), precision="fp32",
        optimizer=OptimizerConfig(learning_rate=1e-2, warmup_steps=1, **changes),
        evaluation=EvaluationConfig(num_evaluations=2, timesteps_per_image=4, early_stop=False),
    )
    with torch.inference_mode():
        return train_lora(
            tiny.model, encoded, config, run_name="anna", logging_config=LoggingConfig(), runs_folder=runs, log_row=lambda row: None,
            check_interrupted=lambda: None, clip=tiny.clip,
        )


def test_a_run_trains_both_and_gives_both_back(tiny, tmp_path, caplog):
    from pistachio.bridge.lora import apply_lora, apply_lora_to_clip, read_safetensors
    from pistachio.training.run import RunFolder

    sd15 = tiny("sd15")
    file = RunFolder(run_with_clip(sd15, tmp_path / "cache", tmp_path / "runs").folder).checkpoint_file(4)
    moved = {key.split(".")[0]: tensor for key, tensor in read_safetensors(file)[0].items() if "lora_B" in key and ".layers.0." in key or "attn1.to_q.lora_B" in key}
    assert moved.keys() == {"diffusion_model", "text_encoders"} and all(tensor.abs().max() > 0 for tensor in moved.values())
    with torch.inference_mode(), caplog.at_level("WARNING"):
        model, clip = apply_lora(sd15.model, file), apply_lora_to_clip(sd15.clip, file)
    assert model.patches and clip.patcher.patches and not sd15.clip.patcher.patches
    assert not [record for record in caplog.records if "not loaded" in record.getMessage().lower()]


def test_a_rate_of_zero_leaves_the_text_encoder_as_it_is(tiny, tmp_path):
    from pistachio.bridge.lora import read_safetensors
    from pistachio.training.run import RunFolder

    run = run_with_clip(tiny("sd15"), tmp_path / "cache", tmp_path / "runs", text_encoder_lr_ratio=0.0)
    tensors = read_safetensors(RunFolder(run.folder).checkpoint_file(4))[0]
    text = [tensor for key, tensor in tensors.items() if key.startswith("text_encoders.") and "lora_B" in key]
    assert text and all(tensor.abs().max() == 0 for tensor in text)


def test_another_clip_than_the_captions_is_refused(tiny, tmp_path):
    from pistachio.bridge.training import train_lora
    from pistachio.training.config import LoggingConfig, TrainConfig
    from pistachio.training.errors import PistachioError
    from support.encoded import encoded_set

    sd15 = tiny("sd15")
    with pytest.raises(PistachioError, match="isn't the one that encoded the captions"), torch.inference_mode():
        train_lora(
            sd15.model, encoded_set(tmp_path / "cache", sd15), TrainConfig(num_steps=2), run_name="anna", logging_config=LoggingConfig(),
            runs_folder=tmp_path, log_row=lambda row: None, check_interrupted=lambda: None, clip=sd15.clip,
        )
