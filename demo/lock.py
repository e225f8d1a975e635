"""Refresh the pinned requirements: ``python3 -m demo.lock``, run as ``make lock``.

The inputs are `requirements/*.in`. Each is resolved by pip in a scratch environment that holds torch,
so the result is what pip would install.
"""

from __future__ import annotations

import json
import re
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

from demo.layout import BASE_RELEASE, REQUIREMENTS, TORCH
from demo.progress import task

#: Added to the resolved set, whatever they or others ask for: sglang wants GPU packages, torch may want another Triton.
OVERRIDES = ("triton==3.6.0", "torchvision==0.28.0", f"sglang=={BASE_RELEASE}")
_HEADER = """\
# Made by `make lock` from {source} on Python {python}; do not edit, edit the .in file and run it again.
# Complete on purpose: installed with `pip install --no-deps -r {name}`.
"""


def normalized(requirement: str) -> str:
    """The project's normalised name in a ``name==version`` line."""
    return re.sub(r"[-_.]+", "-", requirement.partition("==")[0]).lower()


def lock_text(source: str, requirements: Sequence[str]) -> str:
    """A lock file of ``name==version`` lines: the last of each project, sorted, without torch and what CUDA needs."""
    pins = {normalized(line): line for line in requirements}
    skipped = re.compile(r"torch|nvidia-(?!ml-py).*|cuda-.*")
    kept = sorted(pin for name, pin in pins.items() if not skipped.fullmatch(name))
    python = f"{sys.version_info[0]}.{sys.version_info[1]}"
    header = _HEADER.format(source=source, name=source.replace(".in", ".txt"), python=python)
    return header + "\n".join(sorted(kept, key=str.lower)) + "\n"


def _pip(python: Path, *arguments: str | Path) -> str:
    command = [str(word) for word in (python, "-m", "pip", *arguments)]
    return subprocess.run(command, check=True, text=True, stdout=subprocess.PIPE, stdin=subprocess.DEVNULL).stdout


def _additions(python: Path, source: Path, constraints: Path | None) -> list[str]:
    """What pip would add to the environment or change in it for ``source``, as ``name==version`` lines."""
    bound: tuple[str | Path, ...] = ("-c", constraints) if constraints else ()
    report = json.loads(_pip(python, "install", "--quiet", "--dry-run", "--report", "-", *bound, "-r", source))
    found = [entry["metadata"] for entry in report["install"]]
    return [f"{entry['name']}=={entry['version']}" for entry in found]


def lock(folder: Path) -> None:
    """Write every lock file of ``requirements/``, using the empty ``folder`` for the scratch environment."""
    python = folder / "bin" / "python"
    with task("creating a scratch environment with torch", hint="1 min"):
        subprocess.run([sys.executable, "-m", "venv", folder], check=True)
        _pip(python, "install", "--quiet", "--no-compile", TORCH)
    with task("resolving sim.in", hint="1 min"):
        _pip(python, "install", "--quiet", "--no-compile", "-r", REQUIREMENTS / "sim.in")
        resolved = [line for line in _pip(python, "freeze").splitlines() if "==" in line]
        (REQUIREMENTS / "sim.txt").write_text(lock_text("sim.in", [*resolved, *OVERRIDES]))
    for source in sorted(REQUIREMENTS.glob("*.in")):
        if source.name == "sim.in":
            continue
        with task(f"resolving {source.name}", hint="20 s"):
            # An input may replace what it names (another transformers) and has to live with everything else.
            constraints = folder / "constraints.txt"
            replaced = ("transformers", "huggingface-hub", "tokenizers", "torch", "triton")
            constraints.write_text("\n".join(line for line in resolved if normalized(line) not in replaced))
            additions = _additions(python, source, constraints)
            (source.with_suffix(".txt")).write_text(lock_text(source.name, additions))


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as scratch:
        lock(Path(scratch) / "env")
