"""Starting from a LoRA file: the same forward as the file's for every naming and kind; what doesn't fit is refused."""

import pytest
import torch
from pistachio.training.adapted import AdaptedNetwork
from pistachio.training.adapters.start import Place, read_start
from pistachio.training.config import AdapterConfig, EvaluationConfig, OptimizerConfig, TrainConfig
from pistachio.training.errors import PistachioError
from pistachio.training.loop import RunInfo, train
from pistachio.training.run import RunFolder
from support.flow import Flow, eval_items, train_items

CONV = "all-linear+conv"
LAYERS = ("enter", "leave", *(f"blocks.{i}.{name}" for i in (0, 1) for name in ("up", "down")))
PLACES = {f"diffusion_model.{path}": Place(path=path) for path in LAYERS} | {f"lora_unet_{path.replace('.', '_')}": Place(path=path) for path in LAYERS}


def trained(kind="lora", **settings):
    network = AdaptedNetwork(Flow(), AdapterConfig(**{"kind": kind, "rank": 3, "alpha": 5, "targets": CONV, **settings}), seed=0)
    with torch.no_grad():
        network.parameters.add_(0.2 * torch.randn(network.parameters.shape, generator=torch.Generator().manual_seed(4)))
    return network


def forward(network):
    x = torch.randn(2, 5, 6, 6, generator=torch.Generator().manual_seed(2))
    with network, torch.no_grad():
        return network.model.network(x)


def started(tensors, kind="lora", places=PLACES.get, **settings):
    start = read_start("file.safetensors", tensors, places, kind=kind)
    return AdaptedNetwork(Flow(), AdapterConfig(**{"kind": kind, "rank": 3, "alpha": 5, "targets": CONV, **settings}), seed=9, start=start)


@pytest.mark.parametrize("kind, before, now", [
    ("lora", {}, {}), ("lora", {}, dict(rank=6, alpha=1)), ("lora", dict(rank_stabilised=True), {}), ("dora", {}, dict(rank=4, alpha=9)),
    ("loha", {}, dict(alpha=2)), ("lokr", dict(rank=1), dict(rank=1, alpha=2)), ("lokr", dict(rank=64), dict(rank=64)),
    ("lokr", dict(rank=1), dict(rank=64)),
])
def test_the_start_is_the_files_forward(kind, before, now):
    file = trained(kind, **before)
    state = file.state_dict()
    if kind == "dora":
        state = {key: tensor for key, tensor in state.items() if not key.endswith("lora_magnitude_vector")}
    network = started(state, kind, **now)
    assert torch.allclose(forward(network), forward(file), rtol=1e-4, atol=1e-5)
    with network.neutral():
        assert torch.equal(forward(network), Flow().network(torch.randn(2, 5, 6, 6, generator=torch.Generator().manual_seed(2))))
    assert any("changes 6 of the 6" in note for note in network.notes)


NAMINGS = {
    "kohya": lambda path, name: f"lora_unet_{path.replace('.', '_')}.{name.replace('lora_A', 'lora_down').replace('lora_B', 'lora_up')}",
    "down and up": lambda path, name: f"diffusion_model.{path}.{name.replace('lora_A', 'lora_down').replace('lora_B', 'lora_up')}",
    "diffusers": lambda path, name: f"diffusion_model.{path}.{name.replace('lora_A', 'lora.down').replace('lora_B', 'lora.up')}",
    "with the adapter's name": lambda path, name: f"diffusion_model.{path}.{name.replace('.weight', '.default.weight')}",
}


@pytest.mark.parametrize("naming", NAMINGS)
def test_every_naming_is_read(naming):
    file = trained()
    tensors = {}
    for key, tensor in file.state_dict().items():
        path = next(path for path in LAYERS if key.startswith(f"diffusion_model.{path}."))
        tensors[NAMINGS[naming](path, key.removeprefix(f"diffusion_model.{path}."))] = tensor
    tensors["lora_te_text_model_encoder_layers_0_mlp_fc1.alpha"] = torch.tensor(1.0)
    network = started(tensors)
    assert torch.allclose(forward(network), forward(file), rtol=1e-4, atol=1e-5)
    assert "1 tensors of text encoders" in network.notes[1]


def test_a_file_without_alpha_has_scale_one():
    file = trained(alpha=3)
    tensors = {key: tensor for key, tensor in file.state_dict().items() if not key.endswith(".alpha")}
    assert torch.allclose(forward(started(tensors)), forward(file), rtol=1e-4, atol=1e-5)


def test_layers_that_the_host_keeps_fused_are_joined():
    """Parts of a layer's rows, each of its own rank, are one adapter of the ranks' sum."""
    generator = torch.Generator().manual_seed(0)
    first, second = ({"down": torch.randn(r, 8, generator=generator), "up": torch.randn(8, r, generator=generator)} for r in (2, 3))
    tensors = {f"{name}.lora_{kind}.weight": tensor for name, pair in (("q", first), ("k", second)) for kind, tensor in pair.items()}
    places = {"q": Place(path="blocks.0.up", rows=(0, 8)), "k": Place(path="blocks.0.up", rows=(8, 8), reorder=lambda up: up.flip(0))}.get
    adapter = started(tensors, places=places, rank=6).adapters["blocks.0.up"]
    delta = adapter.scale * adapter.tensors["lora_B"] @ adapter.tensors["lora_A"]
    expected = torch.cat([first["up"] @ first["down"], second["up"].flip(0) @ second["down"]])
    assert torch.allclose(delta, expected, rtol=1e-4, atol=1e-5)
    with pytest.raises(PistachioError, match="needs rank 5 at 'blocks.0.up', and this adapter has 4. Set the rank to 5"):
        started(tensors, places=places, rank=4)


@pytest.mark.parametrize("kind, change, settings, message", [
    ("lora", {}, dict(rank=2), "needs rank 3 at 'enter'"),
    ("lora", {}, dict(targets="all-linear"), "changes 2 layers that this adapter doesn't train: 'enter', 'leave'"),
    ("loha", {}, dict(rank=4), "'hada_w1_a' of 'enter' in the file to start from is \\(8, 3\\), and this adapter's is \\(8, 4\\)"),
    ("lora", {"diffusion_model.other.lora_A.weight": torch.zeros(3, 8)}, {}, "1 tensors that belong to no layer.*'diffusion_model.other.lora_A.weight'"),
    ("lora", {"diffusion_model.enter.diff_b": torch.zeros(8)}, {}, "unknown kind: 'diffusion_model.enter.diff_b'"),
    ("lora", {"diffusion_model.enter.lora_mid.weight": torch.zeros(8)}, {}, "decomposed in a way"),
])
def test_what_does_not_fit_is_refused(kind, change, settings, message):
    with pytest.raises(PistachioError, match=message):
        started(trained(kind).state_dict() | change, kind, **settings)


def test_another_kind_is_named():
    with pytest.raises(PistachioError, match="is a loha file.*Set kind to 'loha'"):
        started(trained("loha").state_dict(), "lora")
    with pytest.raises(PistachioError, match="no weights for the diffusion model"):
        started({"lora_te_x.alpha": torch.tensor(1.0)})


def test_a_run_from_a_file_measures_the_base_first(tmp_path):
    """The curve begins at the base, the untouched adapter is tested, and the file's own effect is said."""
    file = trained()
    config = TrainConfig(
        num_steps=4, batch_size=2, adapter=AdapterConfig(rank=3, alpha=5, targets=CONV), optimizer=OptimizerConfig(learning_rate=1e-5),
        evaluation=EvaluationConfig(num_evaluations=2, timesteps_per_image=2),
    )
    start = read_start("mine.safetensors", file.state_dict(), PLACES.get, kind="lora")
    rows, bare = [], []
    train(Flow(), train_items(), eval_items(), config, RunFolder(tmp_path / "a"), RunInfo(name="a", start=start), log_row=rows.append)
    train(Flow(), train_items(), eval_items(), config, RunFolder(tmp_path / "b"), RunInfo(name="b"), log_row=bare.append)
    evaluations, bare_evaluations = ([row for row in found if row["kind"] == "eval"] for found in (rows, bare))
    assert evaluations[0]["errors"] == bare_evaluations[0]["errors"]
    assert abs(evaluations[1]["loss_delta_pct"]) > 100 * abs(bare_evaluations[1]["loss_delta_pct"])
    notes = [row["text"] for row in rows if row["kind"] == "note"]
    assert any("Starts from 'mine.safetensors'" in note for note in notes)
    said = next(note for note in notes if "changes the held-out loss by" in note)
    assert float(said.split(" by ")[1].split(" %")[0]) == pytest.approx(evaluations[1]["loss_delta_pct"], rel=0.05)
