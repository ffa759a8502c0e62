"""PEFT opens a checkpoint's folder and computes the same forward."""

import json

import pytest
import torch
from pistachio.training.adapted import AdaptedNetwork
from pistachio.training.config import AdapterConfig
from safetensors.torch import save_file
from support.flow import Flow


class Holder(torch.nn.Module):
    """As ComfyUI's model objects hold the network."""

    def __init__(self, network):
        super().__init__()
        self.diffusion_model = network


@pytest.mark.parametrize("settings", [
    dict(kind="lora"), dict(kind="lora", rank_stabilised=True, alpha=5), dict(kind="lora", rank=12, rank_stabilised=True, targets="all-linear"),
    dict(kind="lora", conv_rank=5, conv_alpha=2, rank_pattern="0.up=7"), dict(kind="lora", include="up"),
    dict(kind="dora"), dict(kind="dora", rank_stabilised=True, rank_pattern="leave=2"),
    dict(kind="lokr", rank=1), dict(kind="lokr", rank=64, alpha=3), dict(kind="lokr", rank=1, lokr_factor=2, rank_stabilised=True),
    dict(kind="loha"), dict(kind="loha", rank_stabilised=True, conv_rank=2),
], ids=str)
def test_peft_opens_the_checkpoint_and_gets_the_same_forward(settings, tmp_path):
    from peft import PeftConfig, inject_adapter_in_model
    from peft.utils.save_and_load import load_peft_weights, set_peft_model_state_dict

    config = AdapterConfig(**{"rank": 4, "alpha": 2, "targets": "all-linear+conv", **settings})
    model = Flow()
    adapted = AdaptedNetwork(model, config, seed=0)
    with torch.no_grad():
        adapted.parameters.add_(0.2 * torch.randn(adapted.parameters.shape, generator=torch.Generator().manual_seed(1)))
    x = torch.randn(2, 5, 6, 6, generator=torch.Generator().manual_seed(2))
    with adapted, torch.no_grad():
        expected = model.network(x)
        with adapted.disabled():
            base = model.network(x)
    save_file(adapted.state_dict(), tmp_path / "adapter_model.safetensors")
    (tmp_path / "adapter_config.json").write_text(json.dumps(adapted.peft_config("base")))

    holder = Holder(Flow().network)
    opened = PeftConfig.from_pretrained(tmp_path)
    assert opened.peft_type == {"lora": "LORA", "dora": "LORA", "lokr": "LOKR", "loha": "LOHA"}[config.kind]
    inject_adapter_in_model(opened, holder)
    weights = load_peft_weights(str(tmp_path))
    result = set_peft_model_state_dict(holder, weights)
    assert all(key.endswith(("alpha", "dora_scale")) for key in result.unexpected_keys)
    assert not [key for key in result.missing_keys if "lora_" in key or "lokr_" in key or "hada_" in key]
    with torch.no_grad():
        found = holder.diffusion_model(x)
    assert (expected - base).norm() > 1e-2 * base.norm()
    assert torch.allclose(found, expected, rtol=1e-4, atol=1e-5)


def test_a_layer_whose_path_ends_another_is_told_apart():
    from pistachio.training.adapters.peft import peft_config

    model = Flow()
    config = AdapterConfig(rank=4, include=r"^blocks\.0\.up$")
    (adapter,) = AdaptedNetwork(model, config, seed=0).adapters.values()
    made = peft_config(config, {"up": adapter}, "base", layers=["up", "blocks.0.up"], prefix="diffusion_model.")
    assert made["target_modules"] == ["diffusion_model.up"]
