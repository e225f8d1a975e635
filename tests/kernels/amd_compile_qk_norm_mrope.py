"""Compiles every variant of the attention prologue for one AMD GPU, without one, and prints what came out.

``python amd_compile_qk_norm_mrope.py gfx942 64`` prints a JSON list with one object per variant. It is a program, not a
test module, because it needs Triton's compiler in a process where the other tests run Triton's interpreter.
"""

from __future__ import annotations

import json
import sys
from typing import Any

from triton.backends.compiler import GPUTarget

from patches.kernels import qk_norm_mrope as kernel
from patches.kernels.qk_norm_mrope import Geometry
from tests.kernels.amd_assembly import build

SECTIONS = {64: (12, 10, 10), 128: (24, 20, 20), 256: (44, 42, 42)}


def variants() -> list[tuple[Geometry, str]]:
    """Geometries with the Triton name of the element type."""
    return [
        (Geometry(32, 8, head_size, SECTIONS[head_size], interleaved, neox, 1e-6), element)
        for head_size in kernel.HEAD_SIZES
        for interleaved, neox in ((True, True), (False, True), (True, False))
        for element in ("bf16", "fp16")
    ]


def compile_variant(geometry: Geometry, element: str, target: GPUTarget) -> dict[str, Any]:
    """Compiles as the launcher does: 16-byte aligned pointers, cache strides that 16 divides, any position strides."""
    config = kernel.launch_config(geometry, target.warp_size)
    constants: dict[str, Any] = {
        "NUM_Q_HEADS": geometry.num_q_heads,
        "NUM_KV_HEADS": geometry.num_kv_heads,
        "D": geometry.head_size,
        "SECTION_T": geometry.mrope_section[0],
        "SECTION_H": geometry.mrope_section[1],
        "SECTION_W": geometry.mrope_section[2],
        "INTERLEAVED": geometry.interleaved,
        "NEOX": geometry.neox,
        "HEADS": config.heads,
    }
    names = kernel._qk_norm_mrope_kernel.arg_names
    signature = {name: f"*{element}" for name in names if name.endswith("_ptr")}
    signature |= {"positions_ptr": "*i64", "slots_ptr": "*i64", "eps": "fp32"}
    signature |= {name: "i32" for name in names if name.endswith("_stride")}
    aligned = [n for n in names if n.endswith(("_ptr", "_slot_stride", "_head_stride"))]
    aligned = [n for n in aligned if n not in ("positions_ptr", "slots_ptr")]
    made = build(kernel._qk_norm_mrope_kernel, signature, constants, aligned, config.num_warps, target)
    style = f"{'interleaved' if geometry.interleaved else 'sections'}, {'neox' if geometry.neox else 'pairs'}"
    shape_class = kernel.shape_class(geometry)
    label = f"{shape_class}, {element}, {style}"
    return {"label": label, "shape_class": shape_class, "config": config._asdict(), **made}


if __name__ == "__main__":
    chosen = GPUTarget("hip", sys.argv[1], int(sys.argv[2]))
    json.dump([compile_variant(*variant, chosen) for variant in variants()], sys.stdout)
