"""The argmax kernels build for AMD GPUs as meant: registers only, and loads as wide as the hardware has.

No GPU is needed: Triton carries the AMD code generator.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

HERE = Path(__file__).parent
# MI300, MI350 (64-wide waves) and a Radeon (32-wide)
ARCHITECTURES = {"gfx942": 64, "gfx950": 64, "gfx1100": 32}


@pytest.fixture(scope="module", params=ARCHITECTURES)
def builds(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    environment = os.environ | {
        "TRITON_INTERPRET": "0",
        "TRITON_CACHE_DIR": str(tmp_path_factory.mktemp("triton")),
        "PYTHONPATH": str(HERE.parents[1]),
    }
    command = [sys.executable, str(HERE / "amd_compile_argmax.py"), request.param, str(ARCHITECTURES[request.param])]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr
    result: list[dict[str, Any]] = json.loads(done.stdout)
    assert result
    return result


def test_nothing_spills(builds: list[dict[str, Any]]) -> None:
    spilling = [
        build
        for build in builds
        if build["vgpr_spills"] or build["sgpr_spills"] or any("scratch" in op for op in build["memory_operations"])
    ]
    assert not spilling


def _wide_loads(build: dict[str, Any]) -> int:
    return sum(n for op, n in build["memory_operations"].items() if op.endswith(("_load_dwordx4", "_load_b128")))


def test_rows_are_read_16_bytes_at_a_time(builds: list[dict[str, Any]]) -> None:
    """The loop over whole blocks, of every alignment: there is no other load where rows are aligned."""
    for build in builds:
        if build["variant"][0] == "_argmax_kernel":
            assert _wide_loads(build), build
            loads = sum(n for op, n in build["memory_operations"].items() if "_load_" in op)
            assert not build["aligned"] or loads == _wide_loads(build), build


def test_memory_is_addressed_as_global(builds: list[dict[str, Any]]) -> None:
    """An address that is computed as an integer is still known to be none of local memory."""
    assert not [build for build in builds if any(op.startswith("flat") for op in build["memory_operations"])]
