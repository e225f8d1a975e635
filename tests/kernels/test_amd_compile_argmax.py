"""The argmax kernels build for AMD GPUs as meant: registers only, and loads as wide as the hardware has.

No GPU is needed: Triton carries the AMD code generator.
"""

from __future__ import annotations

import pytest

from tests.kernels.amd_builds import ARCHITECTURES, Build, builds_of, spilling


@pytest.fixture(scope="module", params=ARCHITECTURES)
def builds(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> list[Build]:
    return builds_of("amd_compile_argmax.py", request.param, tmp_path_factory.mktemp("triton"))


def test_nothing_spills(builds: list[Build]) -> None:
    assert not spilling(builds)


def _wide_loads(build: Build) -> int:
    return sum(n for op, n in build["memory_operations"].items() if op.endswith(("_load_dwordx4", "_load_b128")))


def test_rows_are_read_16_bytes_at_a_time(builds: list[Build]) -> None:
    """The loop over whole blocks, of every alignment: there is no other load where rows are aligned."""
    for build in builds:
        if build["variant"][0] == "_argmax_kernel":
            assert _wide_loads(build), build
            loads = sum(n for op, n in build["memory_operations"].items() if "_load_" in op)
            assert not build["aligned"] or loads == _wide_loads(build), build


def test_memory_is_addressed_as_global(builds: list[Build]) -> None:
    """An address that is computed as an integer is still known to be none of local memory."""
    assert not [build for build in builds if any(op.startswith("flat") for op in build["memory_operations"])]
