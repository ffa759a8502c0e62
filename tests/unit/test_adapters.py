"""Every kind of adapter on a small network: exact gradients in float64, nothing kept, nothing changed at step 0, dropout that repeats."""

import math

import pytest
import torch
from pistachio.training.adapted import AdaptedNetwork
from pistachio.training.adapters import ADAPTERS
from pistachio.training.adapters.lokr import factorize
from pistachio.training.config import AdapterConfig, ObjectiveConfig, OptimizerConfig, TrainConfig
from pistachio.training.errors import PistachioError
from pistachio.training.trainer import Trainer
from support.flow import Flow, OutOfPlace, train_items

KINDS = tuple(ADAPTERS)
CONV = "all-linear+conv"


def network(model, *, away=0.3, keep="everything", **settings):
    """Adapters away from their start, in the model's own dtype."""
    config = AdapterConfig(**{"rank": 3, "alpha": 2, "targets": CONV, **settings})
    made = AdaptedNetwork(model, config, seed=0, keep=keep)
    made.parameters = made.parameters.detach().to(model.dtype) + away * torch.randn(
        made.parameters.shape, dtype=model.dtype, generator=torch.Generator().manual_seed(1)
    )
    made.gradients = torch.zeros_like(made.parameters)
    made._bind()
    return made


def loss(model, dtype=torch.float64):
    x, noise = (torch.randn(3, 3, 5, 7, dtype=dtype, generator=torch.Generator().manual_seed(s)) for s in (2, 3))
    sigma = torch.tensor([0.2, 0.5, 0.9], dtype=dtype)
    return (model.predict(model.add_noise(x, noise, sigma), sigma, [1.0, 0.0, -1.0]) - x).square().mean()


def adapted_weight(kind, weight, t, scale, *, norm_of=None):
    """The trained weight by its definition, from plain matrices. `norm_of`: DoRA's norm, which takes no gradient."""
    if kind in ("lora", "dora"):
        delta = scale * (t["lora_B"].flatten(1) @ t["lora_A"].flatten(1))
    elif kind == "loha":
        delta = scale * (t["hada_w1_a"] @ t["hada_w1_b"]) * (t["hada_w2_a"] @ t["hada_w2_b"])
    else:
        w2 = t["lokr_w2"].flatten(1) if "lokr_w2" in t else t["lokr_w2_a"] @ t["lokr_w2_b"]
        delta = scale * torch.kron(t["lokr_w1"], w2)
    whole = weight + delta.view(weight.shape)
    if kind != "dora":
        return whole
    norm = whole.detach().flatten(1).norm(dim=1)
    return whole * (t["magnitude"] / norm).view(-1, *[1] * (weight.ndim - 1))


@pytest.mark.parametrize("keep", ["everything", "blocks"])
@pytest.mark.parametrize("kind, rank", [("dora", 3), ("loha", 3), ("lokr", 1), ("lokr", 64)])
def test_gradients_are_exact_in_float64(kind, rank, keep):
    """Against autograd over weights built by the definition; in-place additions, biases, 1x1 and 3x3 kernels."""
    model = Flow(torch.float64)
    adapted = network(model, kind=kind, rank=rank, keep=keep)
    with adapted:
        found = loss(model)
        found.backward()
    plain = Flow(torch.float64)
    leaves = {}
    for path, adapter in adapted.adapters.items():
        leaves[path] = {name: tensor.detach().clone().requires_grad_(True) for name, tensor in adapter.tensors.items()}
        module = plain.network.get_submodule(path)
        weight = adapted_weight(kind, module.weight.detach(), leaves[path], adapter.scale)
        del module.weight
        module.weight = weight
    plain.network = OutOfPlace(plain.network)
    expected = loss(plain)
    expected.backward()
    assert found.item() == pytest.approx(expected.item(), rel=1e-12)
    for path, adapter in adapted.adapters.items():
        for name, leaf in leaves[path].items():
            assert leaf.grad.abs().sum() > 0
            assert torch.allclose(adapter.tensors[name].grad, leaf.grad, rtol=1e-8, atol=1e-12), (path, name)


@pytest.mark.parametrize("kind", ["lora", "lokr", "loha"])
@pytest.mark.parametrize("dropout, keep", [(0.0, "everything"), (0.4, "everything"), (0.4, "blocks")])
def test_gradients_equal_finite_differences(kind, dropout, keep):
    model = Flow(torch.float64)
    adapted = network(model, kind=kind, dropout=dropout, keep=keep)
    with adapted, adapted.training_pass(5, 0):
        loss(model).backward()
        direction = adapted.gradients / adapted.gradients.norm()
        values = []
        for sign in (1, -1):
            with torch.no_grad(), adapted.weights(adapted.parameters + sign * 1e-5 * direction):
                values.append(loss(model).item())
    numeric = (values[0] - values[1]) / 2e-5
    assert adapted.gradients.norm().item() == pytest.approx(numeric, rel=1e-6)


@pytest.mark.parametrize("kind", KINDS)
def test_at_step_zero_nothing_changes_and_gradients_flow(kind):
    model = Flow()
    base = loss(model, torch.float32).item()
    adapted = AdaptedNetwork(model, AdapterConfig(kind=kind, rank=3, targets=CONV), seed=0)
    with adapted:
        start = loss(model, torch.float32)
        start.backward()
    assert start.item() == base
    assert all(any(tensor.grad.abs().sum() > 0 for tensor in adapter.tensors.values()) for adapter in adapted.adapters.values())


@pytest.mark.parametrize("kind", KINDS)
def test_no_frozen_weight_is_kept_for_the_backward(kind):
    """Neither a weight nor an update of a weight's size, which would be the model's size again."""
    model = Flow()
    adapted = network(model, kind=kind, rank=1, targets="all-linear", away=0.1)
    weights = {module.weight.untyped_storage().data_ptr() for module in model.network.modules() if hasattr(module, "weight")}
    own = adapted.parameters.untyped_storage().data_ptr()
    kept = []
    with adapted, torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append(t) or t, lambda t: t):
        loss(model, torch.float32).backward()
    linear = [module for path, module in model.network.named_modules() if path in adapted.adapters]
    shapes = {tuple(m.weight.shape) for m in linear} | {tuple(m.weight.t().shape) for m in linear}
    assert kept
    frozen_norms = {module.weight.data_ptr() for module in model.network.modules() if isinstance(module, torch.nn.LayerNorm)}
    for tensor in kept:
        pointer = tensor.untyped_storage().data_ptr()
        assert pointer not in weights - frozen_norms
        assert pointer == own or tuple(tensor.shape) not in shapes


@pytest.mark.parametrize("kind", KINDS)
def test_dropout_repeats_with_its_pass_and_is_off_outside_it(kind):
    model = Flow(torch.float64)
    plain, adapted, again = (network(model, kind=kind, dropout=d, keep=k) for d, k in ((0, "everything"), (0.3, "everything"), (0.3, "blocks")))
    results = {}
    for name, used, at in (("first", adapted, (3, 0)), ("same", again, (3, 0)), ("next pass", adapted, (3, 1)), ("next step", adapted, (4, 0))):
        used.gradients.zero_()
        with used, used.training_pass(*at):
            value = loss(model)
            value.backward()
        results[name] = (value.item(), used.gradients.clone())
    assert results["first"][0] == results["same"][0]
    assert torch.allclose(results["first"][1], results["same"][1], rtol=1e-10, atol=1e-14)
    assert len({value for value, _ in results.values()}) == 3
    with plain:
        expected = loss(model).item()
    with adapted:
        assert loss(model).item() == expected


def test_dropout_keeps_the_mean_of_its_input():
    adapted = network(Flow(), dropout=0.25)
    drop = adapted.adapters["blocks.0.up"].dropped
    with adapted.training_pass(1, 0):
        dropped = drop(torch.ones(200, 100))
    assert (dropped == 0).float().mean().item() == pytest.approx(0.25, abs=0.02)
    assert dropped.mean().item() == pytest.approx(1, abs=0.02)


@pytest.mark.parametrize("kind", ["lora", "dora"])
def test_a_resumed_run_drops_the_same_values(kind):
    config = TrainConfig(
        num_steps=6, batch_size=2, accumulation=2, adapter=AdapterConfig(kind=kind, rank=3, dropout=0.2, targets=CONV),
        optimizer=OptimizerConfig(learning_rate=1e-2, warmup_steps=0), objective=ObjectiveConfig(timestep_distribution="uniform"),
    )
    whole = Trainer(Flow(), train_items(), config)
    with whole.network:
        for _ in range(3):
            whole.advance()
        state = {name: value.clone() if torch.is_tensor(value) else value for name, value in whole.state().items()}
        state["optimizer"] = torch.load(_saved(state["optimizer"]), weights_only=True)
        for _ in range(3):
            whole.advance()
    resumed = Trainer(Flow(), train_items(), config, keep="blocks")
    resumed.load(state)
    with resumed.network:
        for _ in range(3):
            resumed.advance()
    assert torch.equal(resumed.network.parameters, whole.network.parameters)


def _saved(value):
    from io import BytesIO

    file = BytesIO()
    torch.save(value, file)
    file.seek(0)
    return file


@pytest.mark.parametrize("kind, rank", [("lora", 4), ("dora", 4), ("loha", 4), ("lokr", 1)])
def test_rank_stabilised_files_keep_loaders_on_alpha_over_rank(kind, rank):
    adapted = network(Flow(), kind=kind, rank=rank, alpha=6, rank_stabilised=True)
    adapter = adapted.adapters["blocks.0.up"]
    assert adapter.scale == pytest.approx(6 / math.sqrt(rank))
    state = adapted.state_dict()
    assert state["diffusion_model.blocks.0.up.alpha"].item() / rank == pytest.approx(adapter.scale)


def test_a_whole_lokr_factor_has_no_scale():
    """Loaders ignore alpha where nothing is decomposed."""
    adapted = network(Flow(), kind="lokr", rank=64, alpha=6)
    assert all(adapter.scale == 1 for adapter in adapted.adapters.values())
    assert "in 6 of 6 layers the larger factor (4 x 5 at 'enter')" in adapted.notes[0]
    assert network(Flow(), kind="lokr", rank=1, targets="all-linear").notes == ()


def test_lokr_factors_are_those_of_lycoris():
    assert [factorize(size, -1) for size in (127, 128, 250, 360, 512, 1024)] == [(1, 127), (8, 16), (10, 25), (18, 20), (16, 32), (32, 32)]
    assert [factorize(size, 4) for size in (127, 128, 250, 360, 512, 1024)] == [(1, 127), (4, 32), (2, 125), (4, 90), (4, 128), (4, 256)]
    assert [factorize(size, 16) for size in (250, 360, 1024)] == [(10, 25), (15, 24), (16, 64)]


def test_ranks_of_convolutions_and_single_layers():
    adapted = network(Flow(), rank=2, alpha=4, conv_rank=5, conv_alpha=10, rank_pattern="up$=3\nblocks=1")
    assert {path: (adapter.rank, adapter.scale) for path, adapter in adapted.adapters.items()} == {
        "enter": (2, 2), "leave": (5, 2),  # 1 x 1 is as a linear layer
        "blocks.0.up": (3, 4 / 3), "blocks.0.down": (1, 4), "blocks.1.up": (3, 4 / 3), "blocks.1.down": (1, 4),
    }


def test_a_preset_with_convolutions_says_where_there_are_none():
    assert network(Flow(), targets=CONV).notes == ()
    (note,) = network(Flow(), targets=CONV, exclude="enter\nleave").notes
    assert note.startswith(f"The preset '{CONV}' asks for convolutions, and none of flow's is trained")


@pytest.mark.parametrize("settings, message", [
    (dict(targets="all-linear", include="blokcs"), "'blokcs' in include finds no layer.*blocks.0.up"),
    (dict(exclude="qkv"), "'qkv' in exclude finds no layer"),
    (dict(targets="all-linear", include="leave"), "leave out \\('leave'\\).*larger preset"),
    (dict(include="up", rank_pattern="down=3"), "'down' in rank_pattern finds only layers that the other settings leave out"),
    (dict(exclude="."), "takes away every layer"),
    (dict(targets="attention"), "matches no layer"),
])
def test_targets_that_choose_nothing_are_an_error(settings, message):
    with pytest.raises(PistachioError, match=message):
        network(Flow(), **settings)


@pytest.mark.parametrize("settings", [
    dict(include="("), dict(exclude="[a"), dict(rank_pattern="up"), dict(rank_pattern="up=0"), dict(rank_pattern="(=4"), dict(dropout=1.0),
    dict(conv_rank=4), dict(lokr_factor=0), dict(kind="oft"), dict(conv_alpha=-1.0, targets=CONV),
])
def test_bad_settings_say_what_to_write(settings):
    with pytest.raises(PistachioError, match="Adapter Settings"):
        AdapterConfig(**settings)


def test_include_and_exclude_narrow_the_preset():
    assert list(network(Flow(), include="up$\nleave", exclude="blocks.1").adapters) == ["blocks.0.up", "leave"]


@pytest.mark.parametrize("settings, expected", [
    (dict(rank=8, alpha=4), {"ss_network_module": "networks.lora", "ss_network_dim": "8", "ss_network_alpha": "4"}),
    (dict(rank=16, alpha=4, rank_stabilised=True), {"ss_network_alpha": "16.0", "ss_network_args": '{"rs_lora": "True"}'}),
    (dict(kind="dora", dropout=0.1), {"ss_network_module": "lycoris.kohya", "ss_network_args": '{"algo": "lora", "dora_wd": "True"}', "ss_network_dropout": "0.1"}),
    (dict(kind="lokr", lokr_factor=8, targets=CONV, conv_rank=4, conv_alpha=1),
     {"ss_network_module": "lycoris.kohya", "ss_network_args": '{"algo": "lokr", "factor": "8", "conv_dim": "4", "conv_alpha": "1"}'}),
    (dict(kind="loha", start_from="mine.safetensors", start_from_hash="ab"), {"ss_network_args": '{"algo": "loha"}', "pistachio.start_from": "mine.safetensors"}),
])
def test_the_files_metadata_tells_lora_managers_the_kind(settings, expected):
    from pistachio.training.metadata import lora_metadata

    metadata = lora_metadata(
        name="x", step=1, family="SD15", config=TrainConfig(num_steps=2, adapter=AdapterConfig(**settings)), is_flow=False, trigger="",
        split_id="", n_train=3, base_model_hash="", versions={},
    )
    assert {key: metadata[key] for key in expected} == expected
