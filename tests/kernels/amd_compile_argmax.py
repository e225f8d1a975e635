"""Compiles every variant of the argmax kernels for one AMD GPU, without one, and prints what came out.

``python amd_compile_argmax.py gfx942 64`` prints a JSON list with one object per variant. It is a program, not a test
module, because it needs Triton's compiler in a process where the other tests run Triton's interpreter.
"""

from __future__ import annotations

import json
import sys
from typing import Any

from triton.backends.compiler import GPUTarget

from patches.kernels import argmax as kernel
from tests.kernels.amd_assembly import build

COMPUTE_UNITS = 304
BATCHES = (1, 304, 350, 700, 1000, 4000)
"""One for each number of threads and of blocks in flight, and two for parts of a row."""


def compile_for(
    function: Any, signature: dict[str, str], constants: dict[str, Any], threads: int, target: GPUTarget
) -> dict[str, Any]:
    """Compiles as the launcher does: nothing is known of pointers and integers but their types."""
    return {
        "label": f"{function.__name__.strip('_')}, {', '.join(_words(signature, constants))}",
        "function": function.__name__,
        "aligned": constants.get("ALIGNED", False),
        **build(function, signature, constants, [], threads // target.warp_size, target),
    }


def _words(signature: dict[str, str], constants: dict[str, Any]) -> list[str]:
    """Element types of the output and of what is read, then the constants."""
    pointers = [kind.strip("*") for kind in signature.values() if kind.startswith("*")]
    return pointers + [f"{name.lower()}={value}" for name, value in constants.items()]


def builds(target: GPUTarget) -> list[dict[str, Any]]:
    made = [
        compile_for(
            kernel._finish_kernel,
            {"out_ptr": f"*{index}", "keys_ptr": "*i64", "parts": "i32", "out_stride": "i32"},
            {"BLOCK": kernel._FINISH_BLOCK},
            target.warp_size,
            target,
        )
        for index in ("i32", "i64")
    ]
    for element, element_bytes in (("bf16", 2), ("fp16", 2), ("fp32", 4)):
        for batch in BATCHES:
            chosen = kernel.partition(batch, 151936, element_bytes, COMPUTE_UNITS)
            keys = chosen.parts > 1
            integers = dict.fromkeys(("n_cols", "row_stride", "out_stride", "blocks"), "i32")
            signature = {"out_ptr": "*i64" if keys else "*i32", "x_ptr": f"*{element}", **integers}
            made += [
                compile_for(
                    kernel._argmax_kernel,
                    signature,
                    {"BLOCK": chosen.block, "ALIGNED": aligned, "KEYS": keys, "STAGES": chosen.stages},
                    chosen.threads,
                    target,
                )
                for aligned in (True, False)
            ]
    return made


if __name__ == "__main__":
    json.dump(builds(GPUTarget("hip", sys.argv[1], int(sys.argv[2]))), sys.stdout)
