"""Sinkhorn normalisation of one 4x4 matrix in registers, for Triton kernels.

DeepSeek-V4's form, in the exponential domain and asymmetric: `softmax` of every row, plus `eps`; then every column is
divided by its sum plus `eps`; then, `iterations - 1` times, every row and every column in turn. It is not the symmetric
form in the logarithmic domain, whose result differs by as much as 0.9 where logits spread over 40.

Every element is a tensor of its own. A row and a column are then equally near, and no step exchanges data between
threads: with a reduction across lanes in each of 40 dependent steps, their latency would be the kernel's.
"""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit  # type: ignore[untyped-decorator]
def quarters(v: tl.tensor) -> tuple[tl.tensor, tl.tensor, tl.tensor, tl.tensor]:
    """Every fourth element of a vector ``[4 k]``: the four ``[k]`` that start at elements 0, 1, 2 and 3."""
    K: tl.constexpr = v.shape[0] // 4
    even, odd = tl.split(tl.reshape(v, (2 * K, 2)))
    v0, v2 = tl.split(tl.reshape(even, (K, 2)))
    v1, v3 = tl.split(tl.reshape(odd, (K, 2)))
    return v0, v1, v2, v3


@triton.jit  # type: ignore[untyped-decorator]
def interleaved(v0: tl.tensor, v1: tl.tensor, v2: tl.tensor, v3: tl.tensor) -> tl.tensor:
    """The inverse of ``quarters``."""
    K: tl.constexpr = v0.shape[0]
    even = tl.reshape(tl.join(v0, v2), (2 * K,))
    odd = tl.reshape(tl.join(v1, v3), (2 * K,))
    return tl.reshape(tl.join(even, odd), (4 * K,))


@triton.jit  # type: ignore[untyped-decorator]
def _softmax(
    a: tl.tensor, b: tl.tensor, c: tl.tensor, d: tl.tensor, eps: tl.tensor
) -> tuple[tl.tensor, tl.tensor, tl.tensor, tl.tensor]:
    """The softmax of four numbers, plus ``eps``."""
    most = tl.maximum(tl.maximum(a, b), tl.maximum(c, d))
    a, b, c, d = tl.exp(a - most), tl.exp(b - most), tl.exp(c - most), tl.exp(d - most)
    total = (a + b) + (c + d)
    return a / total + eps, b / total + eps, c / total + eps, d / total + eps


@triton.jit  # type: ignore[untyped-decorator]
def _normalized(
    a: tl.tensor, b: tl.tensor, c: tl.tensor, d: tl.tensor, eps: tl.tensor
) -> tuple[tl.tensor, tl.tensor, tl.tensor, tl.tensor]:
    """Four numbers divided by their sum plus ``eps``."""
    scale = 1.0 / ((a + b) + (c + d) + eps)
    return a * scale, b * scale, c * scale, d * scale


@triton.jit  # type: ignore[untyped-decorator]
def sinkhorn_4x4(logits: tl.tensor, eps: tl.tensor, ITERATIONS: tl.constexpr) -> tl.tensor:
    """The normalised matrix of ``logits``: both float32 ``[16]``, row by row."""
    column0, column1, column2, column3 = quarters(logits)
    a0, b0, c0, d0 = quarters(column0)
    a1, b1, c1, d1 = quarters(column1)
    a2, b2, c2, d2 = quarters(column2)
    a3, b3, c3, d3 = quarters(column3)

    a0, a1, a2, a3 = _softmax(a0, a1, a2, a3, eps)
    b0, b1, b2, b3 = _softmax(b0, b1, b2, b3, eps)
    c0, c1, c2, c3 = _softmax(c0, c1, c2, c3, eps)
    d0, d1, d2, d3 = _softmax(d0, d1, d2, d3, eps)
    a0, b0, c0, d0 = _normalized(a0, b0, c0, d0, eps)
    a1, b1, c1, d1 = _normalized(a1, b1, c1, d1, eps)
    a2, b2, c2, d2 = _normalized(a2, b2, c2, d2, eps)
    a3, b3, c3, d3 = _normalized(a3, b3, c3, d3, eps)
    for _ in range(ITERATIONS - 1):
        a0, a1, a2, a3 = _normalized(a0, a1, a2, a3, eps)
        b0, b1, b2, b3 = _normalized(b0, b1, b2, b3, eps)
        c0, c1, c2, c3 = _normalized(c0, c1, c2, c3, eps)
        d0, d1, d2, d3 = _normalized(d0, d1, d2, d3, eps)
        a0, b0, c0, d0 = _normalized(a0, b0, c0, d0, eps)
        a1, b1, c1, d1 = _normalized(a1, b1, c1, d1, eps)
        a2, b2, c2, d2 = _normalized(a2, b2, c2, d2, eps)
        a3, b3, c3, d3 = _normalized(a3, b3, c3, d3, eps)

    return interleaved(
        interleaved(a0, b0, c0, d0),
        interleaved(a1, b1, c1, d1),
        interleaved(a2, b2, c2, d2),
        interleaved(a3, b3, c3, d3),
    )
