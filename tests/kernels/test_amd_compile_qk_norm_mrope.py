"""The attention prologue builds for AMD GPUs as meant: registers only, and loads as wide as a thread's elements.

No GPU is needed: Triton carries the AMD code generator.
"""

from __future__ import annotations

from collections.abc import Callable

import pytest

from tests.kernels.amd_builds import PROGRAMS, Build, spilling


@pytest.fixture(scope="module", params=PROGRAMS["qk_norm_mrope"][1])
def builds(request: pytest.FixtureRequest, amd_builds: Callable[[str, str], list[Build]]) -> list[Build]:
    return amd_builds("qk_norm_mrope", request.param)


def test_nothing_spills(builds: list[Build]) -> None:
    assert not spilling(builds)


def test_no_store_is_narrower_than_four_bytes(builds: list[Build]) -> None:
    narrow = [
        (build["label"], op)
        for build in builds
        for op in build["memory_operations"]
        if "store" in op and ("byte" in op or "short" in op)
    ]
    assert not narrow
