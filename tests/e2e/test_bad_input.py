"""Bad input over HTTP: each is refused with a sentence that says what is wrong and what to change, and nothing is trained."""

import os
import shutil

import pytest
from safetensors.torch import load_file, save_file

from support.jobs import training_job
from support.pictures import write_folder
from support.refusals import RUN, assert_says, failure


@pytest.fixture(scope="module")
def folders(server):
    """Folders of pictures below input/, each bad in one way."""
    root = server.base / "input"
    write_folder(root / "good", 8)
    (root / "empty").mkdir(exist_ok=True)
    write_folder(root / "without_captions", 8, captions=False)
    write_folder(root / "four", 4)
    latin = write_folder(root / "latin", 8)
    (latin / "picture-03.txt").write_bytes("a woman in a café".encode("latin-1"))
    same = write_folder(root / "duplicates", 1)
    for number in range(2, 9):
        shutil.copy(same / "picture-01.png", same / f"picture-{number:02d}.png")
        shutil.copy(same / "picture-01.txt", same / f"picture-{number:02d}.txt")
    (root / "broken").mkdir(exist_ok=True)
    for number in range(1, 7):
        (root / "broken" / f"picture-{number}.png").write_bytes((root / "good" / "picture-01.png").read_bytes()[: 40 * number])
    return root


@pytest.mark.parametrize("folder, parts", [
    ("empty", ["empty", "picture"]),
    ("no_such_folder", ["no_such_folder", "does not exist", "Load Image Folder"]),
    ("../../etc", ["outside", "extra_model_paths.yaml"]),
    ("/etc", ["outside", "/etc"]),
    ("", ["folder", "my_character"]),
    ("latin", ["picture-03.txt", "UTF-8"]),
    ("four", ["4 different pictures", "at least 5"]),
    ("duplicates", ["1 different picture", "at least five"]),
    ("broken", ["picture-1.png"]),
])
def test_a_bad_folder(server, folders, folder, parts):
    assert_says(failure(server, training_job("sd15", folder=folder, run_name=RUN)), *parts)


def test_missing_captions(server, folders):
    prompt = training_job("sd15", folder="without_captions", run_name=RUN)
    prompt["encode"]["inputs"]["trigger_word"] = ""
    assert_says(failure(server, prompt), "picture-01.png", "caption")


def test_missing_captions_are_not_replaced_by_the_trigger_unasked(server, folders):
    assert_says(failure(server, training_job("sd15", folder="without_captions", run_name=RUN)), "picture-01.png", "caption")


@pytest.mark.parametrize("family, vae_of", [("sd15", "flux"), ("flux", "wan21"), ("wan21", "sd15")])
def test_a_vae_of_another_model(server, folders, family, vae_of):
    assert_says(failure(server, training_job(family, vae_of=vae_of, folder="good", run_name=RUN)), "VAE", "Encode Dataset")


@pytest.mark.parametrize("family, clip_of", [("sd15", "wan21"), ("flux", "sd15"), ("sdxl", "sd15")])
def test_a_text_encoder_of_another_model(server, folders, family, clip_of):
    assert_says(failure(server, training_job(family, clip_of=clip_of, folder="good", run_name=RUN)), "CLIP", "Encode Dataset")


@pytest.mark.parametrize("name", ["../escape", "a/b", "", "dot."])
def test_a_run_name_that_is_no_folder_name(server, folders, name):
    prompt = training_job("sd15", folder="good", run_name=name)
    assert_says(failure(server, prompt), "run name")
    assert not (server.base / "output" / "escape").exists()


def test_a_second_run_of_one_name_with_other_settings(server, folders):
    first = training_job("wan21", folder="good", run_name="taken", num_steps=2, num_evaluations=1)
    server.run_ok(first, timeout_seconds=400)
    before = server.get("/pistachio/runs/taken")["metrics"]
    second = training_job("wan21", folder="good", run_name="taken", num_steps=2, num_evaluations=1, train={"seed": 7})
    assert_says(failure(server, second), "taken", "seed", "another run name")
    assert server.get("/pistachio/runs/taken")["metrics"] == before


def test_a_trigger_word_that_differs_between_the_nodes(server, folders):
    prompt = training_job("sd15", folder="good", run_name=RUN, train={"trigger_word": "other"})
    assert_says(failure(server, prompt), "other", "zwx", "same word")


def test_output_that_can_not_be_written(server, folders):
    """Permissions do not stop root, so a file stands where the run's folder would be."""
    blocked = server.base / "output" / "pistachio" / "blocked"
    blocked.parent.mkdir(parents=True, exist_ok=True)
    blocked.write_text("in the way")
    try:
        assert_says(failure(server, training_job("wan21", folder="good", run_name="blocked")), "blocked", "written")
    finally:
        blocked.unlink()


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() == 0, reason="nothing is read-only for root")
def test_a_read_only_output_folder(server, folders):
    runs = server.base / "output" / "pistachio"
    runs.mkdir(parents=True, exist_ok=True)
    runs.chmod(0o555)
    try:
        assert_says(failure(server, training_job("wan21", folder="good", run_name=RUN)), RUN, "written")
    finally:
        runs.chmod(0o755)


def test_a_base_whose_loss_is_not_finite(server, folders):
    models = server.base / "models" / "diffusion_models"
    weights = load_file(models / "tiny_wan21.safetensors")
    name = next(name for name in weights if name.endswith("head.head.weight"))
    weights[name][:] = float("nan")
    save_file(weights, models / "not_finite.safetensors")
    prompt = training_job("wan21", folder="good", run_name="not_finite")
    prompt["1"]["inputs"]["unet_name"] = "not_finite.safetensors"
    assert_says(failure(server, prompt), "finite")
