"""What the overlay adds to the start of a server before its first request, outside the imports of sglang itself.

    python -m benchmarks.startup [RELEASE ...] [--runs 10] [--json out.json]

Processor time, of which a start takes what the launcher does before it becomes sglang (an empty program launched, less
the same program, in turns: `boot.py`) and what one process of the server does while it imports sglang
(`activation.py`). The latter is timed inside of the process: an import of sglang takes 3 to 6 s, and from one time to
the next differs by more than the overlay takes. Prints medians with quartiles, and the sum of the medians. Fetches the
releases that are not there. Needs no GPU.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from benchmarks import boot
from demo.layout import ROOT
from demo.provision import release_pythonpath

RELEASES = ("0.5.9", "0.5.23")


@dataclass(frozen=True)
class Times:
    """What runs took, in milliseconds."""

    median: float
    quartiles: tuple[float, float]

    @classmethod
    def of(cls, runs: Sequence[float]) -> Times:
        low, median, high = statistics.quantiles(runs, n=4)
        return cls(median, (low, high))

    def __str__(self) -> str:
        low, high = self.quartiles
        return f"{self.median:.0f} ({low:.0f} .. {high:.0f})"


@dataclass(frozen=True)
class Start:
    """What a start with one release takes for the overlay."""

    release: str
    launcher: Times
    server: Times
    total: float


def environment(release: str) -> dict[str, str]:
    """The environment of a user of that release, which is fetched first, under this Python."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("AMD_SGLANG_", "PYTHON"))}
    return {**kept, "PYTHONPATH": os.pathsep.join([*map(str, release_pythonpath(release)), str(ROOT)])}


def launcher(rows: Mapping[str, boot.Process]) -> float:
    """Milliseconds that one launch of an empty program takes longer than the program."""
    return boot.once(*rows[boot.LAUNCHED]) - boot.once(*rows[boot.EMPTY])


def server(environ: Mapping[str, str], scratch: Path) -> float:
    """Milliseconds of the overlay in one process that imports what the HTTP server imports."""
    figures = scratch / "activation.json"
    program = [str(ROOT / "benchmarks" / "activation.py"), "--json", str(figures)]
    command = [sys.executable, "-m", "overlay", "--simulate", "gfx942", *program]
    subprocess.run(command, env=dict(environ), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, check=True)
    return float(json.loads(figures.read_text())["all of the overlay"])


def measure(release: str, runs: int) -> Start:
    """Alternating runs of both, after one of each that does not count: it leaves bytecode."""
    environ = environment(release)
    with tempfile.TemporaryDirectory() as folder:
        scratch = Path(folder)
        rows = boot.processes(scratch, environ)
        pairs = [(launcher(rows), server(environ, scratch)) for _ in range(runs + 1)][1:]
    first, second = (Times.of(column) for column in zip(*pairs, strict=True))
    return Start(release, first, second, first.median + second.median)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("releases", nargs="*", default=RELEASES, help=f"default: {' '.join(RELEASES)}")
    parser.add_argument("--runs", type=int, default=10, help="of each, at least 2")
    parser.add_argument("--json", type=Path, help="also write the figures to this file")
    arguments = parser.parse_args()
    print(f"| sglang ({arguments.runs} runs) | launcher, CPU ms | a process of the server | sum |\n|---|---|---|---|")
    starts = [measure(release, arguments.runs) for release in arguments.releases]
    for one in starts:
        print(f"| {one.release} | {one.launcher} | {one.server} | {one.total:.0f} |")
    if arguments.json:
        arguments.json.write_text(json.dumps([asdict(one) for one in starts], indent=1))


if __name__ == "__main__":
    main()
