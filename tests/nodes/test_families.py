"""Which models are trained, trained with a note, or refused with a reason; and that docs/families.md says the same."""

from __future__ import annotations

import re

import pytest
import torch
from pistachio.training.errors import PistachioError
from support import tiny_objects
from support.encoded import encoded_set
from support.tiny_models import FILES
from support.tiny_networks import FAMILIES
from support.tiny_objects import ObjectFamily

# Proved by a sibling: one network class, other depths.
PROVED_BY_SIBLING = {"SDXL", "SSD1B", "Segmind_Vega", "KOALA_1B"}

# Trains by the general path: nobody has proved it.
UNPROVED = ObjectFamily(
    config_class="HunyuanImage21", latent_shape=(1, 64, 4, 4), caption_shape=(1, 12, 32),
    parameters="comfy.ldm.hunyuan_video.model:HunyuanVideoParams", newer=dict(meanflow_sum=False),
    network=dict(image_model="hunyuan_video", in_channels=64, out_channels=64, patch_size=[1, 1], vec_in_dim=None, context_in_dim=32,
                 hidden_size=64, mlp_ratio=4.0, num_heads=2, depth=1, depth_single_blocks=1, axes_dim=[16, 16], theta=256, qkv_bias=True,
                 guidance_embed=False, byt5=False, meanflow=False, use_cond_type_embedding=False, vision_in_dim=None),
)
NEED_WEIGHTS = {"StableAudio", "Stable_Zero123"}  # the host can't make these without their files
# Ask for a picture through the host's `concat_cond`.
PICTURE_INPUT = ("HunyuanVideoI2V", "HunyuanVideoSkyreelsI2V", "CosmosI2V", "CosmosI2VPredict2", "SD15_instructpix2pix", "Kandinsky5")


def bare(config_class: str):
    """The host's own model object without its network: what it is can be asked, and it is small."""
    import comfy.supported_models

    found = getattr(comfy.supported_models, config_class, None)
    if found is None:
        pytest.skip(f"this ComfyUI has no {config_class}")
    settings = {**found.unet_config, "disable_unet_model_creation": True, "in_channels": 4}
    return found(settings).get_model({}, "", device=None)


def refused_classes():
    from pistachio.bridge import families

    return families.REFUSED


def test_every_proved_family_is_proved():
    from pistachio.bridge.families import PROVED

    tested = {family.config_class for family in (*FAMILIES.values(), *tiny_objects.OBJECT_FAMILIES.values())}
    assert tested | PROVED_BY_SIBLING == PROVED.keys()


def test_the_refused_are_refused_with_their_reason(host):
    """Every class that this ComfyUI has and can make."""
    import comfy.supported_models
    from pistachio.bridge.model import refuse_untrainable

    known = [name for name in refused_classes() if hasattr(comfy.supported_models, name) and name not in NEED_WEIGHTS]
    assert len(known) >= 13
    for name in known:
        with pytest.raises(PistachioError, match=re.escape(f"{name} can't be trained: {refused_classes()[name]}")):
            refuse_untrainable(bare(name))


@pytest.mark.parametrize("name", PICTURE_INPUT)
def test_a_model_that_asks_for_a_picture_is_refused(host, name):
    from pistachio.bridge.model import refuse_untrainable

    with pytest.raises(PistachioError, match="needs a picture as input"):
        refuse_untrainable(bare(name))


def test_a_picture_to_picture_objective_is_refused(host):
    from pistachio.bridge.model import refuse_untrainable

    with pytest.raises(PistachioError, match="it turns one picture into another"):
        refuse_untrainable(bare("LotusD"))


@pytest.fixture
def unproved(host, monkeypatch):
    monkeypatch.setitem(tiny_objects.OBJECT_FAMILIES, "unproved", UNPROVED)
    return tiny_objects.load("unproved")


def train(tiny, tmp_path, *, model=None, name="unproved", objective=None):
    from pistachio.bridge.training import train_lora
    from pistachio.training.config import AdapterConfig, EvaluationConfig, LoggingConfig, ObjectiveConfig, TrainConfig

    config = TrainConfig(
        num_steps=2, adapter=AdapterConfig(rank=2, alpha=2), precision="fp32", objective=objective or ObjectiveConfig(),
        evaluation=EvaluationConfig(num_evaluations=1, timesteps_per_image=4, early_stop=False),
    )
    encoded = encoded_set(tmp_path / "cache", tiny, num_train=3, num_held_out=2)
    with torch.inference_mode():
        return train_lora(
            model or tiny.model, encoded, config, run_name=name, logging_config=LoggingConfig(), runs_folder=tmp_path,
            log_row=lambda row: None, check_interrupted=lambda: None,
        )


def test_an_unproved_family_trains_and_the_report_says_so(unproved, tmp_path):
    from pistachio.training.run import RunFolder

    run = train(unproved, tmp_path)
    report = RunFolder(run.folder).report()
    assert report["finished"] and report["last_step"] == 2
    assert [note for note in report["notes"] if "HunyuanImage21 is not among the proved families" in note]


def test_a_proved_family_has_no_note(tiny):
    from pistachio.bridge.model import HostModel

    with torch.inference_mode():
        assert HostModel(tiny("wan21").model).notes == ()


def test_an_unproved_network_without_a_backward_is_refused_before_the_run(unproved, tmp_path):
    """As an operation of the host's does that is for generating only."""
    network = unproved.model.model.diffusion_model
    network.final_layer.register_forward_hook(lambda module, args, output: output.detach())
    with pytest.raises(PistachioError, match="HunyuanImage21 network can't be trained: its backward fails"):
        train(unproved, tmp_path)
    assert not list((tmp_path / "unproved").glob("checkpoints/*"))


@pytest.mark.parametrize(("expert", "low", "high"), [("high-noise", 0.875, 1.0), ("low-noise", 0.0, 0.875)])
def test_an_expert_of_wan_2_2_is_trained_and_measured_on_its_own_noise(tiny, tmp_path, expert, low, high):
    """As docs/families.md says to, at a shift that a stock node sets: every forward of the run but the first, which tries the shapes."""
    from comfy_extras.nodes_model_advanced import ModelSamplingSD3
    from pistachio.training.config import ObjectiveConfig
    from pistachio.training.run import RunFolder

    wan = tiny("wan21")  # Wan 2.2's 14B experts are this network
    shifted = ModelSamplingSD3().patch(wan.model, 5.0)[0]
    sigmas = []
    handle = wan.model.model.diffusion_model.register_forward_pre_hook(lambda module, args: sigmas.extend((args[1] / 1000).tolist()))
    try:
        run = train(wan, tmp_path, model=shifted, name=expert, objective=ObjectiveConfig(min_timestep=low, max_timestep=high))
    finally:
        handle.remove()
    assert RunFolder(run.folder).report()["finished"] and len(sigmas) > 20
    assert all(low - 1e-4 <= sigma <= high + 1e-4 for sigma in sigmas[1:])
    assert max(sigmas[1:]) - min(sigmas[1:]) > 0.3 * (high - low)


def test_chroma_is_trained_at_the_guidance_it_is_sampled_with(host):
    from pistachio.bridge.conditions import prepare

    guidance = {}
    for family in ("chroma", "flux2"):
        tiny = tiny_objects.load(family)
        with torch.inference_mode():
            condition = prepare(tiny.model.model, tiny.condition("a cat"), torch.zeros(tiny.latent_shape))
        guidance[family] = condition.arguments["guidance"].cond.item()
    assert guidance == {"chroma": 0.0, "flux2": 1.0}


def test_the_page_lists_every_family(repository):
    from pistachio.bridge.families import PROVED

    rows = [row.split("|")[1:-1] for row in (repository / "docs" / "families.md").read_text(encoding="utf-8").splitlines() if row.startswith("| ")]
    listed = {cells[0].strip() for cells in rows}
    assert set(PROVED.values()) <= listed
    text = (repository / "docs" / "families.md").read_text(encoding="utf-8")
    for reason in set(refused_classes().values()):
        assert reason in text
