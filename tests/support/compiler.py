"""Whether this torch brings NVRTC, without which no kernel can be compiled."""

import pytest
from pistachio.training.kernels import nvrtc


def has_compiler() -> bool:
    try:
        return bool(nvrtc.library())
    except nvrtc.CompilerMissing:
        return False


needs_compiler = pytest.mark.skipif(not has_compiler(), reason="this torch ships no NVRTC")
