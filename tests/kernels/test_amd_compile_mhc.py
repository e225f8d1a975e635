"""The mHC kernels build for AMD GPUs as meant: registers only, whole vectors to and from memory, matrix instructions.

No GPU is needed: Triton carries the AMD code generator.
"""

from __future__ import annotations

from collections.abc import Callable

import pytest

from tests.kernels.amd_builds import PROGRAMS, Build, spilling


@pytest.fixture(scope="module", params=PROGRAMS["mhc"][1])
def builds(request: pytest.FixtureRequest, amd_builds: Callable[[str, str], list[Build]]) -> list[Build]:
    return amd_builds("mhc", request.param)


def test_nothing_spills(builds: list[Build]) -> None:
    assert not spilling(builds)


def test_no_access_is_narrower_than_four_bytes(builds: list[Build]) -> None:
    narrow = [
        (build["label"], op)
        for build in builds
        for op in build["memory_operations"]
        if any(word in op for word in ("byte", "short"))
    ]
    assert not narrow


def test_streams_and_matrix_move_sixteen_bytes_at_a_time(builds: list[Build]) -> None:
    """The first kernel: five loads of 16-bit elements and 12 of `fn`; four streams and the mixes to store.

    Its sums of squares are stored by themselves: one element a token.
    """
    for build in builds:
        operations = build["memory_operations"]
        if build["function"] == "post":
            assert operations["global_load_dwordx4"] >= 17
            stores = {op: n for op, n in operations.items() if "store" in op}
            assert stores == {
                "global_store_dwordx4": 5,
                "global_store_dword": 1,
            }
        else:
            assert operations["global_store_dwordx4"] >= 1
