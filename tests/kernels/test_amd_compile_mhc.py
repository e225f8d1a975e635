"""The mHC kernels build for AMD GPUs as meant: registers only, whole vectors to and from memory, matrix instructions.

No GPU is needed: Triton carries the AMD code generator.
"""

from __future__ import annotations

import pytest

from tests.kernels.amd_builds import Build, builds_of, spilling


@pytest.fixture(scope="module", params=("gfx942", "gfx950"))
def builds(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> list[Build]:
    return builds_of("amd_compile_mhc.py", request.param, tmp_path_factory.mktemp("triton"))


def test_nothing_spills(builds: list[Build]) -> None:
    assert not spilling(builds)


def test_no_access_is_narrower_than_four_bytes(builds: list[Build]) -> None:
    narrow = [
        (build["kernel"], build["hidden"], build["element"], op)
        for build in builds
        for op in build["memory_operations"]
        if any(word in op for word in ("byte", "short"))
    ]
    assert not narrow


def test_streams_and_matrix_move_sixteen_bytes_at_a_time(builds: list[Build]) -> None:
    """The first kernel: five loads of 16-bit elements and 12 of `fn`; four streams and the partial sums to store."""
    for build in builds:
        operations = build["memory_operations"]
        if build["kernel"] == "post":
            assert operations["global_load_dwordx4"] >= 17
            assert {op: n for op, n in operations.items() if "store" in op} == {"global_store_dwordx4": 5}
        else:
            assert operations["global_store_dwordx4"] >= 1
