"""What the overlay costs an interpreter, and what `amd-sglang launch` does before it becomes sglang.

    python benchmarks/boot.py [--runs 60] [--json out.json]

Whole processes, run in turn so that a slow moment hits every row alike: an empty environment without the overlay, one
with its .pth file and the gate unset, the same with the gate set; and an empty program, plainly and launched: what
`amd-sglang launch` does before it becomes sglang, for the sglang that this Python imports (or that is on PYTHONPATH)
and a torch that says it is built for ROCm. Counted is the processor time of a process and of the children that it
waited for. Prints the median, its ratio to the first row, and the quartiles of the ratios to the run of the first row
beside it. The processes of the server are in `activation.py`, and the sum in `startup.py`. Needs no GPU, no root.
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
import venv
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from overlay import boot, delivery

_ROOT = Path(__file__).resolve().parents[1]
EMPTY, LAUNCHED = "an empty program", "an empty program, launched"
#: A command and its environment.
Process = tuple[list[str], dict[str, str]]
_LAUNCH = "from launcher import wrapper; wrapper()"


@dataclass(frozen=True)
class Row:
    """Median processor time of a process in milliseconds, and the quartiles of its ratio to the first row's."""

    process: str
    median_ms: float
    ratio: float
    quartiles: tuple[float, float]


def make_environment(folder: Path, *, overlay: bool) -> Path:
    """An empty virtual environment, with or without the overlay as an editable install leaves it; its Python."""
    venv.create(folder, symlinks=True, with_pip=False)
    (packages,) = folder.glob("lib/python*/site-packages")
    if overlay:
        (packages / "_overlay_root.pth").write_text(f"{_ROOT}\n")
        shutil.copy(Path(delivery.__file__).parent / "amd_sglang_overlay.pth", packages)
    return folder / "bin" / "python"


def make_torch(folder: Path) -> Path:
    """A folder with what the overlay reads of a ROCm build of torch."""
    (folder / "torch").mkdir(parents=True)
    (folder / "torch" / "__init__.py").touch()
    (folder / "torch" / "version.py").write_text("hip = '6.4.43484'\ncuda = None\n")
    return folder


def once(command: Sequence[str], environ: Mapping[str, str]) -> float:
    """Milliseconds of processor time of one process and its children. Raises CalledProcessError if it fails."""
    with subprocess.Popen(command, env=dict(environ), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as child:
        _, status, used = os.wait4(child.pid, 0)
        child.returncode = os.waitstatus_to_exitcode(status)
    if child.returncode:
        raise subprocess.CalledProcessError(child.returncode, command)
    return (used.ru_utime + used.ru_stime) * 1000


def processes(scratch: Path, environ: Mapping[str, str]) -> dict[str, Process]:
    """A label -> command and environment of every row, made from the environment of a user."""
    given = {name: value for name, value in environ.items() if not name.startswith("AMD_SGLANG_")}
    environ = {name: value for name, value in given.items() if not name.startswith("PYTHON")}
    path = [str(make_torch(scratch / "rocm")), *filter(None, given.get("PYTHONPATH", "").split(os.pathsep)), str(_ROOT)]
    launch = {
        **environ,
        "PYTHONPATH": os.pathsep.join(path),
        "PYTHONPYCACHEPREFIX": str(scratch / "bytecode"),  # what was imported once has it, as in an installation
        "AMD_SGLANG_RUN_DIR": str(scratch / "runs"),
    }
    program = scratch / "program.py"
    program.touch()
    bare = make_environment(scratch / "bare", overlay=False)
    with_overlay = make_environment(scratch / "overlay", overlay=True)
    asked = {**boot.handover(), boot.PREFIX: str(with_overlay.parent.parent)}
    return {
        "python, no overlay": ([str(bare), "-c", "pass"], environ),
        "python, overlay installed and off": ([str(with_overlay), "-c", "pass"], environ),
        "python, overlay installed and on": ([str(with_overlay), "-c", "pass"], {**environ, **asked}),
        EMPTY: ([sys.executable, str(program)], launch),
        LAUNCHED: ([sys.executable, "-c", _LAUNCH, str(program)], launch),
    }


def measure(runs: int) -> list[Row]:
    """Every row, after one run of each that does not count."""
    with tempfile.TemporaryDirectory() as scratch:
        rows = processes(Path(scratch), os.environ)
        rounds = [{label: once(*row) for label, row in rows.items()} for _ in range(runs + 1)][1:]
    first = next(iter(rows))
    base = statistics.median(times[first] for times in rounds)
    found = []
    for label in rows:
        median = statistics.median(times[label] for times in rounds)
        low, _, high = statistics.quantiles((times[label] / times[first] for times in rounds), n=4)
        found.append(Row(label, median, median / base, (low, high)))
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=60, help="processes per row, at least 2")
    parser.add_argument("--json", type=Path, help="also write the figures to this file")
    arguments = parser.parse_args()
    rows = measure(arguments.runs)
    print(f"| process ({arguments.runs} runs each) | CPU ms | ratio | quartiles |\n|---|---|---|---|")
    for row in rows:
        low, high = row.quartiles
        print(f"| {row.process} | {row.median_ms:.1f} | {row.ratio:.2f} | {low:.2f} .. {high:.2f} |")
    if arguments.json:
        arguments.json.write_text(json.dumps([asdict(row) for row in rows], indent=1))


if __name__ == "__main__":
    main()
