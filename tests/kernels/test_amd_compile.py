"""The Gemma RMSNorm kernel builds for AMD GPUs as meant: registers only, and loads as wide as the hardware has.

No GPU is needed: Triton carries the AMD code generator.
"""

from __future__ import annotations

from collections.abc import Callable

import pytest

from tests.kernels.amd_builds import PROGRAMS, Build, spilling


@pytest.fixture(scope="module", params=PROGRAMS["gemma_rmsnorm"][1])
def builds(request: pytest.FixtureRequest, amd_builds: Callable[[str, str], list[Build]]) -> list[Build]:
    return amd_builds("gemma_rmsnorm", request.param)


def test_nothing_spills(builds: list[Build]) -> None:
    assert not spilling(builds)


def test_every_access_is_16_bytes_wide(builds: list[Build]) -> None:
    """Of aligned rows. A float32 sum of 16-bit inputs is stored from twice as many registers, 16 bytes each too."""
    narrow = [
        (build["label"], op)
        for build in builds
        for op in build["memory_operations"]
        if not op.endswith(("_dwordx4", "_b128"))
    ]
    assert not narrow
