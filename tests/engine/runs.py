"""One run of a real engine in the simulated ROCm: its tokens, and what its scheduler says ran."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

from overlay import status
from tests.releases import environment

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
    done = subprocess.run(
        [sys.executable, "-m", "overlay", "--simulate", "gfx942", *options, str(SCRIPT), *arguments],
        env={**environment(release), "AMD_SGLANG_RUN_DIR": str(run_dir), **environ},
        capture_output=True,
        text=True,
        timeout=300,
    )
    lines = [line for line in done.stdout.splitlines() if line.startswith("TOKENS ")]
    assert done.returncode == 0 and lines, done.stdout[-2000:] + done.stderr[-4000:]
    (scheduler,) = [row for row in status.read_runs(run_dir) if row.get("role") == "scheduler"]
    assert scheduler["ready"] and scheduler["sglang"]["version"] == release  # type: ignore[index]
    states = {patch["id"]: patch["state"] for patch in scheduler["patches"]}  # type: ignore[attr-defined]
    return Run(json.loads(lines[0].removeprefix("TOKENS ")), states, scheduler["calls"])  # type: ignore[arg-type]
