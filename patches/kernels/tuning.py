"""Launch configurations as data: what was found offline for a GPU architecture, one file each in `tuned/`.

Nothing is tuned while a server runs: a kernel asks `choice` once for each shape class, and where no file has an entry
its own formula decides. `python -m benchmarks.tune` writes the entries of the GPU it runs on, with the times it
measured; those of GPUs that nobody here could time say that they were compiled and not measured, and carry what the
compiler reported instead (`python -m tests.kernels.amd_resources`).

A file is `{"arch": ..., "kernels": {KERNEL: {"chosen": "measured" | "compiled", "provenance": {...}, "classes": {SHAPE
CLASS: {"config": {PARAMETER: int}, "evidence": {...}}}}}}`. Every file is checked when this module is imported, so that
a damaged one fails the patch that would use it, and not a request.
"""

from __future__ import annotations

import functools
import json
import re
from collections.abc import Iterator, Mapping, Set
from pathlib import Path
from typing import Any, NamedTuple

FOLDER = Path(__file__).parent / "tuned"

Config = Mapping[str, int]


class TunedDataError(ValueError):
    """A file of `tuned/` is not what this module reads."""


class Space(NamedTuple):
    """What a kernel may be given: the pattern of its shape classes, and the values of each parameter."""

    shape_class: str
    parameters: Mapping[str, tuple[int, ...]]


SPACES: Mapping[str, Space] = {
    "gemma_rmsnorm": Space(r"n=\d+", {"rows": (1, 2, 4, 8, 16), "num_warps": (1, 2, 4, 8, 16, 32)}),
    "qk_norm_mrope": Space(r"q=\d+,kv=\d+,d=(64|128|256)", {"heads": (1, 2, 4, 8, 16), "num_warps": (1, 2, 4, 8)}),
    "mhc": Space(
        r"c=\d+,norm=[01]",
        {
            "block_split": (32, 64, 128),
            "post_warps": (2, 4, 8),
            "block_pre": (512, 1024, 2048, 4096, 8192),
            "pre_warps": (2, 4, 8, 16),
        },
    ),
    "sparse_mla": Space(
        r"h<=16|h>16",
        {"block_h": (16, 32, 64), "block_n": (16, 32, 64), "num_warps": (4, 8), "num_stages": (1, 2, 3)},
    ),
}
"""By kernel, the module's name."""

_PROVENANCE = {
    "measured": {"device", "date", "command", "versions", "unit"},
    "compiled": {"reason", "command", "versions"},
}
_REMEDY = "Install amd-sglang-overlay again; in a checkout, `python -m benchmarks.tune` writes the file"


def choice(kernel: str, shape_class: str, arch: str) -> Config | None:
    """The configuration for a shape class on an architecture (`sm90`, `gfx942`), or None where the formula decides."""
    return _TABLES.get(arch, {}).get((kernel, shape_class))


@functools.cache
def current_arch() -> str:
    """The architecture of the current GPU as files are named after it; needs Triton's driver."""
    import triton

    target = triton.runtime.driver.active.get_current_target()
    return f"sm{target.arch}" if target.backend == "cuda" else str(target.arch).partition(":")[0]


def read(path: Path) -> dict[tuple[str, str], Config]:
    """The configurations of one file by kernel and shape class. Raises TunedDataError naming what is wrong."""
    try:
        content = json.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise TunedDataError(f"{path}: {error}. {_REMEDY}") from error
    fault = next(_faults(content, path.stem), None)
    if fault is not None:
        raise TunedDataError(f"{path}: {fault}. {_REMEDY}")
    return {
        (kernel, shape_class): entry["config"]
        for kernel, section in content["kernels"].items()
        for shape_class, entry in section["classes"].items()
    }


def _faults(content: Any, arch: str) -> Iterator[str]:
    if not _has(content, {"arch", "kernels"}) or not isinstance(content["kernels"], dict):
        yield 'it is no object of "arch" and "kernels", of which the second is an object'
        return
    if content["arch"] != arch:
        yield f'"arch" is {content["arch"]!r}, and the file is named after {arch!r}'
    for kernel, section in content["kernels"].items():
        if kernel not in SPACES:
            yield f"kernel {kernel!r} is none of {', '.join(SPACES)}"
        elif not _has(section, {"chosen", "provenance", "classes"}) or not isinstance(section["classes"], dict):
            yield f'{kernel} is no object of "chosen", "provenance" and "classes"'
        elif section["chosen"] not in _PROVENANCE:
            yield f'{kernel}: "chosen" is {section["chosen"]!r}, neither "measured" nor "compiled"'
        elif not _has(section["provenance"], _PROVENANCE[section["chosen"]]):
            yield f"{kernel}: its provenance must have {', '.join(sorted(_PROVENANCE[section['chosen']]))}"
        else:
            for shape_class, entry in section["classes"].items():
                yield from (f"{kernel}, {shape_class}: {fault}" for fault in _entry_faults(kernel, shape_class, entry))


def _has(content: Any, keys: Set[str]) -> bool:
    """Whether it is an object of these keys and no others."""
    return isinstance(content, dict) and content.keys() == keys


def _entry_faults(kernel: str, shape_class: str, entry: Any) -> Iterator[str]:
    space = SPACES[kernel]
    if re.fullmatch(space.shape_class, shape_class) is None:
        yield f"shape classes of {kernel} look like {space.shape_class}"
    if not _has(entry, {"config", "evidence"}) or not entry["evidence"]:
        yield 'it is no object of "config" and a non-empty "evidence"'
    elif not _has(entry["config"], space.parameters.keys()):
        yield f"its config must have {', '.join(space.parameters)}"
    else:
        for name, value in entry["config"].items():
            if type(value) is not int or value not in space.parameters[name]:
                yield f"{name} is {value!r}, none of {', '.join(map(str, space.parameters[name]))}"


_TABLES = {path.stem: read(path) for path in sorted(FOLDER.glob("*.json"))}
