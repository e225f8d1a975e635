"""Runs one of the `amd_compile*.py` programs for an architecture, in a process with Triton's compiler active."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
#: MI300 and MI350, whose waves are 64 wide, and a Radeon's of 32.
ARCHITECTURES = {"gfx942": 64, "gfx950": 64, "gfx1100": 32}

Build = dict[str, Any]


def builds_of(program: str, arch: str, cache: Path) -> list[Build]:
    """One object per variant, as the program prints them; `cache` keeps Triton's cache of other runs out."""
    environment = os.environ | {
        "TRITON_INTERPRET": "0",
        "TRITON_CACHE_DIR": str(cache),
        "PYTHONPATH": str(HERE.parents[1]),
    }
    command = [sys.executable, str(HERE / program), arch, str(ARCHITECTURES[arch])]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr
    result: list[Build] = json.loads(done.stdout)
    assert result
    return result


def spilling(builds: list[Build]) -> list[Build]:
    """The builds that keep anything in memory that belongs in registers."""
    return [
        build
        for build in builds
        if build["vgpr_spills"] or build["sgpr_spills"] or any("scratch" in op for op in build["memory_operations"])
    ]
