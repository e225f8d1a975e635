"""Times the declared configurations of a kernel on this GPU and writes the best of each shape class as data.

    python -m benchmarks.tune KERNEL... [--seconds S] [--folder patches/kernels/tuned] [--dry-run]

The candidates are the space that `patches.kernels.tuning` declares for the kernel, less what `_SENSE` says makes none.
They are timed at every size of a class that the kernel's own suite has, by replays of a graph, and must be as exact as
the formula's configuration there. Chosen is the one whose worst size is nearest to the best that any candidate reached
at that size; the formula's where it is within 1 % of that, so that a noisy run changes nothing. A class that the budget
cuts short is left as it was. Needs a CUDA or HIP GPU; exits with status 2 without one.
"""

from __future__ import annotations

import argparse
import datetime
import itertools
import json
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any
from unittest import mock

import torch
import triton

from benchmarks import gemma_rmsnorm as gemma_suite
from benchmarks import mhc as mhc_suite
from benchmarks import qk_norm_mrope as mrope_suite
from benchmarks import sparse_mla as sparse_suite
from benchmarks.case import Case, Group
from benchmarks.machine import versions
from benchmarks.timing import GraphTimer
from patches.kernels import gemma_rmsnorm, mhc, qk_norm_mrope, sparse_mla, tuning
from patches.kernels.tuning import FOLDER, SPACES, Config

Parameters = Mapping[str, Any]


@dataclass(frozen=True)
class Tunable:
    """How the configuration of one kernel is chosen and forced. The functions take a case's parameters.

    `lookup` names the function of `module` that a launch asks, `fixed` are the fields of what it returns that follow
    from the shape and are not tuned.
    """

    module: ModuleType
    lookup: str
    groups: Callable[[bool], list[Group]]
    shape_class: Callable[[Parameters], str]
    formula: Callable[[Parameters, int], Any]
    fixed: Callable[[Parameters], Mapping[str, int]]
    makes_sense: Callable[[Parameters, Config, int], bool]
    served: Callable[[Case], bool] = lambda _: True
    """Whether the patch hands a case of the suite to the kernel: others do not count."""
    forget: Callable[[], None] = lambda: None
    """Drops the launches that `module` keeps: they were made of what `lookup` answered before."""


def _norm_makes_sense(shape: Parameters, config: Config, warp_size: int) -> bool:
    tile: int = config["rows"] * triton.next_power_of_2(shape["hidden"])
    return tile <= 16384 and 4 <= tile // (config["num_warps"] * warp_size) <= 64


def _mrope_makes_sense(shape: Parameters, config: Config, warp_size: int) -> bool:
    elements: int = config["heads"] * 128 // (config["num_warps"] * warp_size)
    most: int = triton.next_power_of_2(shape["query_heads"])
    return config["heads"] <= most and 2 <= elements <= 32


def _mhc_makes_sense(shape: Parameters, config: Config, warp_size: int) -> bool:
    return config["block_pre"] <= 2048 and 4 <= config["block_pre"] // (config["pre_warps"] * warp_size) <= 32


def _mla_makes_sense(shape: Parameters, config: Config, warp_size: int) -> bool:
    """The output's float32 fill at most half of the registers; at most two programs read the keys of a token again."""
    sums: int = config["block_h"] * sparse_mla.HEAD_DIM // (config["num_warps"] * warp_size)
    most: int = max(16, triton.next_power_of_2(shape["heads"]))
    return 16 <= sums <= 128 and most // 2 <= config["block_h"] <= most


def _geometry(shape: Parameters) -> qk_norm_mrope.Geometry:
    return qk_norm_mrope.Geometry(shape["query_heads"], shape["key_heads"], 128, (24, 20, 20), True, True, 1e-6)


TUNABLES: Mapping[str, Tunable] = {
    "gemma_rmsnorm": Tunable(
        gemma_rmsnorm,
        "_current_launch_config",
        gemma_suite.groups,
        lambda shape: f"n={shape['hidden']}",
        lambda shape, warp_size: gemma_rmsnorm.launch_config(shape["hidden"], warp_size),
        lambda shape: {"block": triton.next_power_of_2(shape["hidden"])},
        _norm_makes_sense,
    ),
    "qk_norm_mrope": Tunable(
        qk_norm_mrope,
        "_current_config",
        mrope_suite.groups,
        lambda shape: qk_norm_mrope.shape_class(_geometry(shape)),
        lambda shape, warp_size: qk_norm_mrope.launch_config(_geometry(shape), warp_size),
        lambda _: {},
        _mrope_makes_sense,
        forget=qk_norm_mrope._current_launch.cache_clear,
    ),
    "mhc": Tunable(
        mhc,
        "_current_config",
        mhc_suite.groups,
        lambda shape: f"c={shape['hidden']},norm=0",
        lambda shape, warp_size: mhc.launch_config(shape["hidden"], False, warp_size),
        lambda _: {"block_m": 16},
        _mhc_makes_sense,
        served=lambda case: int(case.parameters["tokens"]) <= mhc.MAX_TOKENS,
    ),
    "sparse_mla": Tunable(
        sparse_mla,
        "_current_config",
        sparse_suite.groups,
        lambda shape: sparse_mla.shape_class(shape["heads"]),
        lambda shape, _: sparse_mla.launch_config(shape["heads"]),
        lambda _: {},
        _mla_makes_sense,
    ),
}


@dataclass(frozen=True)
class Sized:
    """A case with the title of its group: titles tell in place from into new tensors."""

    title: str
    case: Case

    @property
    def label(self) -> str:
        return f"{self.title.partition(' (')[0]}: {self.case.label}"


class OverBudgetError(Exception):
    """The seconds are up."""


def classes_of(tunable: Tunable) -> dict[str, list[Sized]]:
    """The sizes of the kernel's suite by shape class."""
    found: dict[str, list[Sized]] = {}
    for group in tunable.groups(False):
        for case in filter(tunable.served, group.cases):
            found.setdefault(tunable.shape_class(case.parameters), []).append(Sized(group.title, case))
    return found


def candidates(kernel: str, shape: Parameters, warp_size: int) -> Iterator[dict[str, int]]:
    """The declared space, less what makes no sense for the shape."""
    parameters = SPACES[kernel].parameters
    for values in itertools.product(*parameters.values()):
        config = dict(zip(parameters, values, strict=True))
        if config.get("num_warps", 1) * warp_size <= 1024 and TUNABLES[kernel].makes_sense(shape, config, warp_size):
            yield config


def microseconds(
    tunable: Tunable, sized: Sized, config: Config, timer: GraphTimer
) -> tuple[float, Mapping[str, float]]:
    """Of ours with the configuration forced, and its errors."""
    forced = tunable.module.LaunchConfig(**tunable.fixed(sized.case.parameters), **config)
    tunable.forget()
    with mock.patch.object(tunable.module, tunable.lookup, lambda *_: forced):
        ours = next(iter(sized.case.makers().values()))()
        timing = timer(ours.call)
    tunable.forget()
    return timing.median, ours.errors


Times = dict[tuple[int, ...], list[float]]
"""Microseconds by the values of a configuration, in the order of the class's sizes."""


def measure_class(
    kernel: str, sizes: Sequence[Sized], formula: Config, deadline: float, timer: GraphTimer, warp_size: int
) -> Times:
    """Every candidate at every size; one that does not build, or is less exact than the formula's, is left out."""
    tunable = TUNABLES[kernel]
    exact = [microseconds(tunable, sized, formula, timer) for sized in sizes]
    times: Times = {tuple(formula.values()): [found for found, _ in exact]}
    for config in candidates(kernel, sizes[0].case.parameters, warp_size):
        if tuple(config.values()) in times:
            continue
        row = []
        for sized, (_, allowed) in zip(sizes, exact, strict=True):
            if time.monotonic() > deadline:
                raise OverBudgetError
            try:
                found, errors = microseconds(tunable, sized, config, timer)
            except (triton.CompilationError, triton.runtime.OutOfResources):
                break
            if any(errors[name] > 2 * allowed[name] for name in allowed):
                print(f"  {config} at {sized.label} is less exact: {errors}, and the formula's {allowed}")
                break
            row.append(found)
        else:
            times[tuple(config.values())] = row
    return times


def regret(times: Times, values: tuple[int, ...]) -> float:
    """By what factor a configuration is slower than the best one, at the size where that is most."""
    best = [min(column) for column in zip(*times.values(), strict=True)]
    slower: list[float] = [own / least for own, least in zip(times[values], best, strict=True)]
    return max(slower)


def best_of(times: Times, formula: tuple[int, ...]) -> tuple[int, ...]:
    """The configuration of least regret, or the formula's where that is within 1 % of it."""
    chosen = min(times, key=lambda values: regret(times, values))
    return formula if regret(times, formula) <= 1.01 * regret(times, chosen) else chosen


def table(names: Sequence[str], sizes: Sequence[Sized], times: Times, chosen: tuple[int, ...]) -> list[str]:
    """Markdown: the eight configurations of least regret and the chosen one, by size."""
    shown = sorted(times, key=lambda values: regret(times, values))
    shown = shown[:8] + [chosen] * (chosen not in shown[:8])
    lines = [f"| {', '.join(names)} | regret | {' | '.join(sized.label for sized in sizes)} |"]
    lines.append("|---" * (len(sizes) + 2) + "|")
    for values in shown:
        mark = " (chosen)" if values == chosen else ""
        row = " | ".join(f"{found:.2f}" for found in times[values])
        lines.append(f"| {', '.join(map(str, values))}{mark} | {regret(times, values):.3f} | {row} |")
    return lines


def tune(kernel: str, deadline: float, warp_size: int) -> dict[str, Any]:
    """The entries of every class that fits into the time, as a file has them; prints what was measured."""
    tunable, timer = TUNABLES[kernel], GraphTimer()
    names = list(SPACES[kernel].parameters)
    entries = {}
    for shape_class, sizes in classes_of(tunable).items():
        formula = tunable.formula(sizes[0].case.parameters, warp_size)._asdict()
        formula = {name: formula[name] for name in names}
        print(f"\n## {kernel}, {shape_class}\n", flush=True)
        try:
            times = measure_class(kernel, sizes, formula, deadline, timer, warp_size)
        except OverBudgetError:
            print("The time is up: this class is left as it was.")
            break
        chosen = best_of(times, tuple(formula.values()))
        print(*table(names, sizes, times, chosen), sep="\n", flush=True)
        entries[shape_class] = {
            "config": dict(zip(names, chosen, strict=True)),
            "evidence": {sized.label: round(own, 3) for sized, own in zip(sizes, times[chosen], strict=True)},
        }
    return entries


def write(folder: Path, arch: str, kernel: str, entries: Mapping[str, Any], command: str) -> Path:
    """Replaces the classes that were measured in the file of this architecture; the others stay."""
    path = folder / f"{arch}.json"
    content: dict[str, Any] = json.loads(path.read_text()) if path.exists() else {"arch": arch, "kernels": {}}
    kept = content["kernels"].get(kernel, {}).get("classes", {})
    content["kernels"][kernel] = {
        "chosen": "measured",
        "provenance": {
            "device": torch.cuda.get_device_name(),
            "date": datetime.datetime.now(datetime.timezone.utc).date().isoformat(),
            "command": command,
            "versions": versions(),
            "unit": "microseconds, median of graph replays",
        },
        "classes": {**kept, **entries},
    }
    content["kernels"] = dict(sorted(content["kernels"].items()))
    path.write_text(json.dumps(content, indent=1) + "\n")
    tuning.read(path)
    return path


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.tune", description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("kernels", nargs="+", choices=list(TUNABLES), metavar="KERNEL", help=", ".join(TUNABLES))
    parser.add_argument("--seconds", type=float, default=120.0, help="for each kernel (default: 120)")
    parser.add_argument("--folder", type=Path, default=FOLDER, help="where the files of the architectures are")
    parser.add_argument("--dry-run", action="store_true", help="print the tables and write nothing")
    options = parser.parse_args(arguments)
    if not torch.cuda.is_available():
        print("python -m benchmarks.tune: torch sees no CUDA or HIP GPU on this machine", file=sys.stderr)
        return 2
    torch.manual_seed(0)
    warp_size = torch.cuda.get_device_properties(torch.cuda.current_device()).warp_size
    print(f"{torch.cuda.get_device_name()}, {tuning.current_arch()}, {versions()}")
    for kernel in options.kernels:
        entries = tune(kernel, time.monotonic() + options.seconds, warp_size)
        if entries and not options.dry_run:
            command = f"python -m benchmarks.tune {kernel} --seconds {options.seconds:g}"
            print(f"\nwritten: {write(options.folder, tuning.current_arch(), kernel, entries, command)}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
