"""Where a process of sglang shows what it is: the constructors of its long-lived managers, and the function that
connects the ranks of a server.

They are wrapped, after the fact and from outside. A built manager tells the role, and is the moment to look once more
at every patched slot: by then sglang's own plugins, which run after us, have had their say. Ranks that were just
connected can be asked whether they are alike, before any of them loads a weight.
"""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Callable
from functools import partial

from overlay import lineage
from overlay.model import Method, Slot, Target
from overlay.records import dataclass


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

#: Every process that is a rank calls it once, and returns with the others: the groups it makes connect all of them.
CONNECT = Slot("sglang.srt.distributed.parallel_state", "init_distributed_environment")

#: Where ranks are compared: without one of these a server cannot promise that its ranks are alike.
BINDING = frozenset({CONNECT, SEAMS[0].slot})


def targets(ready: Callable[[str, dict[str, int]], None], connected: Callable[[dict[str, int]], None]) -> list[Target]:
    """The wrappers around every seam: they call `ready(role, ranks)` once a manager is built, and `connected(ranks)`
    once torch.distributed is up."""
    managers = [_after(seam.slot, partial(_manager_built, seam, ready)) for seam in SEAMS]
    return [*managers, _after(CONNECT, lambda: connected(ranks(_title())))]


def _manager_built(seam: Seam, ready: Callable[[str, dict[str, int]], None]) -> None:
    ready(_role(seam), ranks(_title()))


def _after(slot: Slot, then: Callable[[], None]) -> Target:
    """The wrapper that calls `then` when what stands in the slot has returned."""

    def make(_original: object) -> object:
        def wrapper(
            wrapped: Callable[..., object], _instance: object, args: tuple[object, ...], kwargs: dict[str, object]
        ) -> object:
            result = wrapped(*args, **kwargs)
            then()
            return result

        return wrapper

    return Target(slot, Method.WRAP, make)


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
    return lineage.title(os.getpid())
