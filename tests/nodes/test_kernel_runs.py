"""Which kernels a run starts, by a step of the host's own full-size networks without numbers: few programs, and none left to torch."""

import sys
from collections import Counter

import pytest


@pytest.fixture(scope="module", autouse=True)
def benchmarks(repository, host):
    folder = str(repository / "benchmarks")
    sys.path.insert(0, folder)
    yield
    sys.path.remove(folder)


ROWS = {"norm": 1, "rope": 1, "gate": 1, "activation": 1, "columns": 1, "adamw": 1}
# A norm that writes codes is a program of its own; all other widths and directions share one.
IN_8_BITS = ROWS | {"norm": 2, "quantise": 1, "transpose": 1, "gemm": 1}


@pytest.mark.parametrize("format, sources", [("bf16", ROWS), ("int8-convrot", IN_8_BITS), ("fp8-row", IN_8_BITS)])
def test_a_run_of_wan_14b_compiles_each_source_once(format, sources):
    from kernel_runs import programs_of_run

    started, notes = programs_of_run("wan14b", format)
    assert notes == ()
    assert Counter(one.source for one in started) == sources
    entries = {entry for several in started.values() for entry in several}
    assert {"norm_modulate_backward", "rms_rope_backward", "gelu8_backward", "column_sums", "adamw8"} <= entries
    assert all(dict(one.constants)["VECTOR"] for one in started if one.source != "columns")


@pytest.mark.parametrize("network", ["flux", "sdxl"])
def test_no_row_of_a_published_network_is_left_to_torch(network):
    """A single block of Flux turns the gradients of 21504 columns at once into codes."""
    from kernel_runs import programs_of_run

    started, notes = programs_of_run(network, "int8-convrot")
    assert notes == () and {"quantise", "gemm", "activation"} <= {one.source for one in started}
