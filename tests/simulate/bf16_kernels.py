"""Run as a program: one Triton kernel per kind of bf16 arithmetic, in the interpreter, against torch.

Prints {operation: how many of the elements differ}. Not a test module: the interpreter reads a kernel's source from its
file, and a simulated process has to be one from its start.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from typing import Any

import torch
import triton
import triton.language as tl

N = 64


@triton.jit  # type: ignore[untyped-decorator]
def cast(x, y, out, N: tl.constexpr):  # type: ignore[no-untyped-def]
    i = tl.arange(0, N)
    tl.store(out + i, tl.load(x + i).to(tl.float32).to(tl.bfloat16))


@triton.jit  # type: ignore[untyped-decorator]
def cast_fp32(x, y, out, N: tl.constexpr):  # type: ignore[no-untyped-def]
    i = tl.arange(0, N)
    tl.store(out + i, tl.load(x + i) * 1.0)


@triton.jit  # type: ignore[untyped-decorator]
def add(x, y, out, N: tl.constexpr):  # type: ignore[no-untyped-def]
    i = tl.arange(0, N)
    tl.store(out + i, tl.load(x + i) + tl.load(y + i))


@triton.jit  # type: ignore[untyped-decorator]
def divide(x, y, out, N: tl.constexpr):  # type: ignore[no-untyped-def]
    i = tl.arange(0, N)
    tl.store(out + i, tl.load(x + i) / tl.load(y + i))


@triton.jit  # type: ignore[untyped-decorator]
def constant(x, y, out, N: tl.constexpr):  # type: ignore[no-untyped-def]
    i = tl.arange(0, N)
    tl.store(out + i, tl.load(x + i) * tl.full((N,), 1.7, tl.bfloat16))


@triton.jit  # type: ignore[untyped-decorator]
def select(x, y, out, N: tl.constexpr):  # type: ignore[no-untyped-def]
    i = tl.arange(0, N)
    a, b = tl.load(x + i), tl.load(y + i)
    tl.store(out + i, tl.where(a > b, a, b) + (a > b).to(tl.bfloat16))


@triton.jit  # type: ignore[untyped-decorator]
def total(x, y, out, N: tl.constexpr):  # type: ignore[no-untyped-def]
    i = tl.arange(0, N)
    tl.store(out + i, tl.sum(tl.load(x + i), 0) + tl.zeros((N,), tl.bfloat16))


@triton.jit  # type: ignore[untyped-decorator]
def maximum(x, y, out, N: tl.constexpr):  # type: ignore[no-untyped-def]
    i = tl.arange(0, N)
    tl.store(out + i, tl.max(tl.load(x + i), 0) + tl.zeros((N,), tl.bfloat16))


@triton.jit  # type: ignore[untyped-decorator]
def running(x, y, out, N: tl.constexpr):  # type: ignore[no-untyped-def]
    i = tl.arange(0, N)
    tl.store(out + i, tl.cumsum(tl.load(x + i), 0))


@triton.jit  # type: ignore[untyped-decorator]
def dot(x, y, out, N: tl.constexpr):  # type: ignore[no-untyped-def]
    i = tl.arange(0, 8)[:, None] * 8 + tl.arange(0, 8)[None, :]
    tl.store(out + i, tl.dot(tl.load(x + i), tl.load(y + i)).to(tl.bfloat16))


@triton.jit  # type: ignore[untyped-decorator]
def fused_multiply_add(x, y, out, N: tl.constexpr):  # type: ignore[no-untyped-def]
    i = tl.arange(0, N)
    a, b = tl.load(x + i), tl.load(y + i)
    tl.store(out + i, tl.fma(a, b, a))


def _wide(
    function: Callable[[torch.Tensor, torch.Tensor], torch.Tensor],
) -> Callable[[torch.Tensor, torch.Tensor], Any]:
    return lambda a, b: function(a.float(), b.float()).to(torch.bfloat16)


EXPECTED: dict[Any, Callable[[torch.Tensor, torch.Tensor], Any]] = {
    cast: lambda a, b: a,
    add: lambda a, b: a + b,
    divide: lambda a, b: a / b,
    constant: lambda a, b: a * torch.tensor(1.7, dtype=torch.bfloat16),
    select: lambda a, b: torch.where(a > b, a, b) + (a > b).to(torch.bfloat16),
    total: _wide(lambda a, b: a.sum().expand(N)),
    maximum: _wide(lambda a, b: a.max().expand(N)),
    running: _wide(lambda a, b: a.cumsum(0)),
    dot: _wide(lambda a, b: (a.view(8, 8) @ b.view(8, 8)).flatten()),
    fused_multiply_add: _wide(lambda a, b: a * b + a),
}


def main() -> None:
    torch.manual_seed(0)
    a, b = (torch.randn(N).to(torch.bfloat16) for _ in range(2))
    different: dict[str, int | str] = {}
    for kernel, expected in EXPECTED.items():
        out = torch.zeros(N, dtype=torch.bfloat16)
        try:
            kernel[(1,)](a, b, out, N)
        except Exception as error:  # noqa: BLE001 - without the correction some kernels cannot run at all
            different[kernel.fn.__name__] = type(error).__name__
            continue
        different[kernel.fn.__name__] = int((out != expected(a, b)).sum())
    wide, out = torch.randn(N), torch.zeros(N, dtype=torch.bfloat16)
    cast_fp32[(1,)](wide, wide, out, N)
    different["cast_fp32"] = int((out != wide.to(torch.bfloat16)).sum())
    truncated = (wide.view(torch.int32) >> 16 << 16).view(torch.float32).to(torch.bfloat16)
    different["cast_fp32 truncated"] = int((out != truncated).sum())
    json.dump(different, sys.stdout)


if __name__ == "__main__":
    main()
