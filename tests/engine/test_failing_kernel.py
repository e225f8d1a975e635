"""A kernel that fails while a real engine of 0.5.9 generates."""

from __future__ import annotations

import json
import subprocess
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from overlay import status
from tests.engine.conftest import COUNT
from tests.engine.failing_kernel import SERVED
from tests.engine.runs import gone, schedulers
from tests.releases import run_simulated

SCRIPT = Path(__file__).with_name("failing_kernel.py")
REASON = "its kernel failed, upstream's path serves: RuntimeError: no such instruction"


def run(checkpoint: Path, run_dir: Path, replicas: int, *options: str) -> subprocess.CompletedProcess[str]:
    script = (str(SCRIPT), str(checkpoint), str(COUNT), json.dumps({"dp_size": replicas}))
    return run_simulated("0.5.9", *options, *script, AMD_SGLANG_RUN_DIR=str(run_dir))


def failed_norms(run_dir: Path) -> list[dict[str, Any]]:
    norms = [patch for row in schedulers(run_dir) for patch in row["patches"] if patch["id"] == "gemma-rmsnorm"]
    return [norm for norm in norms if norm["state"] == "failed"]


@pytest.mark.engine
def test_upstreams_path_goes_on_and_a_strict_engine_ends(
    checkpoint: Path, transformers_tokens: list[list[int]], tmp_path: Path
) -> None:
    """The strict one has two replicas, below a controller that nobody looks after on 0.5.9."""
    lenient, strict = tmp_path / "lenient", tmp_path / "strict"
    with ThreadPoolExecutor(2) as pool:
        going_on, ending = pool.submit(run, checkpoint, lenient, 1), pool.submit(run, checkpoint, strict, 2, "--strict")
    done = going_on.result()
    assert done.returncode == 0, done.stderr[-4000:]
    (tokens,) = (json.loads(line[7:]) for line in done.stdout.splitlines() if line.startswith("TOKENS "))
    assert tokens == transformers_tokens
    assert done.stderr.count(f"gemma-rmsnorm is failed: {REASON}") == 1

    ended = ending.result()
    assert ended.returncode != 0 and "TOKENS" not in ended.stdout
    assert "gemma-rmsnorm is failed and --strict forbids to serve without it" in ended.stderr
    assert gone(lambda: [row for row in status.read_runs(strict) if row["alive"]])
    for run_dir in (lenient, strict):
        norms = failed_norms(run_dir)
        assert norms, "the first of two replicas ends the other"
        for norm in norms:
            assert norm["reason"].startswith(REASON)
            assert norm["counters"] == {"calls": SERVED, "fallbacks": 0, "failures": 1, "shadowed": 0}
