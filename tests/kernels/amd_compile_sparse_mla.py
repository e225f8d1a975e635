"""Compiles the sparse attention of a decode for one AMD GPU, without one, and prints what came out.

``python amd_compile_sparse_mla.py gfx950 64`` prints a JSON list with one object per variant. It is a program, not a
test module, because it needs Triton's compiler in a process where the other tests run Triton's interpreter.
"""

from __future__ import annotations

import json
import sys
from typing import Any

from triton.backends.compiler import GPUTarget

from patches.kernels import sparse_mla as kernel
from tests.kernels.amd_assembly import build

#: Heads, keys and tokens a page of the second scope: DeepSeek-V4 Flash and Pro, whose q is padded to all heads.
VARIANTS = ((64, 512, 64), (128, 1024, 64), (128, 64, 2), (8, 0, 1))


def compile_decode(heads: int, keys: int, page: int, target: GPUTarget) -> dict[str, Any]:
    """As the launcher compiles it; `keys` of 0 is one scope alone."""
    config = kernel.launch_config(heads)
    function = kernel._decode_kernel
    kinds = {"out_ptr": "*bf16", "q_ptr": "*bf16", "lse_ptr": "*fp32", "sink_ptr": "*fp32", "scale": "fp32"}
    for scope in ("main", "extra"):
        kinds |= {f"{scope}_ptr": "*u8", f"{scope}_halves_ptr": "*bf16", f"{scope}_page_stride": "i32"}
        kinds |= {f"{scope}_indices_ptr": "*i32", f"{scope}_lengths_ptr": "*i32", f"{scope}_keys": "i32"}
    kinds["tokens_per_request"] = "i32"
    constants: dict[str, Any] = {
        "H": heads,
        "MAIN_PAGE": 128,
        "EXTRA_PAGE": page,
        "BLOCK_H": config.block_h,
        "BLOCK_N": config.block_n,
        "FNUZ": target.arch == "gfx942",
    }
    if not keys:
        constants |= {name: None for name in kinds if name.startswith("extra_") and name.endswith("_ptr")}
    signature = {name: kind for name, kind in kinds.items() if name not in constants}
    anywhere = ("indices_ptr", "lengths_ptr", "sink_ptr")
    aligned = [n for n in signature if n.endswith(("_ptr", "_stride")) and not n.endswith(anywhere)]
    made = build(function, signature, constants, aligned, config.num_warps, target, num_stages=config.num_stages)
    label = f"h={heads}, {f'second scope in pages of {page}' if keys else 'one scope'}"
    return {"label": label, "shape_class": kernel.shape_class(heads), "config": config._asdict(), **made}


if __name__ == "__main__":
    chosen = GPUTarget("hip", sys.argv[1], int(sys.argv[2]))
    json.dump([compile_decode(*variant, chosen) for variant in VARIANTS], sys.stdout)
