"""A kernel that fails while a real engine of 0.5.9 generates."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from overlay import status
from tests.engine.conftest import COUNT
from tests.engine.failing_kernel import SERVED
from tests.releases import environment

SCRIPT = Path(__file__).with_name("failing_kernel.py")
REASON = "its kernel failed, upstream's path serves: RuntimeError: no such instruction"


def run(checkpoint: Path, run_dir: Path, *options: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "overlay", "--simulate", "gfx942", *options, str(SCRIPT), str(checkpoint), str(COUNT)],
        env={**environment("0.5.9"), "AMD_SGLANG_RUN_DIR": str(run_dir)},
        capture_output=True,
        text=True,
        timeout=300,
    )


def norm_of_scheduler(run_dir: Path) -> dict[str, Any]:
    rows: list[Any] = [row for row in status.read_runs(run_dir) if row["role"] == "scheduler"]
    (patch,) = (patch for row in rows for patch in row["patches"] if patch["id"] == "gemma-rmsnorm")
    assert isinstance(patch, dict)
    return patch


@pytest.mark.engine
def test_upstreams_path_goes_on_and_a_strict_engine_ends(
    checkpoint: Path, transformers_tokens: list[list[int]], tmp_path: Path
) -> None:
    lenient, strict = tmp_path / "lenient", tmp_path / "strict"
    with ThreadPoolExecutor(2) as pool:
        going_on, ending = pool.submit(run, checkpoint, lenient), pool.submit(run, checkpoint, strict, "--strict")
    done = going_on.result()
    assert done.returncode == 0, done.stderr[-4000:]
    (tokens,) = (json.loads(line[7:]) for line in done.stdout.splitlines() if line.startswith("TOKENS "))
    assert tokens == transformers_tokens
    assert done.stderr.count(f"gemma-rmsnorm is failed: {REASON}") == 1

    ended = ending.result()
    assert ended.returncode != 0 and "TOKENS" not in ended.stdout
    assert "gemma-rmsnorm is failed and --strict forbids to serve without it" in ended.stderr
    assert not any(os.path.exists(f"/proc/{row['pid']}") for row in status.read_runs(strict))
    for run_dir in (lenient, strict):
        norm = norm_of_scheduler(run_dir)
        assert norm["state"] == "failed" and norm["reason"].startswith(REASON)
        assert norm["counters"] == {"calls": SERVED, "fallbacks": 0, "failures": 1, "shadowed": 0}
