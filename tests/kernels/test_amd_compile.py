"""The Gemma RMSNorm kernel builds for AMD GPUs as meant: registers only, and loads as wide as the hardware has.

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
    command = [sys.executable, str(HERE / "amd_compile.py"), request.param, str(ARCHITECTURES[request.param])]
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


def test_every_access_is_16_bytes_wide(builds: list[dict[str, Any]]) -> None:
    """Of aligned rows. A float32 sum of 16-bit inputs is stored from twice as many registers, 16 bytes each too."""
    narrow = [
        (build["variant"], build["config"], op)
        for build in builds
        for op in build["memory_operations"]
        if not op.endswith(("_dwordx4", "_b128"))
    ]
    assert not narrow
