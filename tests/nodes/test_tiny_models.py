"""The stage of every other test here: tiny models load by the stock loaders, encode and predict."""

import pytest
import torch

from support.tiny_networks import FAMILIES

CAPTIONS = ("a portrait of a woman with red hair", "a portrait of a man with a hat")


@pytest.mark.parametrize("family", FAMILIES)
def test_stock_loaders_take_the_family(tiny, family):
    import comfy.supported_models

    loaded = tiny(family)
    expected = getattr(comfy.supported_models, FAMILIES[family].config_class)
    assert type(loaded.model.model.model_config) is expected
    weights = dict(loaded.model.model.diffusion_model.named_parameters())
    with torch.inference_mode():
        assert all(torch.isfinite(weight).all() and weight.any() for weight in weights.values())


@pytest.mark.parametrize("family", FAMILIES)
def test_captions_and_pictures_are_told_apart(tiny, family):
    loaded = tiny(family)
    first, second = (loaded.condition(caption)[0][0] for caption in CAPTIONS)
    assert torch.isfinite(first).all() and first.shape == second.shape
    assert (first - second).abs().max() > 0.01
    with torch.inference_mode():
        pictures = torch.rand(2, 1, 64, 64, 3, generator=torch.Generator().manual_seed(0))
        latents = [loaded.vae.encode(picture) for picture in pictures]
    assert tuple(latents[0].shape) == loaded.latent_shape
    assert torch.isfinite(latents[0]).all()
    assert (latents[0] - latents[1]).abs().max() > 1e-3


@pytest.mark.parametrize("family", FAMILIES)
def test_the_stock_sampler_follows_the_caption(tiny, family):
    import nodes

    loaded = tiny(family)
    with torch.inference_mode():
        latent = {"samples": torch.zeros(loaded.latent_shape)}
        results = [
            nodes.common_ksampler(loaded.model, 0, 2, 1.0, "euler", "simple", loaded.condition(caption), loaded.condition(""), latent)
            for caption in CAPTIONS
        ]
    first, second = (result[0]["samples"] for result in results)
    assert torch.isfinite(first).all()
    assert (first - second).abs().max() > 1e-4
