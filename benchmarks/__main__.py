"""The kernels against everything that computes the same: times, rates and errors in one run.

    python -m benchmarks [gemma_rmsnorm|qk_norm_mrope|argmax|mhc|sparse_mla|all]... [--json F] [--plot F.svg] [--quick]

Each implementation of a case gets the same inputs, is compared with the definition in float64 and is then timed by
replays of a graph (`benchmarks.timing`). "copy" is a copy on the device of as many bytes, timed in the same way;
"floor" is what the bytes take at the rate of a 1 GiB copy, or the arithmetic at that of a large bfloat16 product,
whichever is longer. Cached inputs can undercut it. An implementation that cannot run is named below its table with the
reason; `python -m benchmarks.peers` fetches those that pip can.

Needs a CUDA or HIP GPU; exits with status 2 without one.
"""

from __future__ import annotations

import argparse
import dataclasses
import datetime
import functools
import sys
import time
from collections.abc import Collection, Iterator, Sequence
from pathlib import Path

import torch

from benchmarks import argmax, document, gemma_rmsnorm, mhc, plot, qk_norm_mrope, sparse_mla, table
from benchmarks.machine import copy_timing, describe
from benchmarks.measure import measure_group
from benchmarks.peers import load
from benchmarks.results import Report
from benchmarks.timing import GraphTimer

SUITES = {
    "gemma_rmsnorm": gemma_rmsnorm.groups,
    "qk_norm_mrope": qk_norm_mrope.groups,
    "argmax": argmax.groups,
    "mhc": mhc.groups,
    "sparse_mla": sparse_mla.groups,
}


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("suites", nargs="*", metavar="SUITE", help=f"{', '.join(SUITES)}, or all (the default)")
    parser.add_argument("--json", type=Path, help="write every measurement there")
    parser.add_argument("--plot", type=Path, help="draw the ratios there, as an SVG")
    parser.add_argument("--quick", action="store_true", help="a few sizes of each suite")
    parser.add_argument("--cold", action="store_true", help="empty the L2 cache before every call")
    parser.add_argument(
        "--without",
        action="append",
        default=[],
        metavar="NAME",
        help="leave out an implementation, such as torch.compile",
    )
    options = parser.parse_args(arguments)
    names = list(SUITES) if options.suites in ([], ["all"]) else options.suites
    unknown = [name for name in names if name not in SUITES]
    if unknown:
        parser.error(f"no suite is called {unknown[0]}: choose among {', '.join(SUITES)} and all")
    if options.plot is not None and options.plot.suffix != ".svg":
        parser.error(f"--plot draws SVG only: name a file that ends in .svg, not {options.plot}")
    if not torch.cuda.is_available():
        print("python -m benchmarks: torch sees no CUDA or HIP GPU on this machine", file=sys.stderr)
        return 2
    for report in run(names, quick=options.quick, cold=options.cold, without=options.without):
        # After every table: a run that is interrupted leaves what it has measured.
        if options.json is not None:
            options.json.write_text(document.text(report))
        if options.plot is not None:
            options.plot.write_text(plot.picture(report))
    return 0


def run(names: Sequence[str], *, quick: bool, cold: bool, without: Collection[str]) -> Iterator[Report]:
    """Measure the suites on the current GPU; after each table is complete, print it and yield the report so far."""
    load.activate()
    torch.manual_seed(0)
    timer = GraphTimer(cold=cold)
    copy = functools.cache(functools.partial(copy_timing, timer))
    report = Report(
        date=datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds"),
        cache="cold" if cold else "warm",
        machine=describe(timer),
        groups=(),
    )
    print(table.headline(report), flush=True)
    for name in names:
        for group in SUITES[name](quick):
            began = time.monotonic()
            measured = measure_group(group, timer, copy, report.machine, without)
            print("", *table.group_lines(measured), "", sep="\n", flush=True)
            print(f"({name}: {time.monotonic() - began:.0f} s)", file=sys.stderr, flush=True)
            report = dataclasses.replace(report, groups=(*report.groups, measured))
            yield report


if __name__ == "__main__":
    sys.exit(main())
