"""What the overlay costs an interpreter: `python benchmarks/boot.py [--runs 60] [--json out.json]`.

Whole processes (`python -c pass`), run in turn so that a slow moment hits every row alike: one environment without the
overlay, one with its .pth file and the gate unset, and the same with the gate set; and what `amd-sglang launch` does
before it becomes sglang. Prints medians in milliseconds and the ratio to the first row.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
import venv
from collections.abc import Mapping, Sequence
from pathlib import Path

from overlay import boot, delivery

_ROOT = Path(__file__).resolve().parent.parent


def make_environment(folder: Path, *, overlay: bool) -> Path:
    """An empty virtual environment, with or without the overlay as an editable install leaves it; its Python."""
    venv.create(folder, symlinks=True, with_pip=False)
    (packages,) = folder.glob("lib/python*/site-packages")
    if overlay:
        (packages / "_overlay_root.pth").write_text(f"{_ROOT}\n")
        shutil.copy(Path(delivery.__file__).parent / "amd_sglang_overlay.pth", packages)
    return folder / "bin" / "python"


def once(command: Sequence[str], environ: Mapping[str, str]) -> float:
    """Milliseconds from start to end of one process."""
    begun = time.perf_counter()
    subprocess.run(command, env=dict(environ), check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    return (time.perf_counter() - begun) * 1000


def measure(runs: int) -> list[tuple[str, float]]:
    """A label and a median in milliseconds per row."""
    environ = {name: value for name, value in os.environ.items() if not name.startswith(("AMD_SGLANG_", "PYTHON"))}
    with tempfile.TemporaryDirectory() as scratch:
        bare = make_environment(Path(scratch) / "bare", overlay=False)
        with_overlay = make_environment(Path(scratch) / "overlay", overlay=True)
        asked = {**boot.handover(), boot.PREFIX: str(with_overlay.parent.parent)}
        dry = [sys.executable, "-m", "launcher", "launch", "--simulate", "gfx942", "--dry-run"]
        rows: dict[str, tuple[list[str], Mapping[str, str]]] = {
            "python, no overlay": ([str(bare), "-c", "pass"], environ),
            "python, overlay installed and off": ([str(with_overlay), "-c", "pass"], environ),
            "python, overlay installed and on": ([str(with_overlay), "-c", "pass"], {**environ, **asked}),
            "launch: plan and probe (--dry-run)": (dry, {**environ, "PYTHONPATH": str(_ROOT)}),
        }
        times: dict[str, list[float]] = {label: [] for label in rows}
        for _ in range(runs):
            for label, (command, env) in rows.items():
                times[label].append(once(command, env))
    return [(label, statistics.median(values)) for label, values in times.items()]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--runs", type=int, default=60, help="processes per row")
    parser.add_argument("--json", type=Path, help="also write the figures to this file")
    arguments = parser.parse_args()
    rows = measure(arguments.runs)
    base = rows[0][1]
    print(f"| process ({arguments.runs} runs each) | median ms | ratio |\n|---|---|---|")
    for label, median in rows:
        print(f"| {label} | {median:.1f} | {median / base:.2f} |")
    if arguments.json:
        arguments.json.write_text(json.dumps([{"process": label, "median_ms": median} for label, median in rows]))


if __name__ == "__main__":
    main()
