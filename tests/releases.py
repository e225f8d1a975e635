"""The environment in which a process imports a given release of the real sglang."""

from __future__ import annotations

import os
import subprocess
import sys

from demo.layout import ROOT
from demo.provision import release_pythonpath


def environment(release: str) -> dict[str, str]:
    """This process's environment without any switch of ours, with `release` in front of the path; fetches it first."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("AMD_SGLANG_", "SGLANG_"))}
    folders = [*map(str, release_pythonpath(release)), str(ROOT)]
    return {**kept, "PYTHONPATH": os.pathsep.join(folders)}


def run_simulated(
    release: str, *command: str, arch: str = "gfx942", **environ: str
) -> subprocess.CompletedProcess[str]:
    """Run `python -m overlay --simulate ARCH COMMAND...` with `release`, and `environ` added to its environment."""
    return subprocess.run(
        [sys.executable, "-m", "overlay", "--simulate", arch, *command],
        env={**environment(release), **environ},
        capture_output=True,
        text=True,
        timeout=300,
    )
