"""Encoded pictures on their way into training: read when needed, bounded in memory, with masks, versions and regularisation."""

from __future__ import annotations

import gc
import os
from dataclasses import replace

import psutil
import pytest
import torch
from support.encoded import encoded_set


@pytest.fixture(scope="module")
def sd15(tiny):
    return tiny("sd15")


@pytest.fixture
def model(sd15):
    from pistachio.bridge.model import HostModel

    with torch.inference_mode():
        return HostModel(sd15.model, precision="fp32")


@pytest.fixture
def encoded(sd15, tmp_path):
    return encoded_set(tmp_path / "cache", sd15)


def train(tiny, encoded, folder, *, log_row=lambda row: None, **options):
    from pistachio.bridge.training import train_lora
    from pistachio.training.config import LoggingConfig

    with torch.inference_mode():
        return train_lora(
            tiny.model, encoded, config(), run_name="anna", logging_config=LoggingConfig(), runs_folder=folder, log_row=log_row,
            check_interrupted=lambda: None, **options,
        )


def config(**changes):
    from pistachio.training.config import AdapterConfig, EvaluationConfig, OptimizerConfig, TrainConfig

    defaults = dict(
        num_steps=2, seed=5, adapter=AdapterConfig(rank=2, alpha=2), precision="fp32",
        optimizer=OptimizerConfig(learning_rate=1e-3, warmup_steps=0),
        evaluation=EvaluationConfig(num_evaluations=1, timesteps_per_image=4, early_stop=False),
    )
    return TrainConfig(**{**defaults, **changes})


def losses(model, encoded, *, steps=3, regularization=None):
    """(loss, prior loss, gradient norm) of the first steps."""
    from pistachio.bridge.items import load_items
    from pistachio.training.trainer import Trainer

    train_set, _ = load_items(encoded, model, regularization=regularization)
    with model.training():
        trainer = Trainer(model, train_set, config(num_steps=steps))
        with trainer.network:
            results = [trainer.advance() for _ in range(steps)]
    return [(None if result.loss != result.loss else result.loss, result.prior_loss, result.grad_norm) for result in results]


def regular_set(folder, tiny, **changes):
    """Ordinary pictures, encoded like the character's but by a set of their own."""
    made = encoded_set(folder, tiny, num_train=2, num_held_out=2, trigger="other")
    items = tuple(replace(item, content_hash=f"regular {i}", relative_path=f"regular {i}.png") for i, item in enumerate(made.items))
    return replace(made, items=items, trigger_word="", **changes)


# ---- reading -------------------------------------------------------------


def test_items_are_what_the_cache_holds(sd15, model, encoded):
    from pistachio.bridge.conditions import prepare
    from pistachio.bridge.items import load_items
    from pistachio.dataset.cache import load_condition, load_latent

    train_set, held_out = load_items(encoded, model)
    assert len(train_set) == 5 and len(held_out) == 4
    for item, source in zip([*train_set, *held_out], [*encoded.train, *encoded.held_out]):
        latents = model.base_model.process_latent_in(load_latent(source.latent_path).float())
        assert item.shape == tuple(latents.shape) and torch.equal(item.latents, latents) and not item.latents.is_inference()
        for mine, path in ((item.condition, source.caption_path), (item.prior_condition, source.prior_path)):
            expected = prepare(model.base_model, load_condition(path), latents)
            assert mine.group == expected.group and mine.arguments.keys() == expected.arguments.keys()
            assert all(torch.equal(mine.arguments[k].cond, v.cond) for k, v in expected.arguments.items() if torch.is_tensor(v.cond))
        assert item.content_hash == source.content_hash and item.mask is None and item.num_versions == item.repeats == 1


def large_set(encoded, folder, count):
    """`count` pictures of the files of the first: links, so that each is a file of its own."""
    first = encoded.items[0]
    folder.mkdir()
    items = []
    for i in range(count):
        latent = folder / f"{i}.safetensors"
        os.link(first.latent_path, latent)
        items.append(replace(first, content_hash=f"{i:06d}", relative_path=f"{i}.png", latent_path=latent, held_out=i % 5 == 0))
    return replace(encoded, items=tuple(items))


def test_ten_thousand_pictures_in_flat_memory(sd15, model, encoded, tmp_path):
    from pistachio.bridge.items import load_items
    from pistachio.dataset.cache import save_latent
    from pistachio.training.batches import BatchPlan

    save_latent(encoded.items[0].latent_path, torch.randn(1, 4, 64, 64))  # 64 KiB each: 640 MB for all
    large = large_set(encoded, tmp_path / "many", 10_000)
    gc.collect()
    process, limit = psutil.Process(), 4 << 20
    before, seconds = process.memory_info().rss, process.cpu_times().user
    train_set, held_out = load_items(large, model, store_bytes=limit)
    print(f"load_items of 10,000: {process.cpu_times().user - seconds:.1f} s")
    assert len(train_set) == 8000 and len(held_out) == 2000
    plan = BatchPlan(train_set, batch=4, seed=0, prior_fraction=0.5, distribution="uniform")
    seen = set()
    for step in range(1, 501):
        for sample in plan.samples(step):
            assert sample.item.latents.shape == sample.noise.shape and sample.group
            sample.condition
            seen.add(sample.item.content_hash)
    for item in held_out[:500]:
        item.latents, item.condition, item.group
    assert len(seen) > 1900, "2000 pictures were read, 128 MB of latents"
    assert train_set.items[0].reader.store.size_bytes <= limit
    grown = process.memory_info().rss - before
    print(f"10,000 pictures: {grown / 2**20:.0f} MB more")
    assert grown < 64 * 2**20


def test_a_small_set_is_read_once(model, encoded, monkeypatch):
    from pistachio.bridge import items

    train_set, _ = items.load_items(encoded, model)
    for item in train_set:
        item.latents, item.condition, item.prior_condition
    monkeypatch.setattr(items, "_present", lambda *args: pytest.fail("read again"))
    for item in train_set:
        item.latents, item.condition, item.prior_condition, item.group


def test_what_is_gone_or_damaged_is_named(model, encoded):
    from pistachio.bridge.items import load_items
    from pistachio.dataset.cache import save_latent
    from pistachio.training.errors import PistachioError

    train_set, _ = load_items(encoded, model)
    path = encoded.items[1].latent_path
    whole = path.read_bytes()
    path.write_bytes(whole[:-4])
    for read in (lambda: load_items(encoded, model), lambda: train_set[1].latents):
        with pytest.raises(PistachioError, match="'1.png' is gone from the cache"):
            read()
    save_latent(path, torch.full((1, 4, 8, 8), float("nan")))
    with pytest.raises(PistachioError, match="not finite for '1.png'"):
        train_set[1].latents
    save_latent(path, torch.zeros(1, 16, 8, 8))
    with pytest.raises(PistachioError, match="VAE doesn't belong to this model: it gave 16 channels"):
        load_items(encoded, model)
    path.write_bytes(whole)
    encoded.items[2].prior_path.unlink()
    with pytest.raises(PistachioError, match="'2.png' is gone from the cache"):
        load_items(encoded, model)


def test_a_network_that_takes_part_in_encoding_the_caption_is_asked_before_training(model, encoded, monkeypatch):
    """Read later, the adapter in training would be in the condition."""
    from pistachio.bridge import items

    monkeypatch.setattr(model.network, "preprocess_text_embeds", lambda *args: None, raising=False)
    train_set, held_out = items.load_items(encoded, model, store_bytes=1)
    monkeypatch.setattr(model.base_model, "extra_conds", lambda **kwargs: pytest.fail("asked while training"))
    for item in [*train_set, *held_out]:
        item.condition, item.prior_condition, item.group


# ---- versions, masks, regularisation -------------------------------------


def test_every_version_pairs_one_crop_with_one_caption(sd15, model, encoded, tmp_path):
    from pistachio.bridge.items import load_items
    from pistachio.dataset.cache import save_latent, save_mask
    from pistachio.dataset.types import EncodedCaption, EncodedLatent

    shape = sd15.latent_shape
    crops = []
    for i in range(2):
        crops.append(EncodedLatent(path=tmp_path / f"crop{i}", mask_path=tmp_path / f"mask{i}"))
        save_latent(crops[i].path, torch.full(shape, 10.0 + i))
        save_mask(crops[i].mask_path, torch.full((1, 1, *shape[-2:]), 0.25 * (i + 1)))
    other = encoded.items[1]
    caption = EncodedCaption(caption=other.caption, prior_caption=other.prior_caption, caption_path=other.caption_path, prior_path=other.prior_path)
    first = replace(encoded.items[0], more_latents=tuple(crops), more_captions=(caption,), repeats=3)
    train_set, _ = load_items(replace(encoded, items=(first, *encoded.items[1:])), model)
    item = train_set[0]
    assert item.num_versions == 6 and item.repeats == 3 and item.mask is None
    found = [(v.latents.mean().item(), None if v.mask is None else v.mask.mean().item(), v.condition is train_set[1].condition) for v in map(item.version, range(6))]
    scale = model.base_model.latent_format.scale_factor
    assert found[:2] == [(item.latents.mean().item(), None, False), (item.latents.mean().item(), None, True)]
    assert [(round(latent / scale, 3), mask, is_other) for latent, mask, is_other in found[2:]] == [(10, 0.25, False), (10, 0.25, True), (11, 0.5, False), (11, 0.5, True)]
    for version in map(item.version, range(6)):
        pair = version.condition, version.prior_condition
        assert pair == (train_set[1].condition, train_set[1].prior_condition) or pair == (item.condition, item.prior_condition)
    held = replace(first, held_out=True)
    _, held_out = load_items(replace(encoded, items=(held, *encoded.items[1:])), model)
    assert held_out[0].num_versions == 1, "a held-out picture is measured as it is"


def test_masks_and_dropout_reach_the_loss_and_off_is_as_before(sd15, model, encoded, tmp_path):
    from pistachio.dataset.cache import save_condition, save_mask

    plain = losses(model, encoded)
    items = []
    for item in encoded.items:
        mask = torch.zeros(1, 1, *sd15.latent_shape[-2:])
        mask[..., : mask.shape[-1] // 2] = 1
        save_mask(tmp_path / f"{item.content_hash}.mask", mask)
        items.append(replace(item, mask_path=tmp_path / f"{item.content_hash}.mask"))
    masked = losses(model, replace(encoded, items=tuple(items)))
    save_condition(tmp_path / "empty", sd15.condition(""))
    dropped = losses(model, replace(encoded, caption_dropout=1.0, empty_path=tmp_path / "empty"))
    assert losses(model, replace(encoded, empty_path=tmp_path / "empty")) == plain
    assert masked[0] != plain[0] and dropped[0] != plain[0]
    assert [loss is None for loss, _, _ in plain] == [False, True, False], "step 2 is a prior sample"
    assert all(loss is None for loss, _, _ in (masked[1], dropped[1])), "and stays one"


def test_regularisation_pictures_are_trained_and_never_held_out(sd15, model, encoded, tmp_path):
    from pistachio.bridge.items import Regularization, load_items

    regular = regular_set(tmp_path / "regular", sd15)
    given = Regularization(encoded=regular, share=0.5, weight=0.25)
    train_set, held_out = load_items(encoded, model, regularization=given)
    assert len(train_set.regularization) == 4 and len(held_out) == 4, "its held-out ones are trained too"
    assert all(item.loss_weight == 0.25 and item.condition is item.prior_condition for item in train_set.regularization)
    assert len(train_set) == 5 and all(item.loss_weight == 1 for item in train_set)
    plain, light, heavy = (losses(model, encoded, regularization=each) for each in (None, given, replace(given, weight=0.5)))
    assert light[0] == plain[0], "step 1 is the character's"
    assert abs(heavy[1][0] / light[1][0] - 2) < 1e-3, "step 2 is a regularisation step, its loss by its weight"


def test_regularisation_that_would_spoil_the_run_is_refused(sd15, model, encoded, tmp_path):
    from pistachio.bridge.items import Regularization, load_items
    from pistachio.training.errors import PistachioError

    regular = regular_set(tmp_path / "regular", sd15)
    shared = replace(regular, items=(*regular.items, replace(regular.items[0], content_hash=encoded.held_out[0].content_hash)))
    named = replace(regular, items=(*regular.items, replace(regular.items[0], content_hash="x", prior_caption="a photo of zwx")))
    for wrong, words in (
        (shared, "is also among the character's"), (named, "has the trigger word 'zwx'"), (replace(regular, clip_fingerprint="other"), "another VAE or CLIP"),
    ):
        with pytest.raises(PistachioError, match=words):
            load_items(encoded, model, regularization=Regularization(encoded=wrong))
    for changes, words in ((dict(share=1.0), "share is 1.0"), (dict(weight=0.0), "weight is 0.0")):
        with pytest.raises(PistachioError, match=words):
            Regularization(encoded=regular, **changes)


# ---- storage -------------------------------------------------------------


def test_lossless_latents_give_the_same_run_and_rounded_ones_nearly(model, encoded, tmp_path):
    """The measure of the storages: losses of a run from float32 files, from lossless ones and from rounded ones."""
    from pistachio.dataset.cache import load_latent, save_latent
    from safetensors.torch import save_file

    found = {}
    for storage in ("float32", "lossless", "bf16", "fp8"):
        items = []
        for item in encoded.items:
            path = tmp_path / f"{storage}-{item.relative_path}"
            latent = load_latent(item.latent_path).half().float()  # as a VAE in half precision gives it
            if storage == "float32":
                save_file({"latent": latent}, path, metadata={"format": "pistachio-latent-1"})
            else:
                save_latent(path, latent, storage)
            items.append(replace(item, latent_path=path))
        found[storage] = losses(model, replace(encoded, items=tuple(items)))
    assert found["lossless"] == found["float32"]
    for storage, limit in (("bf16", 2e-3), ("fp8", 2e-2)):
        difference = max(abs(a[0] / b[0] - 1) for a, b in zip(found[storage], found["float32"]) if b[0] is not None)
        print(f"{storage}: losses differ by up to {difference:.1e}")
        assert 0 < difference < limit


# ---- the device ----------------------------------------------------------


def test_text_encoders_and_vae_are_off_the_device_while_the_model_trains(sd15, encoded, tmp_path):
    import comfy.model_management
    from pistachio.bridge.items import Regularization
    from pistachio.training.errors import RunConflictError

    def loaded():
        return [each.model.model for each in comfy.model_management.current_loaded_models if each.model is not None]

    with torch.inference_mode():
        comfy.model_management.load_models_gpu([sd15.clip.patcher, sd15.vae.patcher])
    assert sd15.clip.patcher.model in loaded() and sd15.vae.patcher.model in loaded()
    seen = []
    given = Regularization(encoded=regular_set(tmp_path / "regular", sd15))
    train(sd15, encoded, tmp_path / "runs", log_row=lambda row: row["kind"] == "phase" or seen.append(loaded()), regularization=given)
    assert seen and all(len(each) == 1 and each[0] is sd15.model.model for each in seen)
    for changed in (replace(given, weight=0.5), None):
        with pytest.raises(RunConflictError, match="the pictures or captions"):
            train(sd15, encoded, tmp_path / "runs", regularization=changed)


def test_what_augmentation_adds_is_part_of_a_runs_identity(sd15, encoded, tmp_path):
    """And nothing of it is when it is off: a run of before goes on."""
    from pistachio.bridge.training import _pictures_hash
    from pistachio.dataset.types import EncodedCaption, EncodedLatent

    first, rest = encoded.items[0], encoded.items[1:]
    caption = EncodedCaption(caption="a", prior_caption="b", caption_path=first.caption_path, prior_path=first.prior_path)
    changes = [
        dict(repeats=2), dict(mask_path=tmp_path / "m"), dict(more_captions=(caption,)), dict(more_latents=(EncodedLatent(path=tmp_path / "l"),)),
        dict(more_sizes=(replace(first.sizes[0], width=32),)),
    ]
    hashes = [_pictures_hash(encoded), *(_pictures_hash(replace(encoded, items=(replace(first, **change), *rest))) for change in changes)]
    hashes += [_pictures_hash(replace(encoded, **change)) for change in (dict(caption_dropout=0.1), dict(latent_storage="fp8"))]
    assert len(set(hashes)) == len(hashes)
    assert _pictures_hash(replace(encoded, items=(replace(first, latent_shape=(1, 4, 8, 8)), *rest))) == hashes[0]


# ---- another family's VAE and text encoder --------------------------------


def test_t5_and_umt5_are_told_apart_and_every_familys_own_passes(tiny, host, repository, encoded):
    import nodes as host_nodes
    from pistachio.bridge.encode import text_encoder_names
    from pistachio.bridge.items import check_text_encoder
    from pistachio.training.errors import PistachioError

    families = {name: tiny(name) for name in ("sd15", "sdxl", "sd3", "flux", "wan21")}
    names = {name: text_encoder_names(each.clip) for name, each in families.items()}
    assert names == {
        "sd15": ("clip_l",), "sdxl": ("clip_g", "clip_l"), "sd3": ("clip_g", "clip_l", "t5xxl"), "flux": ("clip_l", "t5xxl"), "wan21": ("umt5xxl",),
    }
    for name, each in families.items():
        check_text_encoder(replace(encoded, text_encoders=names[name]), each.model.model.model_config)
        check_text_encoder(encoded, each.model.model.model_config)  # of a cache that does not say
    with torch.inference_mode():
        wrong = host_nodes.CLIPLoader().load_clip("tiny_t5xxl.safetensors", "mochi")[0]  # with "wan" the host itself refuses it
    with pytest.raises(PistachioError, match="encoded with t5xxl, and WAN21_T2V was made with UMT5-XXL"):
        check_text_encoder(replace(encoded, text_encoders=text_encoder_names(wrong)), families["wan21"].model.model.model_config)
    with pytest.raises(PistachioError, match="encoded with umt5xxl, and Flux was made with T5-XXL"):
        check_text_encoder(replace(encoded, text_encoders=names["wan21"]), families["flux"].model.model.model_config)


@pytest.mark.parametrize("size, is_noted", [(1.0, False), (0.75, False), (1.4, False), (4.2, True), (0.235, True)])
def test_latents_of_another_scale_are_noted(model, encoded, size, is_noted):
    """4.2: Flux's VAE on SD3.5, 0.235: the other way round. 0.75 and 1.4, SD1.5's and SDXL's exchanged, can't be told from plain pictures."""
    from pistachio.bridge.items import load_items, vae_notes
    from pistachio.dataset.cache import save_latent

    for item in encoded.items:
        save_latent(item.latent_path, size / model.base_model.latent_format.scale_factor * torch.randn(1, 4, 8, 8))
    notes = vae_notes(load_items(encoded, model)[0])
    assert bool(notes) == is_noted and (not notes or "times as large as this model's own" in notes[0])
