"""What can be simulated, and which of it an environment asks for. Standard library only."""

from __future__ import annotations

import importlib.metadata
import re
from collections.abc import Mapping
from dataclasses import dataclass

from overlay.errors import MalformedSwitchError

SIMULATE = "AMD_SGLANG_SIMULATE"
SIMULATE_AITER = "AMD_SGLANG_SIMULATE_AITER"
RUN_DIR = "AMD_SGLANG_RUN_DIR"

_GIB = 1 << 30


class UnknownArchError(MalformedSwitchError, ValueError):
    """An architecture nobody described here."""

    def __init__(self, value: str) -> None:
        super().__init__(SIMULATE, value, "one of " + ", ".join(ARCHS))


class UnknownAiterError(MalformedSwitchError, ValueError):
    """An aiter version whose contract nobody wrote down here."""

    def __init__(self, value: str) -> None:
        super().__init__(SIMULATE_AITER, value, "auto, none or one of " + ", ".join(AITER_VERSIONS))


@dataclass(frozen=True)
class Arch:
    """One AMD Instinct as its data sheet has it. Memory in bytes; `fnuz` says which fp8 encoding the units read."""

    name: str
    product: str
    capability: tuple[int, int]
    compute_units: int
    memory: int
    fnuz: bool


ARCHS: Mapping[str, Arch] = {
    "gfx942": Arch("gfx942", "AMD Instinct MI300X", (9, 4), 304, 192 * _GIB, fnuz=True),
    "gfx950": Arch("gfx950", "AMD Instinct MI355X", (9, 5), 256, 288 * _GIB, fnuz=False),
}

#: The head of aiter's main branch on 2026-08-22, as `git describe --tags` calls it (e4048607a5): no release was cut.
AITER_HEAD = "v0.1.20-46-ge4048607a5"
#: Oldest first. A contract says in which of these it holds.
AITER_VERSIONS = ("v0.1.10.post3", "v0.1.12", "v0.1.13", "v0.1.15", AITER_HEAD)

#: The aiter each sglang release is run with here: the first release that uses it. 0.5.19 imports `moe_shuffle_scale`
#: (quantization/fp8.py), which aiter gained after v0.1.16.
_AITER_SINCE = (
    ((0, 5, 19), AITER_HEAD),
    ((0, 5, 13), "v0.1.15"),
    ((0, 5, 11), "v0.1.13"),
    ((0, 5, 10), "v0.1.12"),
)

#: Oldest first: the kernel packages whose contracts are known, named by the version sglang pins.
KERNEL_VERSIONS = ("0.3.21", "0.4.2.post2", "0.4.10")
_KERNEL_SINCE = (((0, 5, 23), "0.4.10"), ((0, 5, 10), "0.4.2.post2"))


def arch_named(name: str) -> Arch:
    """The architecture of that name. Raises UnknownArchError."""
    try:
        return ARCHS[name]
    except KeyError:
        raise UnknownArchError(name) from None


def simulated_aiter(environ: Mapping[str, str]) -> str | None:
    """The aiter version an environment asks for; None if `import aiter` is to fail. Raises UnknownAiterError.

    `auto` follows the installed sglang, whose version is read from its metadata; without an sglang there is no aiter.
    """
    value = environ.get(SIMULATE_AITER) or "auto"
    if value == "none":
        return None
    if value == "auto":
        release = _installed_sglang()
        return None if release is None else _first(_AITER_SINCE, release, AITER_VERSIONS[0])
    if value not in AITER_VERSIONS:
        raise UnknownAiterError(value)
    return value


def simulated_kernels() -> str:
    """The version of sglang's kernel package that the installed sglang pins, or the nearest one described here."""
    release = _installed_sglang()
    return KERNEL_VERSIONS[-1] if release is None else _first(_KERNEL_SINCE, release, KERNEL_VERSIONS[0])


def _first(table: tuple[tuple[tuple[int, int, int], str], ...], release: tuple[int, int, int], oldest: str) -> str:
    return next((version for since, version in table if release >= since), oldest)


def _installed_sglang() -> tuple[int, int, int] | None:
    try:
        text = importlib.metadata.version("sglang")
    except importlib.metadata.PackageNotFoundError:
        return None
    found = re.match(r"(\d+)\.(\d+)\.(\d+)", text)
    return (int(found[1]), int(found[2]), int(found[3])) if found else None
