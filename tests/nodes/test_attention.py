"""The host's attention calls, answered by a backend that a table names: every form of the signature gives what the host gives."""

import pytest
import torch

FORMS = [
    {}, {"mask": "bool2"}, {"mask": "float3"}, {"mask": "float4"}, {"skip_reshape": True}, {"skip_output_reshape": True},
    {"skip_reshape": True, "skip_output_reshape": True, "mask": "bool2"}, {"attn_precision": torch.float32},
]
B, H, T, S, D = 2, 4, 6, 5, 8


def inputs(form):
    generator = torch.Generator().manual_seed(0)
    q, k, v = (torch.randn(B, count, H * D, generator=generator) for count in (T, S, S))
    if form.get("skip_reshape"):
        q, k, v = (t.view(B, -1, H, D).transpose(1, 2) for t in (q, k, v))
    visible = torch.rand(T, S, generator=generator) < 0.7
    visible[:, 0] = True
    hidden = torch.where(visible, 0.0, -1e4)
    masks = {"bool2": visible, "float3": hidden.expand(B, T, S), "float4": hidden.expand(B, H, T, S)}
    options = {**form, "mask": masks[form["mask"]]} if "mask" in form else dict(form)
    return [t.requires_grad_(True) for t in (q, k, v)], options


def called(override, q, k, v, options):
    """Through the host's own wrapper, as its networks call it."""
    import comfy.ldm.modules.attention as host_attention

    out = host_attention.attention_basic(q, k, v, H, transformer_options={"optimized_attention_override": override}, **options)
    return [out, *torch.autograd.grad(out.square().sum(), (q, k, v))]


@pytest.mark.parametrize("form", FORMS, ids=lambda form: ",".join(form) or "plain")
def test_every_form_of_the_signature(host, form):
    from pistachio.bridge.attention import attention_by, pytorch_attention
    from pistachio.training.attention import AttentionTable, Dispatcher, Shape

    with torch.inference_mode(False), torch.enable_grad():
        tensors, options = inputs(form)
        expected = called(pytorch_attention, *tensors, options)
        dtype = str(options["mask"].dtype).removeprefix("torch.") if "mask" in options else ""
        shape = Shape(batch=B, heads=H, key_heads=H, queries=T, keys=S, width=D, dtype="float32", mask=dtype)
        dispatcher = Dispatcher(AttentionTable(device="cpu", rows=((shape, "math"),), note=""))
        found = called(attention_by(dispatcher), *tensors, options)
    assert [backend.name for backend in dispatcher._known.values()] == ["math"]
    for a, b in zip(found, expected):
        assert a.shape == b.shape
        assert torch.allclose(a, b, rtol=1e-4, atol=1e-5)


def test_grouped_queries_and_a_scale_as_newer_hosts_give_them(host):
    """Written out as a reference: 0.3.75's own function knows neither."""
    from pistachio.bridge.attention import attention_by
    from pistachio.training.attention import AttentionTable, Dispatcher, Shape
    from pistachio.training.attention.race import written_out

    shape = Shape(batch=B, heads=H, key_heads=2, queries=T, keys=S, width=D, dtype="float32")
    override = attention_by(Dispatcher(AttentionTable(device="cpu", rows=((shape, "math"),), note="")))
    q, k, v = (torch.randn(B, count, heads * D, generator=torch.Generator().manual_seed(count)) for count, heads in ((T, H), (S, 2), (S, 2)))
    out = override(None, q, k, v, H, enable_gqa=True, scale=0.5, skip_output_reshape=True)
    split = [t.view(B, -1, heads, D).transpose(1, 2) for t, heads in ((q, H), (k, 2), (v, 2))]
    assert torch.allclose(out, written_out(split[0] * 0.5 * D**0.5, split[1], split[2], None), rtol=1e-4, atol=1e-5)


def test_a_models_shapes_are_observed_and_a_table_changes_nothing_but_the_path(host, tiny, tmp_path):
    from pistachio.bridge.attention import observed, pytorch_attention, settle_attention, use_table
    from pistachio.training.attention import AttentionTable
    from pistachio.training.run import RunFolder
    from support.prepared import Prepared, relative

    prepared = Prepared(tiny("wan21"))
    model, folder = prepared.model, RunFolder(tmp_path / "run")
    folder.path.mkdir()
    with model.training(), observed(model) as shapes:
        prepared.errors((0,))
    assert model.attention is pytorch_attention
    assert {shape.keys for shape in shapes} == {16, 64} and {shape.batch for shape in shapes} == {1}
    assert settle_attention(model, shapes, folder, batch_size=1) is None and folder.attention() is None  # a CPU has one path
    plain = prepared.plain_gradient
    table = AttentionTable(device="cpu", rows=tuple((shape, "math") for shape in set(shapes)), note="Attention: math.")
    assert use_table(model, table, folder) == "Attention: math." and AttentionTable.from_json(folder.attention()) == table
    with model.training(), prepared.network() as network:
        found = prepared.gradient(network)
    assert relative(found, plain) < 1e-4
    assert not torch.equal(found, plain)  # it did take the other path
