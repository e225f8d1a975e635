"""Where a process of sglang shows what it is: the constructors of its long-lived managers.

They are wrapped, after the fact and from outside, to learn the role and to look once more at every patched slot: by
then sglang's own plugins, which run after us, have had their say.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from overlay.model import Method, Slot, Target


@dataclass(frozen=True)
class Seam:
    """A constructor, and the role of the process that calls it."""

    slot: Slot
    role: str


SEAMS = (
    Seam(Slot("sglang.srt.managers.scheduler", "Scheduler.__init__"), "scheduler"),
    Seam(Slot("sglang.srt.managers.detokenizer_manager", "DetokenizerManager.__init__"), "detokenizer"),
    Seam(Slot("sglang.srt.managers.data_parallel_controller", "DataParallelController.__init__"), "dp-controller"),
    Seam(Slot("sglang.srt.managers.tokenizer_manager", "TokenizerManager.__init__"), "engine"),
)


def target(seam: Seam, ready: Callable[[str, dict[str, int]], None]) -> Target:
    """The wrapper around a seam that calls `ready(role, ranks)` once the object is built."""

    def make(_original: object) -> object:
        def wrapper(
            wrapped: Callable[..., object], _instance: object, args: tuple[object, ...], kwargs: dict[str, object]
        ) -> object:
            result = wrapped(*args, **kwargs)
            ready(_role(seam), ranks(_title()))
            return result

        return wrapper

    return Target(seam.slot, Method.WRAP, make)


def ranks(title: str) -> dict[str, int]:
    """The ranks in a process title such as `sglang::scheduler_DP1_TP0`: {"dp": 1, "tp": 0}.

    sglang names a rank only where its group has more than one member (managers/scheduler.py, run_scheduler_process).
    """
    found = re.match(r"sglang::[a-z]+(?:_[a-z]+)*((?:_[A-Z_]+\d+)+)", title)
    pairs = re.findall(r"_([A-Z_]+?)(\d+)", found[1]) if found else []
    return {name.lower(): int(number) for name, number in pairs}


def _role(seam: Seam) -> str:
    """The tokenizer manager lives in the HTTP server, or in the process of whoever built an `sglang.Engine`."""
    if seam.role == "engine" and "sglang.srt.entrypoints.http_server" in sys.modules:
        return "http-server"
    return seam.role


def _title() -> str:
    try:
        return Path("/proc/self/cmdline").read_bytes().partition(b"\0")[0].decode(errors="replace")
    except OSError:
        return ""
