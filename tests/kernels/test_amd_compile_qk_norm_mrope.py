"""The attention prologue builds for AMD GPUs as meant: registers only, and loads as wide as a thread's elements.

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
# MI300 and MI350
ARCHITECTURES = {"gfx942": 64, "gfx950": 64}


@pytest.fixture(scope="module", params=ARCHITECTURES)
def builds(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    environment = os.environ | {
        "TRITON_INTERPRET": "0",
        "TRITON_CACHE_DIR": str(tmp_path_factory.mktemp("triton")),
        "PYTHONPATH": str(HERE.parents[1]),
    }
    program = str(HERE / "amd_compile_qk_norm_mrope.py")
    command = [sys.executable, program, request.param, str(ARCHITECTURES[request.param])]
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


def test_no_store_is_narrower_than_four_bytes(builds: list[dict[str, Any]]) -> None:
    narrow = [
        (build["geometry"], build["element"], op)
        for build in builds
        for op in build["memory_operations"]
        if "store" in op and ("byte" in op or "short" in op)
    ]
    assert not narrow
