"""What the overlay costs one process of a server, beside what sglang does itself.

    python -m overlay --simulate gfx942 benchmarks/activation.py [--json out.json]

Imports what the HTTP server imports, and adds up the processor time that the overlay takes in it: to activate (import
itself, plan, arm) and, as modules execute, to prove their slots and to fill them. torch is imported before: what the
overlay needs of the standard library, sglang loads as well. The kernels of patches, which load with them, count. The
garbage collector is off: a full collection of what torch made hits whoever allocates next.
Another sglang: put it on PYTHONPATH. No GPU.
"""

from __future__ import annotations

import argparse
import gc
import importlib
import json
import os
import sys
import time
from collections.abc import Callable
from functools import wraps
from pathlib import Path
from typing import Any

from overlay import boot

SERVER = "sglang.srt.entrypoints.http_server"


class Stopwatch:
    """Processor time by label, of calls that may be nested; what an inner call takes counts for it alone."""

    def __init__(self) -> None:
        self.ms: dict[str, float] = {}
        self._inner = [0.0]

    def around(self, label: str, function: Callable[..., Any]) -> Callable[..., Any]:
        @wraps(function)
        def timed(*args: Any, **kwargs: Any) -> Any:
            self._inner.append(0.0)
            begun = time.thread_time()
            try:
                return function(*args, **kwargs)
            finally:
                taken = (time.thread_time() - begun) * 1000
                self.ms[label] = self.ms.get(label, 0.0) + taken - self._inner.pop()
                self._inner[-1] += taken

        return timed


def measure(module: str) -> dict[str, float]:
    """Import a module of sglang; milliseconds of the overlay by what it did, and of the whole import."""
    watch = Stopwatch()

    def activate() -> None:
        watch.around("import the overlay", importlib.import_module)("overlay.runtime")
        from overlay import runtime
        from overlay.install import Ledger
        from overlay.plan import make_plan
        from overlay.preimage import Proof

        setattr(runtime, "make_plan", watch.around("plan", make_plan))  # noqa: B010 - a name that it only imports
        for owner, name, label in (
            (Proof, "__init__", "prove"),
            (Proof, "objection", "prove"),
            (Proof, "foreign", "prove"),
            (Ledger, "install", "install"),
            (runtime.Runtime, "arm", "arm and report"),
            (runtime.Runtime, "_record", "arm and report"),
        ):
            setattr(owner, name, watch.around(label, getattr(owner, name)))
        watch.around("load and check the patches", activated)()

    gc.disable()
    activated = boot._activate
    boot._activate = activate
    begun = time.thread_time()
    importlib.import_module(module)
    taken = (time.thread_time() - begun) * 1000
    return {**watch.ms, "all of the overlay": sum(watch.ms.values()), f"import {module}": taken}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--module", default=SERVER, help="what to import of sglang")
    parser.add_argument("--json", type=Path, help="also write the figures to this file")
    arguments = parser.parse_args()
    import torch

    assert torch
    if not boot.wanted(os.environ) or "sglang" in sys.modules:
        print("the overlay is off here: see the command above", file=sys.stderr)
        return 2
    figures = measure(arguments.module)
    for label, ms in figures.items():
        print(f"{label:40}{ms:10.1f} ms")
    if arguments.json:
        arguments.json.write_text(json.dumps(figures))
    return 0


if __name__ == "__main__":
    sys.exit(main())
