"""Peak memory of a call, counted at PyTorch's CPU allocator.

Every tensor's memory, autograd's saved ones and most operations' scratch included, comes from that allocator, which
reports each allocation and release to the profiler. Blocks that were there before the call don't count, nor does their
release. Resident memory would add what malloc keeps for later, which depends on what ran before.
"""

from __future__ import annotations

import warnings


def peak_bytes(call) -> int:
    """Largest sum of what was allocated and not yet released since `call` began."""
    from torch.profiler import ProfilerActivity, profile

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
            call()
    changes = sorted(
        (event.start_ns(), event.nbytes()) for event in profiler.profiler.kineto_results.events() if event.name() == "[memory]"
    )
    if not changes:
        raise RuntimeError("The profiler reported no allocation: this build of PyTorch can't count memory on the CPU.")
    total = peak = 0
    for _, size_bytes in changes:
        total += size_bytes
        peak = max(peak, total)
    return peak
