"""What the overlay costs one process of a server, beside what sglang does itself.

    python -m overlay --simulate gfx942 benchmarks/activation.py [--json out.json]

Imports what the HTTP server imports, and adds up the processor time that the overlay takes in it: to activate (import
itself, plan, arm) and, as modules execute, to prove their slots and to fill them. What the overlay shares with sglang
is imported before: the standard library as torch has it, and packaging.version, which transformers loads. Of this
process the simulation has loaded half of the overlay already, so importing it is timed in another one, which is not
simulated. The kernels of patches, which load with them, count. The garbage collector is off: a full collection of what
torch made hits whoever allocates next.
Another sglang: put it on PYTHONPATH. No GPU.
"""

from __future__ import annotations

import argparse
import gc
import importlib
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from functools import wraps
from pathlib import Path
from subprocess import PIPE
from typing import Any

from overlay import boot, gates

SERVER = "sglang.srt.entrypoints.http_server"
_IMPORT = """
import gc, importlib.metadata, time, torch, packaging.version
gc.disable()
begun = time.thread_time()
import overlay.runtime
print((time.thread_time() - begun) * 1000)
"""


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


def import_ms() -> float:
    """Milliseconds to import the overlay in a process that is not simulated."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith(gates.PREFIX)}
    environ = {**kept, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    return float(subprocess.run([sys.executable, "-c", _IMPORT], env=environ, stdout=PIPE, check=True).stdout)


def measure(module: str) -> dict[str, float]:
    """Import a module of sglang; milliseconds of the overlay by what it did, and of the whole import."""
    watch = Stopwatch()
    watch.ms["import the overlay"] = import_ms()

    def activate() -> None:
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
