"""A host's own blocks through PyTorch's compiler: the gradients of plain training. (AOT autograd without kernels: a C++ compiler may be missing.)"""

import torch
from support.prepared import Prepared, relative, snapshot, unchanged


def test_compiled_blocks_give_the_plain_gradients(host, tiny):
    from pistachio.training.compiled import CompiledBlocks

    prepared = Prepared(tiny("wan21"))
    before = snapshot(prepared.tiny.model.model.diffusion_model)
    torch._dynamo.reset()
    told = []
    with prepared.model.training():
        network = prepared.network(keep="blocks")
        network.compiled = CompiledBlocks(prepared.model, backend="aot_eager", tell=told.append)
        with network:
            found = prepared.gradient(network, [0])
    with prepared.model.training(), prepared.network() as network:
        expected = prepared.gradient(network, [0])
    assert relative(found, expected) < 1e-5 and told == []
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] >= 4
    assert unchanged(prepared.tiny.model.model.diffusion_model, before)
