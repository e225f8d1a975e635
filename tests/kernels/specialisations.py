"""Which builds Triton would make of the kernels for a GPU that is not here, as batches of every size come.

``python specialisations.py gfx942 64`` prints, for each entry of `batches.KERNELS`, how many builds a batch of two
needs and which others the other batches do. Triton derives them from the arguments of a call by the rules of the
target's own backend; a hook keeps it from compiling any.
"""

from __future__ import annotations

import json
import sys
from types import SimpleNamespace
from typing import Any

from triton import knobs
from triton.backends.compiler import GPUTarget
from triton.runtime import driver

from patches.kernels import argmax
from tests.kernels import batches

COMPUTE_UNITS = 304

seen: dict[str, str] = {}


def only_note(**what: Any) -> bool:
    seen[what["key"]] = what["repr"]
    return True


def builds_of(name: str) -> dict[str, Any]:
    """A server warms up with a batch of two, after which each batch may only take builds that are there."""
    seen.clear()
    batches.KERNELS[name](2, "cpu", False)
    warm = set(seen)
    sizes = batches.sampled_batches(COMPUTE_UNITS) if name == "sampling" else batches.SIZES
    for size in sizes:
        batches.KERNELS[name](size, "cpu", True)
    return {"warm": len(warm), "later": sorted({seen[key] for key in set(seen) - warm})}


if __name__ == "__main__":
    target = GPUTarget("hip", sys.argv[1], int(sys.argv[2]))
    driver.set_active(
        SimpleNamespace(get_current_target=lambda: target, get_current_device=lambda: 0, get_current_stream=lambda _: 0)
    )
    knobs.runtime.jit_cache_hook = only_note
    vars(argmax)["_device"] = lambda _: (COMPUTE_UNITS, target.warp_size)
    json.dump({name: builds_of(name) for name in batches.KERNELS}, sys.stdout)
