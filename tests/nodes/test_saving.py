"""What a block of Wan at its full width keeps at each level, counted on tensors without memory; and what gets no gradient."""

from contextlib import contextmanager

import pytest
import torch

TOKENS, TEXT, WIDTH, MLP, HEADS, RANK = 4096, 512, 5120, 13824, 40, 32
UNIT = TOKENS * WIDTH * 2  # bytes of a bf16 activation
META = torch.device("meta")


class Blocks:
    """Two of the host's own Wan blocks as the engine's model."""

    family, key_prefix, device = "wan", "diffusion_model.", META

    def __init__(self):
        import comfy.ops
        from comfy.ldm.wan.model import WanAttentionBlock

        settings = dict(operations=comfy.ops.disable_weight_init, device="meta", dtype=torch.bfloat16)
        self.network = torch.nn.Module()
        self.network.blocks = torch.nn.ModuleList(
            WanAttentionBlock("t2v_cross_attn", WIDTH, MLP, HEADS, cross_attn_norm=True, operation_settings=settings) for _ in range(2)
        )
        self.network.requires_grad_(False)

    def blocks(self):
        return list(self.network.blocks.named_children())

    def is_linear(self, module):
        return isinstance(module, torch.nn.Linear)

    def is_conv(self, module):
        return False

    @contextmanager
    def weight_for_backward(self, module, like):
        yield module.weight


def flash(original, q, k, v, heads, **kwargs):
    """As a card runs it: on `meta` PyTorch itself would write the scores out."""
    q, k, v = (t.view(t.shape[0], -1, heads, t.shape[-1] // heads).transpose(1, 2) for t in (q, k, v))
    return torch.ops.aten._scaled_dot_product_flash_attention(q, k, v)[0].transpose(1, 2).flatten(2)


@pytest.fixture(scope="module")
def kept_units(host):
    """(level, whether the modulation is trained) -> units that the second block adds to what is alive after a forward."""
    import comfy.model_management
    from pistachio.bridge.differentiable import attribute
    from pistachio.training.adapted import AdaptedNetwork
    from pistachio.training.config import AdapterConfig
    from pistachio.training.memory.counting import LiveStorage
    from pistachio.training.saving import KEEPS

    counted = {}
    with torch.inference_mode(False), torch.enable_grad(), pytest.MonkeyPatch.context() as patch:
        if hasattr(comfy.model_management, "in_training"):
            patch.setattr(comfy.model_management, "in_training", True)
        for keep, trains_modulation in [*((keep, False) for keep in KEEPS), ("everything", True)]:
            empty = lambda *shape, dtype=torch.bfloat16: torch.empty(shape, dtype=dtype, device=META)
            model = Blocks()
            x, modulation = empty(1, TOKENS, WIDTH).requires_grad_(), empty(1, 6, WIDTH).requires_grad_(trains_modulation)
            rest = (empty(1, TOKENS, 1, WIDTH // HEADS // 2, 2, 2, dtype=torch.float32), empty(1, TEXT, WIDTH))
            options = {"optimized_attention_override": flash}
            with LiveStorage(META) as live, AdaptedNetwork(model, AdapterConfig(rank=RANK), seed=0, keep=keep):
                y = model.network.blocks[0](x * 1, modulation, *rest, transformer_options=options)
                before = live.live_bytes
                z = model.network.blocks[1](y, modulation, *rest, transformer_options=options)
                counted[keep, trains_modulation] = (live.live_bytes - before) / UNIT
                del y, z
    return counted


def test_a_full_size_block_keeps_what_its_level_says(kept_units):
    assert kept_units["everything", False] <= 12
    assert kept_units["everything", True] <= 13  # the modulation's gradient reads the MLP's output
    assert kept_units["products", False] <= 10
    assert kept_units["attention", False] <= 3.1
    assert kept_units["blocks", False] <= 3
    order = [kept_units[keep, False] for keep in ("blocks", "attention", "products", "everything")]
    assert order == sorted(order) and len(set(order)) == 4


def test_what_is_not_adapted_gets_no_gradient(host, tiny):
    """Adapters in the second block's MLP alone: one product of the backward goes through a frozen weight, the MLP's second."""
    from pistachio.bridge.model import HostModel
    from support.prepared import Prepared

    prepared, asked = Prepared(tiny("wan21")), []
    names = {module: path for path, module in prepared.model.network.named_modules()}

    class Counting(HostModel):
        def weight_for_backward(self, module, like):
            asked.append(names[module])
            return super().weight_for_backward(module, like)

    prepared.model.__class__ = Counting
    for keep in ("everything", "attention", "blocks"):
        asked.clear()
        with prepared.model.training(), prepared.network(keep=keep, include=r"blocks\.1\.ffn") as network:
            assert sorted(network.adapters) == ["blocks.1.ffn.0", "blocks.1.ffn.2"]
            assert prepared.gradient(network).norm() > 0
        assert asked == ["head.head", "blocks.1.ffn.2"]
        # Text, sigma and modulation: with the attention of the second block adapted they are still fixed.
        asked.clear()
        with prepared.model.training(), prepared.network(keep=keep, targets="attention", include=r"blocks\.1\.") as network:
            prepared.gradient(network)
        through = {path.removeprefix("blocks.1.") for path in asked}
        assert through == {"head.head", "ffn.2", "ffn.0", "cross_attn.o", "cross_attn.q", "self_attn.o"}
