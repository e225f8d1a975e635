"""The argmax kernels build for AMD GPUs as meant: registers only, and loads as wide as the hardware has.

No GPU is needed: Triton carries the AMD code generator.
"""

from __future__ import annotations

from collections.abc import Callable

import pytest

from tests.kernels.amd_builds import PROGRAMS, Build, spilling


@pytest.fixture(scope="module", params=PROGRAMS["argmax"][1])
def builds(request: pytest.FixtureRequest, amd_builds: Callable[[str, str], list[Build]]) -> list[Build]:
    return amd_builds("argmax", request.param)


def test_nothing_spills(builds: list[Build]) -> None:
    assert not spilling(builds)


def _wide_loads(build: Build) -> int:
    return sum(n for op, n in build["memory_operations"].items() if op.endswith(("_load_dwordx4", "_load_b128")))


def test_rows_are_read_16_bytes_at_a_time(builds: list[Build]) -> None:
    """The loop over whole blocks, of every alignment: there is no other load where rows are aligned."""
    for build in builds:
        if build["function"] == "_argmax_kernel":
            assert _wide_loads(build), build
            loads = sum(n for op, n in build["memory_operations"].items() if "_load_" in op)
            assert not build["aligned"] or loads == _wide_loads(build), build


def test_memory_is_addressed_as_global(builds: list[Build]) -> None:
    """An address that is computed as an integer is still known to be none of local memory."""
    assert not [build for build in builds if any(op.startswith("flat") for op in build["memory_operations"])]
