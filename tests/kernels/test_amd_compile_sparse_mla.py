"""The sparse attention of a decode builds for AMD GPUs as meant: registers only, 64-bit addresses into the pages.

No GPU is needed: Triton carries the AMD code generator.
"""

from __future__ import annotations

from collections.abc import Callable

import pytest

from tests.kernels.amd_builds import PROGRAMS, Build, spilling


@pytest.fixture(scope="module", params=PROGRAMS["sparse_mla"][1])
def builds(request: pytest.FixtureRequest, amd_builds: Callable[[str, str], list[Build]]) -> list[Build]:
    return amd_builds("sparse_mla", request.param)


def test_nothing_spills(builds: list[Build]) -> None:
    assert not spilling(builds)


def test_pages_are_not_read_through_a_buffer_of_four_gigabytes(builds: list[Build]) -> None:
    """Buffer instructions take 32-bit offsets: whole vectors, which only pages and queries are read in, take none."""
    for build in builds:
        wide = [op for op in build["memory_operations"] if "x4" in op]
        assert wide and not [op for op in wide if op.startswith("buffer_load")]
