"""Verifies a patch with a fault and one without, each in a process of its own, and prints what became of them as JSON.

As a worker (with a request after the fault) it measures; without one it supervises such workers.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import triton
import triton.language as tl
from torch import Tensor

from overlay.registry import Registry
from overlay.verify import worker
from overlay.verify.case import Case
from overlay.verify.request import Request
from overlay.verify.shapes import Shapes
from overlay.verify.supervise import Supervisor
from patches.proofs import argmax
from tests.unit.engine_support import BETA_PATCH, PATCH

PATCHES = Registry(
    (replace(PATCH, kernels="overlay.verify.worker:faulty"), replace(BETA_PATCH, kernels="overlay.verify.worker:sound"))
)


@triton.jit  # type: ignore[untyped-decorator]
def _astray_kernel(ptr: tl.tensor) -> None:
    tl.store(ptr + (tl.program_id(0).to(tl.int64) + 1) * (1 << 40), 1)


def astray(logits: Tensor) -> tuple[Tensor]:
    """Writes where nothing is, which ends every later call of the process, or the process."""
    tokens = argmax.native(logits)
    _astray_kernel[(8,)](tokens)
    return (tokens,)


def waiting(logits: Tensor) -> tuple[Tensor]:
    """Waits for the GPU: that breaks a capture off, and leaves torch's allocator in the middle of it."""
    tokens = argmax.native(logits)
    return (tokens + 0 * int(tokens[0]),)


FAULTS: dict[str, Callable[[Case], Case]] = {
    "astray": lambda case: replace(case, fused=astray),
    "waiting": lambda case: replace(case, fused=waiting),
    "uncapturable": lambda case: replace(case, replaced=waiting),
}


def sound(shapes: Shapes) -> Iterator[Case]:
    yield next(iter(argmax.cases(shapes)))


def work(fault: str, request: str) -> None:
    def faulty(shapes: Shapes) -> Iterator[Case]:
        yield from map(FAULTS[fault], sound(shapes))

    functions: Any = vars(worker)
    functions.update(sound=sound, faulty=faulty, load=lambda _environ: PATCHES)
    worker.main(request)


def supervise(fault: str) -> None:
    supervisor = Supervisor(PATCHES, (sys.executable, __file__, fault))
    results = supervisor.results(Request(("alpha", "beta")), together=False)
    print(json.dumps([{"state": one.state, "failures": [o.failure for o in one.failures]} for one in results]))


if __name__ == "__main__":
    work(*sys.argv[1:]) if len(sys.argv) == 3 else supervise(sys.argv[1])
