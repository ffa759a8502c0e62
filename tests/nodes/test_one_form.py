"""The parts of the one form that nothing else uses: the planned name and size, and the test sheet of a trained run, on a tiny SD1.5."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from support.encoded import encoded_set
from support.pictures import write_folder


@pytest.fixture(scope="module")
def sd15(tiny):
    return tiny("sd15")


@pytest.fixture(scope="module")
def dataset(tmp_path_factory, host):
    from pistachio.dataset.folder import load_folder

    folder = write_folder(tmp_path_factory.mktemp("plan") / "pictures", 6)
    return replace(load_folder(folder, recursive=True), trigger_word="ohwx")


def test_the_size_is_the_familys(tiny):
    from pistachio.bridge.plan import resolution_for

    assert {family: resolution_for(tiny(family).model) for family in ("sd15", "sdxl", "wan21")} == {"sd15": 512, "sdxl": 1024, "wan21": 512}


def test_the_name_is_the_same_again_and_another_for_anything_else(tiny, dataset):
    from pistachio.bridge.plan import run_name_for
    from pistachio.training.run import check_run_name

    model = tiny("sd15").model
    name = run_name_for(model, dataset, 512)
    assert check_run_name(name) == name == run_name_for(model, dataset, 512) and name.startswith("ohwx_SD15_")
    captions = replace(dataset, pictures=(replace(dataset.pictures[0], caption="another caption"), *dataset.pictures[1:]))
    others = [
        run_name_for(tiny("sdxl").model, dataset, 512), run_name_for(model, dataset, 768), run_name_for(model, captions, 512),
        run_name_for(model, replace(dataset, pictures=dataset.pictures[1:]), 512), run_name_for(model, replace(dataset, trigger_word="zwx"), 512),
    ]
    assert len({name, *others}) == 6
    assert check_run_name(run_name_for(model, replace(dataset, trigger_word="../开心 果"), 512)).startswith("SD15_")


def test_a_sheet_shows_each_scene_without_and_with_the_lora(sd15, tmp_path):
    from pistachio.bridge.grid import GridSettings
    from pistachio.bridge.scenes import scene_pairs
    from pistachio.bridge.training import train_lora
    from pistachio.training.config import AdapterConfig, EvaluationConfig, LoggingConfig, OptimizerConfig, TrainConfig
    from pistachio.training.errors import PistachioError
    from pistachio.training.run import RunFolder

    config = TrainConfig(
        num_steps=2, seed=5, adapter=AdapterConfig(rank=4, alpha=4), precision="fp32",
        optimizer=OptimizerConfig(learning_rate=2e-2, warmup_steps=0, schedule="constant"),
        evaluation=EvaluationConfig(num_evaluations=1, timesteps_per_image=2, early_stop=False),
    )
    settings = GridSettings(prompts=("a red hat", "by the sea"), num_steps=1)
    with torch.inference_mode():
        run = train_lora(
            sd15.model, encoded_set(tmp_path / "cache", sd15, num_train=3), config, run_name="anna", logging_config=LoggingConfig(),
            runs_folder=tmp_path, log_row=lambda row: None, check_interrupted=lambda: None,
        )
        counted = []
        step = RunFolder(run.folder).checkpoint_steps()[-1]
        sheet, pairs = scene_pairs(run, step, sd15.model, sd15.clip, sd15.vae, settings, progress=lambda done, total: counted.append((done, total)))
        with pytest.raises(PistachioError, match="at least one scene"):
            scene_pairs(run, step, sd15.model, sd15.clip, sd15.vae, replace(settings, prompts=()))
    trigger = RunFolder(run.folder).dataset()["trigger_word"]
    assert trigger and [pair.scene for pair in pairs] == [f"{trigger}, a red hat", f"{trigger}, by the sea"]
    assert counted == [(1, 4), (2, 4), (3, 4), (4, 4)]
    for pair in pairs:
        one, two = np.asarray(pair.without, dtype=int), np.asarray(pair.with_lora, dtype=int)
        assert one.shape == two.shape and np.abs(one - two).max() > 0  # the same noise, another model
    assert sheet.width > 4 * 160 and sheet.height > 160
    sheet.save(tmp_path / "sheet.png")
