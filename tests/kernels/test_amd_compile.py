"""The Gemma RMSNorm kernel builds for AMD GPUs as meant: registers only, and loads as wide as the hardware has.

No GPU is needed: Triton carries the AMD code generator.
"""

from __future__ import annotations

import pytest

from tests.kernels.amd_builds import ARCHITECTURES, Build, builds_of, spilling


@pytest.fixture(scope="module", params=ARCHITECTURES)
def builds(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> list[Build]:
    return builds_of("amd_compile.py", request.param, tmp_path_factory.mktemp("triton"))


def test_nothing_spills(builds: list[Build]) -> None:
    assert not spilling(builds)


def test_every_access_is_16_bytes_wide(builds: list[Build]) -> None:
    """Of aligned rows. A float32 sum of 16-bit inputs is stored from twice as many registers, 16 bytes each too."""
    narrow = [
        (build["variant"], build["config"], op)
        for build in builds
        for op in build["memory_operations"]
        if not op.endswith(("_dwordx4", "_b128"))
    ]
    assert not narrow
