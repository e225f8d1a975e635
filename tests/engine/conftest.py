from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from demo.layout import CHECKPOINTS, ROOT
from tests.engine.generate import PROMPTS

COUNT = 8


def write_checkpoint(kind: str) -> Path:
    folder = CHECKPOINTS / kind
    command = [sys.executable, "-m", "demo.checkpoint", "--kind", kind, "--out", str(folder)]
    subprocess.run(command, cwd=ROOT, check=True, timeout=120)
    return folder


def tokens_of_transformers(checkpoint: Path) -> list[list[int]]:
    """transformers' own greedy tokens after PROMPTS, in bf16, computed in a process that never saw the simulation."""
    program = (
        "import json, sys, torch; from pathlib import Path; from demo.checkpoint import greedy\n"
        f"print(json.dumps([greedy(Path({str(checkpoint)!r}), p, {COUNT}, torch.bfloat16).tokens for p in {PROMPTS}]))"
    )
    done = subprocess.run([sys.executable, "-c", program], cwd=ROOT, check=True, capture_output=True, text=True)
    tokens: list[list[int]] = json.loads(done.stdout)
    return tokens


@pytest.fixture(scope="session")
def checkpoint() -> Path:
    return write_checkpoint("gemma2")


@pytest.fixture(scope="session")
def transformers_tokens(checkpoint: Path) -> list[list[int]]:
    return tokens_of_transformers(checkpoint)
