"""Compiles every variant of the attention prologue for one AMD GPU, without one, and prints what came out.

``python amd_compile_qk_norm_mrope.py gfx942 64`` prints a JSON list with one object per variant. It is a program, not a
test module, because it needs Triton's compiler in a process where the other tests run Triton's interpreter.
"""

from __future__ import annotations

import json
import re
import sys
from collections import Counter
from typing import Any

from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource
from triton.compiler import compile as triton_compile

from patches.kernels import qk_norm_mrope as kernel
from patches.kernels.qk_norm_mrope import Geometry

SECTIONS = {64: (12, 10, 10), 128: (24, 20, 20), 256: (44, 42, 42)}


def variants() -> list[tuple[Geometry, str]]:
    """Geometries with the Triton name of the element type."""
    return [
        (Geometry(32, 8, head_size, SECTIONS[head_size], interleaved, neox, 1e-6), element)
        for head_size in kernel.HEAD_SIZES
        for interleaved, neox in ((True, True), (False, True), (True, False))
        for element in ("bf16", "fp16")
    ]


def compile_variant(geometry: Geometry, element: str, arch: str, warp_size: int) -> dict[str, Any]:
    """Compiles as the launcher does: 16-byte aligned pointers, cache strides that 16 divides, any position strides."""
    config = kernel.launch_config(geometry, warp_size)
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
    signature |= dict.fromkeys(constants, "constexpr")
    aligned = [n for n in names if n.endswith(("_ptr", "_slot_stride", "_head_stride"))]
    attributes = {(names.index(name),): [["tt.divisibility", 16]] for name in aligned}
    source = ASTSource(kernel._qk_norm_mrope_kernel, signature, constants, attributes)
    compiled = triton_compile(source, target=GPUTarget("hip", arch, warp_size), options={"num_warps": config.num_warps})
    assembly = compiled.asm["amdgcn"]

    def metadata(key: str) -> int:
        found = re.search(rf"\.{key}:\s+(\d+)", assembly)
        assert found is not None, f"{key} is not in the assembly"
        return int(found.group(1))

    return {
        "geometry": geometry,
        "element": element,
        "config": config,
        "vgprs": metadata("vgpr_count"),
        "vgpr_spills": metadata("vgpr_spill_count"),
        "sgpr_spills": metadata("sgpr_spill_count"),
        "memory_operations": Counter(re.findall(r"\b(?:global|buffer|scratch)_(?:load|store)_\w+", assembly)),
    }


if __name__ == "__main__":
    arch, warp_size = sys.argv[1], int(sys.argv[2])
    json.dump([compile_variant(*variant, arch, warp_size) for variant in variants()], sys.stdout)
