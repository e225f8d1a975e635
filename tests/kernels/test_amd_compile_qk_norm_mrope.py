"""The attention prologue builds for AMD GPUs as meant: registers only, and loads as wide as a thread's elements.

No GPU is needed: Triton carries the AMD code generator.
"""

from __future__ import annotations

import pytest

from tests.kernels.amd_builds import Build, builds_of, spilling


@pytest.fixture(scope="module", params=("gfx942", "gfx950"))
def builds(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> list[Build]:
    return builds_of("amd_compile_qk_norm_mrope.py", request.param, tmp_path_factory.mktemp("triton"))


def test_nothing_spills(builds: list[Build]) -> None:
    assert not spilling(builds)


def test_no_store_is_narrower_than_four_bytes(builds: list[Build]) -> None:
    narrow = [
        (build["geometry"], build["element"], op)
        for build in builds
        for op in build["memory_operations"]
        if "store" in op and ("byte" in op or "short" in op)
    ]
    assert not narrow
