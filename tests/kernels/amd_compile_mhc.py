"""Compiles the mHC kernels for one AMD GPU, without one, and prints what came out.

``python amd_compile_mhc.py gfx942 64`` prints a JSON list with one object per kernel and variant. It is a program, not
a test module, because it needs Triton's compiler in a process where the other tests run Triton's interpreter.
"""

from __future__ import annotations

import json
import sys
from typing import Any

import triton
from triton.backends.compiler import GPUTarget

from patches.kernels import mhc as kernel
from tests.kernels.amd_assembly import build

HIDDEN = (4096, 7168)
ITERATIONS = 20


def _signature(function: Any, element: str, in_elements: tuple[str, ...]) -> dict[str, str]:
    """16-bit tensors are `in_elements`, other pointers are float32, strides and counts are integers."""
    names = function.arg_names
    pointers = {n: f"*{element}" if n in in_elements else "*fp32" for n in names if n.endswith("_ptr")}
    floats = dict.fromkeys(("rms_eps", "hc_eps", "post_mult", "norm_eps"), "fp32")
    integers = dict.fromkeys(("num_tokens", "x_stride", "fn_row_stride"), "i32")
    return pointers | {name: kind for name, kind in (floats | integers).items() if name in names}


def _named(function: str, hidden: int, element: str, norm: bool, config: kernel.LaunchConfig) -> dict[str, Any]:
    """The first kernel is the same with and without a norm after the second."""
    tuned = config._asdict()
    del tuned["block_m"]
    return {
        "label": f"{function}, c={hidden}, {element}{', norm' if norm else ''}",
        "function": function,
        "shape_class": f"c={hidden},norm={int(norm)}",
        "config": tuned,
    }


def compile_post(hidden: int, element: str, target: GPUTarget) -> dict[str, Any]:
    """As the launcher compiles it: 16-byte aligned pointers, a contiguous `fn`, any number of tokens."""
    config = kernel.launch_config(hidden, False, target.warp_size)
    function = kernel._post_kernel
    signature = _signature(function, element, ("residual_out_ptr", "x_ptr", "residual_ptr"))
    constants = {"C": hidden, "BLOCK_M": config.block_m, "BLOCK_C": config.block_split, "fn_column_stride": 1}
    aligned = [name for name in signature if name.endswith(("_ptr", "_stride"))]
    made = build(function, signature, constants, aligned, config.post_warps, target)
    return {**_named("post", hidden, element, False, config), **made}


def compile_pre(hidden: int, element: str, norm: bool, target: GPUTarget) -> dict[str, Any]:
    config = kernel.launch_config(hidden, norm, target.warp_size)
    function = kernel._pre_kernel
    signature = _signature(function, element, ("layer_input_ptr", "residual_ptr", "norm_weight_ptr"))
    splits = triton.cdiv(hidden, config.block_split)
    constants = {
        "C": hidden,
        "SPLITS": splits,
        "SPLITS_POW2": triton.next_power_of_2(splits),
        "ITERATIONS": ITERATIONS,
        "NORM": norm,
        "BLOCK_C": config.block_pre,
    }
    aligned = [name for name in signature if name.endswith("_ptr")]
    made = build(function, signature, constants, aligned, config.pre_warps, target)
    return {**_named("pre", hidden, element, norm, config), **made}


if __name__ == "__main__":
    chosen = GPUTarget("hip", sys.argv[1], int(sys.argv[2]))
    builds = [compile_post(hidden, element, chosen) for hidden in HIDDEN for element in ("bf16", "fp16")]
    builds += [
        compile_pre(hidden, element, norm, chosen)
        for hidden in HIDDEN
        for element in ("bf16", "fp16")
        for norm in (False, True)
    ]
    json.dump(builds, sys.stdout)
