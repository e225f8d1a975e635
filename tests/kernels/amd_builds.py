"""Runs one of the `amd_compile*.py` programs for an architecture, in a process with Triton's compiler active."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

from tests.kernels.amd_hardware import HARDWARE

HERE = Path(__file__).parent

Build = dict[str, Any]

_INSTINCT, _ALL = ("gfx942", "gfx950"), tuple(HARDWARE)
#: The program of each kernel and the architectures it is built for: MI300, MI350 and, for what any model runs, Radeons.
PROGRAMS = {
    "gemma_rmsnorm": ("amd_compile.py", _ALL),
    "argmax": ("amd_compile_argmax.py", _ALL),
    "qk_norm_mrope": ("amd_compile_qk_norm_mrope.py", _INSTINCT),
    "mhc": ("amd_compile_mhc.py", _INSTINCT),
    "sparse_mla": ("amd_compile_sparse_mla.py", _INSTINCT),
}


def builds_of(kernel: str, arch: str, cache: Path) -> list[Build]:
    """One object per variant, as the kernel's program prints them."""
    result: list[Build] = output_of(PROGRAMS[kernel][0], arch, cache)
    assert result
    return result


def output_of(program: str, arch: str, cache: Path) -> Any:
    """What a program of this folder prints as JSON; `cache` keeps Triton's cache of other runs out."""
    environment = os.environ | {
        "TRITON_INTERPRET": "0",
        "TRITON_CACHE_DIR": str(cache),
        "PYTHONPATH": str(HERE.parents[1]),
    }
    command = [sys.executable, str(HERE / program), arch, str(HARDWARE[arch].wave)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def spilling(builds: list[Build]) -> list[Build]:
    """The builds that keep anything in memory that belongs in registers."""
    return [
        build
        for build in builds
        if build["vgpr_spills"] or build["sgpr_spills"] or any("scratch" in op for op in build["memory_operations"])
    ]
