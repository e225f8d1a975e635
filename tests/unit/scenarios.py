"""Statements that the runtime tests put together, and what runs them. See process_support for the other side."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from tests.unit.engine_support import Ended, python, synthetic

ALPHA, BETA = "import sglang.srt.alpha\n", "import sglang.srt.beta\n"
ACTIVATE = "r = activate()\n"
SHOW = "import json; print(json.dumps([results().alpha, results().beta]))\n"
PRELUDE = "import os, sys, importlib\nfrom tests.unit.process_support import activate, install_registry, results\n"


@dataclass(frozen=True)
class Scenario:
    """Runs statements beside a synthetic sglang, with `patches` of process_support in force."""

    tree: Path
    run_dir: Path

    @classmethod
    def under(cls, folder: Path) -> Scenario:
        run_dir = folder / "run"
        run_dir.mkdir()
        return cls(synthetic(folder / "tree"), run_dir)

    def __call__(self, patches: str, code: str, **environ: str) -> Ended:
        given = {"PATCHES": patches, "AMD_SGLANG_RUN_DIR": str(self.run_dir), **environ}
        return python("-c", PRELUDE + code, path=(self.tree,), environ=given)
