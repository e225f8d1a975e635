"""Compiles every variant of the Gemma RMSNorm kernel for one AMD GPU, without one, and prints what came out.

``python amd_compile.py gfx942 64`` prints a JSON list with one object per variant. It is a program, not a test module,
because it needs Triton's compiler in a process where the other tests run Triton's interpreter.
"""

from __future__ import annotations

import json
import sys
from typing import Any, NamedTuple

from triton.backends.compiler import GPUTarget

from patches.kernels import gemma_rmsnorm as kernel
from tests.kernels.amd_assembly import build

# One length for each tile that launch_config chooses, and 5120: two of its blocks in five are masked.
LENGTHS = (64, 128, 256, 512, 1024, 2048, 4096, 5120, 8192, 16384)


class Variant(NamedTuple):
    """Element types by their Triton names; ``None``: that input is absent."""

    n: int
    x: str
    weight: str
    residual: str | None
    post: str | None


def variants() -> list[Variant]:
    return [
        Variant(n, x, weight, residual, post)
        for n in LENGTHS
        for x in ("bf16", "fp16")
        for weight, residual, post in (
            (x, None, None),
            ("fp32", None, None),
            (x, x, None),
            (x, x, x),
            ("fp32", "fp32", "fp32"),
        )
    ]


def compile_variant(variant: Variant, target: GPUTarget) -> dict[str, Any]:
    """Compiles as the launcher does for contiguous tensors: 16-byte aligned pointers, strides that 16 divides."""
    total = None if variant.residual is None else "fp32" if variant.residual == "fp32" else variant.x
    pointers = {
        "y_ptr": variant.x,
        "s_ptr": total,
        "x_ptr": variant.x,
        "residual_ptr": variant.residual,
        "post_ptr": variant.post,
        "weight_ptr": variant.weight,
    }
    config = kernel.launch_config(variant.n, target.warp_size)
    constants: dict[str, Any] = {name: None for name, element in pointers.items() if element is None}
    constants |= {"N": variant.n, "BLOCK": config.block, "ROWS": config.rows, "PDL": False}
    signature = {name: f"*{element}" for name, element in pointers.items() if element is not None}
    signature |= {"m": "i32", "x_stride": "i32", "residual_stride": "i32", "post_stride": "i32", "eps": "fp32"}
    aligned = [name for name, kind in signature.items() if kind.startswith("*") or name.endswith("_stride")]
    made = build(kernel._gemma_rmsnorm_kernel, signature, constants, aligned, config.num_warps, target)
    inputs = [variant.x, f"weight {variant.weight}"]
    inputs += [f"{name} {kind}" for name, kind in (("residual", variant.residual), ("post", variant.post)) if kind]
    label = f"n={variant.n}, {', '.join(inputs)}"
    tuned = {"rows": config.rows, "num_warps": config.num_warps}
    return {"label": label, "shape_class": f"n={variant.n}", "config": tuned, **made}


if __name__ == "__main__":
    chosen = GPUTarget("hip", sys.argv[1], int(sys.argv[2]))
    json.dump([compile_variant(variant, chosen) for variant in variants()], sys.stdout)
