"""Writes what AMD's compiler makes of every kernel: docs/amd_resources.json and .md, and `tuned/` of unmeasured GPUs.

    python -m tests.kernels.amd_resources [--check]

Compiles every variant for every architecture, without a GPU, in some two minutes. `--check` compares with the committed
files instead and exits with status 1 where they are stale.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import triton

from patches.kernels.tuning import FOLDER, SPACES
from tests.kernels.amd_builds import HERE, PROGRAMS, Build, builds_of
from tests.kernels.amd_hardware import HARDWARE, waves_per_simd

DOCS = HERE.parents[1] / "docs"
COMMAND = "python -m tests.kernels.amd_resources"

Builds = Mapping[str, Mapping[str, list[Build]]]
"""By kernel and architecture."""

#: Instructions by the bytes that each lane moves; those of a byte or two are never what they should be.
_WIDTHS = (
    (("dwordx4", "_b128"), 16),
    (("dwordx3", "_b96"), 12),
    (("dwordx2", "_b64"), 8),
    (("dword", "_b32"), 4),
    (("short", "_b16", "_u16", "_i16"), 2),
    (("byte", "_b8", "_u8", "_i8"), 1),
)


def width(operation: str) -> int:
    """Bytes that a lane moves with one memory instruction, from its name."""
    return next(size for endings, size in _WIDTHS if any(ending in operation for ending in endings))


def widths(build: Build, kind: str) -> dict[str, int]:
    """How many instructions of `kind`, load or store, move how many bytes a lane: `{"16": 4, "4": 1}`."""
    counts: dict[int, int] = {}
    for operation, count in build["memory_operations"].items():
        if f"_{kind}_" in operation:
            counts[width(operation)] = counts.get(width(operation), 0) + count
    return {str(size): counts[size] for size in sorted(counts, reverse=True)}


def resources(arch: str, build: Build) -> dict[str, Any]:
    """One row of the table."""
    numbers = ("threads", "vgprs", "sgprs", "lds_bytes", "vgpr_spills", "sgpr_spills")
    return {name: build[name] for name in numbers} | {
        "waves_per_simd": waves_per_simd(arch, build["vgprs"], build["lds_bytes"], build["threads"]),
        "loads": widths(build, "load"),
        "stores": widths(build, "store"),
    }


def rows(arch: str, builds: Iterable[Build]) -> dict[str, dict[str, Any]]:
    """The rows of one kernel on one architecture by label. A build that two launches share is one row."""
    found: dict[str, dict[str, Any]] = {}
    for build in builds:
        row = resources(arch, build)
        assert found.setdefault(build["label"], row) == row, f"two builds are called {build['label']}"
    return found


def as_json(builds: Builds) -> str:
    table = {kernel: {arch: rows(arch, own) for arch, own in by_arch.items()} for kernel, by_arch in builds.items()}
    lines = [f'{{"triton": {json.dumps(triton.__version__)}, "builds": {{']
    for kernel, by_arch in table.items():
        lines.append(f"{json.dumps(kernel)}: {{")
        for arch, by_label in by_arch.items():
            body = ",\n".join(f"  {json.dumps(label)}: {json.dumps(row)}" for label, row in by_label.items())
            lines.append(f" {json.dumps(arch)}: {{\n{body}\n }}{',' * (arch != list(by_arch)[-1])}")
        lines.append(f"}}{',' * (kernel != list(table)[-1])}")
    return "\n".join([*lines, "}}"]) + "\n"


def as_markdown(builds: Builds) -> str:
    """Of every kernel and architecture, the builds grouped by what they need."""
    lines = [
        "# What the kernels need on AMD GPUs",
        "",
        f"Written by `{COMMAND}` with Triton {triton.__version__}, which carries AMD's code",
        "generator: no GPU is needed, and none was. A test compiles everything again and fails where this differs,",
        "or where a register spills or a load is narrower than it should be. Here is the range of each kernel's",
        "builds, and in [amd_resources.json](amd_resources.json) each by itself. LDS is in bytes a workgroup. Waves",
        "are those that a SIMD holds at once, computed from registers and LDS (`tests/kernels/amd_hardware.py`): 8",
        "is the most on gfx942 and gfx950, 16 on gfx1100 and gfx1201. Loads and stores are the bytes that a lane",
        "moves with one instruction; single elements, such as a position, a scale or an index, are loads of 4 bytes",
        "or less.",
        "",
        "| kernel | GPU | builds | threads | VGPRs | SGPRs | LDS | spills | waves | loads | stores |",
        "|---" * 11 + "|",
    ]
    for kernel, by_arch in builds.items():
        for arch, own in by_arch.items():
            table = list(rows(arch, own).values())
            cells = [kernel, arch, str(len(table))]
            cells += [_range(row[name] for row in table) for name in ("threads", "vgprs", "sgprs", "lds_bytes")]
            cells.append(str(sum(row["vgpr_spills"] + row["sgpr_spills"] for row in table)))
            cells.append(_range(row["waves_per_simd"] for row in table))
            cells += [_sizes(row[kind] for row in table) for kind in ("loads", "stores")]
            lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def _range(values: Iterable[int]) -> str:
    found = sorted(set(values))
    return str(found[0]) if len(found) == 1 else f"{found[0]} to {found[-1]}"


def _sizes(counts: Iterable[Mapping[str, int]]) -> str:
    return ", ".join(map(str, sorted({int(size) for count in counts for size in count}, reverse=True)))


def tuned(arch: str, builds: Builds) -> str:
    """The file of an architecture that nobody could measure: the formulas' choices, and what they compile to."""
    kernels = {}
    for kernel in SPACES:
        classes: dict[str, dict[str, Any]] = {}
        for build in builds[kernel].get(arch, ()):
            row = resources(arch, build)
            entry = classes.setdefault(build["shape_class"], {"config": build["config"], "evidence": {}})
            assert entry["config"] == build["config"], "a class is one configuration"
            evidence = entry["evidence"]
            for name in ("vgprs", "lds_bytes", "vgpr_spills", "sgpr_spills"):
                evidence[f"most_{name}"] = max(evidence.get(f"most_{name}", 0), row[name])
            evidence["least_waves_per_simd"] = min(evidence.get("least_waves_per_simd", 64), row["waves_per_simd"])
        if classes:
            kernels[kernel] = {
                "chosen": "compiled",
                "provenance": {
                    "reason": "the choice of the kernel's formula: no such GPU was at hand, so nothing was timed; "
                    "compiled offline, nothing spills",
                    "command": COMMAND,
                    "versions": {"triton": triton.__version__},
                },
                "classes": classes,
            }
    return json.dumps({"arch": arch, "kernels": kernels}, indent=1) + "\n"


def documents(builds: Builds) -> dict[Path, str]:
    """Every file that this program writes."""
    return {
        DOCS / "amd_resources.json": as_json(builds),
        DOCS / "amd_resources.md": as_markdown(builds),
        **{FOLDER / f"{arch}.json": tuned(arch, builds) for arch in HARDWARE},
    }


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog=COMMAND, description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--check", action="store_true", help="compare with the committed files and write nothing")
    options = parser.parse_args(arguments)
    with tempfile.TemporaryDirectory() as cache:
        builds = {
            kernel: {arch: builds_of(kernel, arch, Path(cache)) for arch in archs}
            for kernel, (_, archs) in PROGRAMS.items()
        }
    made = documents(builds)
    stale = [path for path, text in made.items() if not path.exists() or path.read_text() != text]
    for path in stale:
        if options.check:
            print(f"{path} is stale: {COMMAND}", file=sys.stderr)
        else:
            path.parent.mkdir(exist_ok=True)
            path.write_text(made[path])
            print(f"written: {path}")
    return 1 if options.check and stale else 0


if __name__ == "__main__":
    sys.exit(main())
