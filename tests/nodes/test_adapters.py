"""Every kind of adapter on real networks: right gradients, files the stock loader reads, and starts from files of every naming."""

from __future__ import annotations

import pytest
import torch
from support.prepared import Prepared, relative, snapshot, unchanged

FAMILIES = ("sd15", "wan21", "flux")  # with convolutions; video; fused layers and additions in place
KINDS = ("dora", "lokr", "loha")
LOADED = [dict(kind=kind) for kind in KINDS] + [
    dict(kind="lora", rank_stabilised=True, conv_rank=2, conv_alpha=3, rank_pattern="to_q|linear1=6"),
    dict(kind="dora", rank_stabilised=True), dict(kind="lokr", rank=100_000), dict(kind="lokr", lokr_factor=4, rank_stabilised=True),
]


@pytest.fixture(scope="module", params=FAMILIES)
def prepared(request, tiny):
    return Prepared(tiny(request.param))


def fitting(prepared, settings):
    """A setting for convolutions, and the kinds whose names a family lacks, are left out where they mean nothing."""
    settings = dict(settings)
    if prepared.targets != "all-linear+conv":
        settings.pop("conv_rank", None), settings.pop("conv_alpha", None)
    if prepared.tiny.family == "wan21" and "rank_pattern" in settings:
        settings["rank_pattern"] = r"self_attn\.q=6"
    return settings


@pytest.mark.parametrize("settings", [*(dict(kind=kind) for kind in KINDS), dict(dropout=0.2), dict(kind="dora", dropout=0.2)], ids=str)
def test_gradients_equal_finite_differences(prepared, settings):
    """With block checkpointing and without, dropout included; the network is as it was afterwards."""
    before = snapshot(prepared.tiny.model.model.diffusion_model)
    with prepared.model.training():
        kept, again = prepared.network(**settings), prepared.network(**settings, keep="blocks")
        for adapter in (*kept.adapters.values(), *again.adapters.values()):
            if hasattr(adapter, "row_norm"):  # the norm takes no gradient, so it may not move either
                adapter.row_norm = lambda like=None, held=adapter.row_norm(): held
        with kept, kept.training_pass(1, 0):
            gradient = prepared.gradient(kept)
            direction, epsilon = gradient / gradient.norm(), 3e-3
            values = []
            for sign in (1, -1):
                with torch.no_grad(), kept.weights(kept.parameters + sign * epsilon * direction):
                    values.append(prepared.errors().double().mean().item())
        with again, again.training_pass(1, 0):
            found = prepared.gradient(again)
    numeric = (values[0] - values[1]) / (2 * epsilon)
    assert gradient.norm().item() == pytest.approx(numeric, rel=2e-3)
    assert relative(found, gradient) < 1e-5
    assert unchanged(prepared.tiny.model.model.diffusion_model, before)


@pytest.mark.parametrize("settings", LOADED, ids=str)
def test_the_saved_file_gives_the_trained_forward_in_the_stock_loader(prepared, settings, caplog):
    from pistachio.bridge.lora import for_host

    with prepared.model.training(), prepared.network(**fitting(prepared, settings)) as network, torch.no_grad():
        trained = prepared.predict()
        with network.disabled():
            base = prepared.predict()
        tensors = for_host(network.state_dict())
    with caplog.at_level("WARNING"):
        stock, num_patched = prepared.stock(tensors)
    assert not [r for r in caplog.records if "not loaded" in r.getMessage().lower() or "ERROR" in r.getMessage()]
    assert num_patched == len(network.adapters)
    assert relative(trained, base) > 1e-3
    assert relative(stock, trained) < 1e-4


@pytest.mark.parametrize("kind", KINDS)
def test_an_untrained_adapter_is_the_base(prepared, kind):
    from pistachio.training.adapted import AdaptedNetwork
    from pistachio.training.config import AdapterConfig

    with prepared.model.training(), torch.no_grad():
        with AdaptedNetwork(prepared.model, AdapterConfig(kind=kind, targets=prepared.targets), seed=0) as network:
            untrained = prepared.predict()
            with network.disabled():
                base = prepared.predict()
    assert relative(untrained, base) < 1e-6


def pair(rows, columns, rank, seed):
    generator = torch.Generator().manual_seed(seed)
    return 0.2 * torch.randn(rank, columns, generator=generator), 0.2 * torch.randn(rows, rank, generator=generator)


def file_of(prepared, naming):
    """A LoRA of rank 2 and alpha 3 on a few layers of the family, named as the trainer would."""
    family = prepared.tiny.family
    suffixes = ("lora_A.weight", "lora_B.weight") if naming in ("peft", "diffusers") else ("lora_down.weight", "lora_up.weight")
    if family == "sd15":
        names = {  # name in the file -> (rows, columns)
            "kohya": {"lora_unet_input_blocks_1_1_transformer_blocks_0_attn1_to_q": (320, 320)},
            "kohya, diffusers' blocks": {"lora_unet_down_blocks_0_attentions_0_transformer_blocks_0_attn2_to_k": (320, 768)},
            "diffusers": {"unet.down_blocks.0.attentions.0.transformer_blocks.0.attn1.processor.to_q": (320, 320)},
            "peft": {"base_model.model.diffusion_model.input_blocks.1.1.transformer_blocks.0.attn1.to_v": (320, 320)},
        }[naming]
    elif family == "flux":
        wide = 128
        block, single = "transformer_blocks.0.attn", "single_transformer_blocks.0"
        names = {
            "kohya": {"lora_unet_double_blocks_0_img_attn_qkv": (3 * wide, wide)},
            "diffusers": {f"transformer.{block}.to_q": (wide, wide), f"transformer.{block}.to_v": (wide, wide), f"transformer.{single}.proj_mlp": (4 * wide, wide),
                          "transformer.norm_out.linear": (2 * wide, wide)},
            "peft": {"base_model.model.diffusion_model.single_blocks.0.linear1": (7 * wide, wide)},
        }[naming]
    else:
        names = {
            "kohya": {"lora_unet_blocks_0_self_attn_q": (128, 128)},
            "diffusers": {"transformer.blocks.1.ffn.0": (256, 128)},
            "peft": {"base_model.model.diffusion_model.blocks.0.cross_attn.k": (128, 128)},
        }[naming]
    tensors = {}
    for seed, (name, shape) in enumerate(names.items()):
        tensors |= dict(zip((f"{name}.{suffix}" for suffix in suffixes), pair(*shape, 2, seed))) | {f"{name}.alpha": torch.tensor(3.0)}
    return tensors


@pytest.mark.parametrize("naming", ["kohya", "kohya, diffusers' blocks", "diffusers", "peft"])
def test_a_start_is_the_file_as_the_stock_loader_applies_it(host, prepared, naming):
    from pistachio.bridge.lora_import import load_start, with_start_hash
    from pistachio.training.adapted import AdaptedNetwork
    from pistachio.training.config import AdapterConfig
    from safetensors.torch import save_file

    if naming == "kohya, diffusers' blocks" and prepared.tiny.family != "sd15":
        pytest.skip("a naming of SD1.5 and SDXL")
    tensors = file_of(prepared, naming)
    folder = host.models / "loras" / "start"
    folder.mkdir(parents=True, exist_ok=True)
    save_file(tensors | {"lora_te_text_model_encoder_layers_0_mlp_fc1.alpha": torch.tensor(1.0)}, folder / f"{prepared.tiny.family}.safetensors")
    config = with_start_hash(AdapterConfig(rank=6, alpha=4, targets=prepared.targets, start_from=f"start/{prepared.tiny.family}.safetensors"))
    start = load_start(prepared.model, config)
    with prepared.model.training(), torch.no_grad(), AdaptedNetwork(prepared.model, config, seed=0, start=start) as network:
        started = prepared.predict()
        with network.disabled():
            base = prepared.predict()
    known = {key.replace("base_model.model.", ""): tensor for key, tensor in tensors.items()}  # which the host doesn't read everywhere
    if prepared.tiny.family == "wan21":
        known = {key.replace("transformer.", "diffusion_model."): tensor for key, tensor in known.items()}
    stock, num_patched = prepared.stock(known)
    assert num_patched == len(start.layers)
    assert relative(started, base) > 1e-3
    assert relative(started, stock) < 1e-4


def test_where_the_text_encoder_is_trained_its_part_of_the_file_is_the_start_too(host, tiny):
    from pistachio.bridge.lora_import import load_start
    from pistachio.bridge.text_encoder import TextTrainedModel
    from pistachio.training.adapted import AdaptedNetwork
    from pistachio.training.config import AdapterConfig
    from safetensors.torch import save_file

    sd15 = tiny("sd15")
    names = {
        "lora_unet_input_blocks_1_1_transformer_blocks_0_attn1_to_q": ("diffusion_model.input_blocks.1.1.transformer_blocks.0.attn1.to_q", 320, 320),
        "lora_te_text_model_encoder_layers_0_mlp_fc1": ("text_encoders.clip_l.transformer.text_model.encoder.layers.0.mlp.fc1", 64, 768),
    }
    tensors, deltas = {}, {}
    for name, (path, rows, columns) in names.items():
        down, up = pair(rows, columns, 2, 0)
        tensors |= {f"{name}.lora_down.weight": down, f"{name}.lora_up.weight": up, f"{name}.alpha": torch.tensor(3.0)}
        deltas[path] = 1.5 * up @ down
    file = host.models / "loras" / "text.safetensors"
    file.parent.mkdir(parents=True, exist_ok=True)
    save_file(tensors, file)
    with torch.inference_mode():
        model = TextTrainedModel(sd15.model, sd15.clip, precision="fp32")
    config = AdapterConfig(rank=4, targets="all-linear", start_from="text.safetensors")
    start = load_start(model, config)
    with model.training(), torch.no_grad():
        adapters = AdaptedNetwork(model, config, seed=0, start=start).adapters
        for path, delta in deltas.items():
            adapter = adapters[path]
            assert relative(adapter.scale * adapter.tensors["lora_B"] @ adapter.tensors["lora_A"], delta) < 1e-5
    assert not start.notes


def test_the_files_content_is_part_of_the_runs_identity(host):
    from pistachio.bridge.lora_import import with_start_hash
    from pistachio.training.config import AdapterConfig
    from pistachio.training.errors import PistachioError

    file = host.models / "loras" / "identity.safetensors"
    file.parent.mkdir(parents=True, exist_ok=True)
    hashes = []
    for content in (b"one", b"two"):
        file.write_bytes(content)
        hashes.append(with_start_hash(AdapterConfig(start_from="identity.safetensors")).start_from_hash)
    assert hashes[0] != hashes[1] and all(hashes)
    assert with_start_hash(AdapterConfig()).start_from_hash == ""
    for name in ("identiy.safetensors", "../identity.safetensors", "/etc/passwd", "identity"):
        with pytest.raises(PistachioError, match="is no .safetensors file in"):
            with_start_hash(AdapterConfig(start_from=name))


def test_a_broken_file_is_named(host, prepared):
    from pistachio.bridge.lora_import import load_start
    from pistachio.training.config import AdapterConfig
    from pistachio.training.errors import PistachioError

    file = host.models / "loras" / "broken.safetensors"
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_bytes(b"no safetensors")
    with pytest.raises(PistachioError, match="'broken.safetensors' can't be read"):
        load_start(prepared.model, AdapterConfig(start_from="broken.safetensors"))


@pytest.mark.parametrize("kind", KINDS)
def test_bf16_compute_keeps_the_direction(prepared, kind):
    from pistachio.bridge.model import HostModel

    with prepared.model.training(), prepared.network(kind=kind) as network:
        exact = prepared.gradient(network)
    with torch.inference_mode():
        rounding = HostModel(prepared.tiny.model, precision="bf16")
    with rounding.training():
        with prepared.network(kind=kind) as network:
            rounded = prepared.gradient(network, model=rounding)
    assert torch.nn.functional.cosine_similarity(exact, rounded, dim=0) > 0.98
    assert relative(rounded, exact) > 1e-5  # it did compute in bf16


def run(wan, encoded, folder, adapter, *, check=lambda: None, continue_run=None, num_steps=4):
    from pistachio.bridge.training import train_lora
    from pistachio.training.config import EvaluationConfig, LoggingConfig, OptimizerConfig, TrainConfig

    config = TrainConfig(
        num_steps=num_steps, batch_size=2, precision="fp32", adapter=adapter, optimizer=OptimizerConfig(learning_rate=1e-3, warmup_steps=1),
        evaluation=EvaluationConfig(num_evaluations=2, timesteps_per_image=2, early_stop=False),
    )
    with torch.inference_mode():
        return train_lora(
            wan.model, encoded, config, run_name="anna", logging_config=LoggingConfig(), runs_folder=folder, log_row=lambda row: None,
            check_interrupted=check, continue_run=continue_run,
        )


def test_a_dora_run_from_a_file_resumes_exactly_and_installs_a_file_the_host_knows(host, tiny, tmp_path, caplog):
    """Two runs one after the other: a DoRA, and one that starts from it with dropout, cut and resumed; another content is another run."""
    from pistachio.bridge.lora import apply_lora, install_checkpoint, read_safetensors
    from pistachio.training.config import AdapterConfig
    from pistachio.training.errors import RunConflictError
    from pistachio.training.run import RunFolder
    from support.encoded import encoded_set

    wan = tiny("wan21")
    encoded = encoded_set(tmp_path / "cache", wan, num_train=3, num_held_out=2)
    first = run(wan, encoded, tmp_path / "first", AdapterConfig(kind="dora", rank=2, targets="attention"))
    name = install_checkpoint(first, 4, "dora start")
    with caplog.at_level("WARNING"), torch.inference_mode():
        loaded = apply_lora(wan.model, host.models / "loras" / name)
    assert loaded.patches and not [r for r in caplog.records if "not loaded" in r.getMessage().lower()]

    adapter = AdapterConfig(kind="dora", rank=3, targets="attention", dropout=0.1, start_from=name)
    whole = run(wan, encoded, tmp_path / "whole", adapter)
    calls = [12]

    def cancel():
        calls[0] -= 1
        if calls[0] == 0:
            raise InterruptedError

    with pytest.raises(InterruptedError):
        run(wan, encoded, tmp_path / "cut", adapter, check=cancel)
    assert 0 < RunFolder(tmp_path / "cut" / "anna").load_state()["step"] < 4
    resumed = run(wan, encoded, tmp_path / "cut", adapter)
    (found, _), (expected, metadata) = (read_safetensors(RunFolder(r.folder).checkpoint_file(4)) for r in (resumed, whole))
    assert found.keys() == expected.keys() and all(torch.equal(found[key], expected[key]) for key in expected)
    assert metadata["pistachio.start_from"] == name and metadata["ss_network_args"] == '{"algo": "lora", "dora_wd": "True"}'
    notes = RunFolder(whole.folder).report()["notes"]
    assert any(f"Starts from '{name}'" in note for note in notes) and any("Before any training the file changes" in note for note in notes)

    install_checkpoint(first, 2, "dora start")  # the same run's file is replaced
    with pytest.raises(RunConflictError, match="start_from_hash"):
        run(wan, encoded, tmp_path / "whole", adapter)


def test_a_bad_expression_shows_on_the_node(host):
    from pistachio.nodes.settings import AdapterSettings

    assert AdapterSettings.validate_inputs(include="attn", rank_pattern="ffn=4") is True
    assert "no regular expression" in AdapterSettings.validate_inputs(include="(")
    assert "no regular expression" in AdapterSettings.validate_inputs(rank_pattern="(=4")
    assert "is no .safetensors file" in AdapterSettings.validate_inputs(start_from="missing.safetensors")
    assert AdapterSettings.fingerprint_inputs() == ""
