"""One run of a real engine in the simulated ROCm: its tokens, and what its scheduler says ran."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Sized
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from overlay import status
from tests.releases import run_simulated

SCRIPT = Path(__file__).with_name("generate.py")


@dataclass(frozen=True)
class Run:
    tokens: list[list[int]]
    states: dict[str, str]
    calls: dict[str, int]


def generate(release: str, checkpoint: Path, run_dir: Path, count: int, *options: str, **environ: str) -> Run:
    """`count` greedy tokens after each prompt; `options` are those of the launcher. A multimodal model is served as the
    text model in it: the environment has no video decoder, without which sglang registers no picture processor."""
    arguments = (str(checkpoint), str(count), json.dumps({"enable_multimodal": False}))
    done = run_simulated(release, *options, str(SCRIPT), *arguments, AMD_SGLANG_RUN_DIR=str(run_dir), **environ)
    lines = [line for line in done.stdout.splitlines() if line.startswith("TOKENS ")]
    assert done.returncode == 0 and lines, done.stdout[-2000:] + done.stderr[-4000:]
    (scheduler,) = schedulers(run_dir)
    assert scheduler["ready"] and scheduler["sglang"]["version"] == release
    states = {patch["id"]: patch["state"] for patch in scheduler["patches"]}
    return Run(json.loads(lines[0].removeprefix("TOKENS ")), states, scheduler["calls"])


def schedulers(run_dir: Path) -> list[dict[str, Any]]:
    """What the schedulers of a run say of themselves."""
    rows: list[dict[str, Any]] = status.read_runs(run_dir)
    return [row for row in rows if row.get("role") == "scheduler"]


def gone(left: Callable[[], Sized], patience: float = 10.0) -> bool:
    """Whether nothing is left within `patience` seconds: the kernel takes the memory of a killed process back first."""
    deadline = time.monotonic() + patience
    while (remains := len(left())) and time.monotonic() < deadline:
        time.sleep(0.1)
    return not remains
