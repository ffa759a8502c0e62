"""Objectives on the host's own models: their shifts, their noising, and the plot node."""

import math

import pytest
import torch
from support.tiny_networks import FAMILIES

SHIFTS = {"sd3": 3.0, "flux": math.exp(1.15), "wan21": 8.0}


def noise_of(loaded):
    from pistachio.bridge.noise import HostNoise

    return HostNoise(loaded.model, device=torch.device("cpu"))


@pytest.mark.parametrize("family", SHIFTS)
def test_the_hosts_shift_is_found_and_exchanged(tiny, family):
    from pistachio.training.config import ObjectiveConfig
    from pistachio.training.timesteps import distribution_for

    model = noise_of(tiny(family))
    assert distribution_for(ObjectiveConfig(), model).model_shift == pytest.approx(SHIFTS[family], rel=1e-4)
    u = torch.linspace(0.05, 0.95, 19)
    given = distribution_for(ObjectiveConfig(timestep_distribution="uniform", shift="given", shift_value=2.0), model)
    torch.testing.assert_close(model.sigma_at(given.sample(u)), 2 * u / (1 + u), rtol=1e-4, atol=1e-5)
    by_size = distribution_for(ObjectiveConfig(timestep_distribution="uniform", shift="resolution"), model)
    s = math.exp(1.15)  # 1024 pixels
    torch.testing.assert_close(
        model.sigma_at(by_size.sample(u, model.latent_shape(1024, 1024))), s * u / (1 + (s - 1) * u), rtol=1e-4, atol=1e-5
    )


@pytest.mark.parametrize("family", FAMILIES)
def test_the_hosts_denoising_is_affine_with_our_two_slopes(tiny, family):
    """x0_hat = c_skip x_t + c_out output, and the right output of x_t gives the picture back."""
    from pistachio.training.weighting import signal_to_noise

    model = noise_of(tiny(family))
    sigma_B = model.sigma_at(torch.tensor([0.2, 0.5, 0.9]))
    x_t, output = (torch.randn(3, 4, 5, 6, generator=torch.Generator().manual_seed(i)) for i in range(2))
    ours = model.skip_scale(sigma_B).view(-1, 1, 1, 1) * x_t + model.output_scale(sigma_B).view(-1, 1, 1, 1) * output
    torch.testing.assert_close(ours, model.model_sampling.calculate_denoised(sigma_B, output, x_t), rtol=1e-4, atol=1e-4)
    snr = ((1 - sigma_B) / sigma_B).square() if model.is_flow else sigma_B.pow(-2)
    torch.testing.assert_close(signal_to_noise(model, sigma_B), snr, rtol=1e-4, atol=1e-9)


@pytest.mark.parametrize("family", ["sd15", "flux"])
def test_the_node_draws_for_the_model_alone(tiny, family):
    from pistachio.nodes.settings.objective import ObjectiveSettings
    from pistachio.nodes.timesteps import TimestepPlot

    objective = ObjectiveSettings.execute(weighting="min-snr", min_timestep=0.2).args[0]
    with torch.inference_mode():
        plain, asked = (TimestepPlot.execute(tiny(family).model, each) for each in (None, objective))
    for output in (plain, asked):
        image = output.args[0]
        assert image.shape[0] == 1 and image.shape[2:] == (900, 3) and 0 <= image.min() and image.max() <= 1
        assert output.ui["images"] and "Half of the draws" in output.ui["text"][0]
    assert plain.args[0].shape != asked.args[0].shape or not torch.equal(plain.args[0], asked.args[0])


def test_a_setting_that_the_model_can_not_honour_is_refused(tiny):
    from pistachio.nodes.settings.objective import ObjectiveSettings
    from pistachio.nodes.timesteps import TimestepPlot
    from pistachio.training.errors import PistachioError

    for values in ({"weighting": "cosmap"}, {"shift": "resolution"}):
        with pytest.raises(PistachioError, match="is for flow models"):
            TimestepPlot.execute(tiny("sd15").model, ObjectiveSettings.execute(**values).args[0])
