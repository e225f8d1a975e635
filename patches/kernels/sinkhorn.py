"""Sinkhorn normalisation of one 4x4 matrix in registers, for Triton kernels.

DeepSeek-V4's form, in the exponential domain and asymmetric: `softmax` of every row, plus `eps`; then every column is
divided by its sum plus `eps`; then, `iterations - 1` times, every row and every column in turn. It is not the symmetric
form in the logarithmic domain, whose result differs by as much as 0.9 where logits spread over 40.

Every element is a scalar, which all threads have. A row and a column are then equally near, and no step exchanges data
between threads: with a reduction across lanes in each of 40 dependent steps, their latency would be the kernel's.
"""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit  # type: ignore[untyped-decorator]
def element(v: tl.tensor, INDEX: tl.constexpr) -> tl.tensor:
    """One element of a vector as a scalar; the others may be anything, also NaN."""
    return tl.sum(tl.where(tl.arange(0, v.shape[0]) == INDEX, v, 0.0), axis=0)


@triton.jit  # type: ignore[untyped-decorator]
def _four(v: tl.tensor, FIRST: tl.constexpr) -> tuple[tl.tensor, tl.tensor, tl.tensor, tl.tensor]:
    """The four elements of a vector from FIRST on."""
    return element(v, FIRST), element(v, FIRST + 1), element(v, FIRST + 2), element(v, FIRST + 3)


@triton.jit  # type: ignore[untyped-decorator]
def _chosen(index: tl.tensor, v0: tl.tensor, v1: tl.tensor, v2: tl.tensor, v3: tl.tensor) -> tl.tensor:
    """For every element of ``index``, 0 to 3, the value of that number."""
    return tl.where(index < 2, tl.where(index == 0, v0, v1), tl.where(index == 2, v2, v3))


@triton.jit  # type: ignore[untyped-decorator]
def _softmax(
    a: tl.tensor, b: tl.tensor, c: tl.tensor, d: tl.tensor, eps: tl.tensor
) -> tuple[tl.tensor, tl.tensor, tl.tensor, tl.tensor]:
    """The softmax of four numbers, plus ``eps``."""
    most = tl.maximum(tl.maximum(a, b), tl.maximum(c, d))
    a, b, c, d = tl.exp(a - most), tl.exp(b - most), tl.exp(c - most), tl.exp(d - most)
    scale = 1.0 / ((a + b) + (c + d))
    return a * scale + eps, b * scale + eps, c * scale + eps, d * scale + eps


@triton.jit  # type: ignore[untyped-decorator]
def _normalized(
    a: tl.tensor, b: tl.tensor, c: tl.tensor, d: tl.tensor, eps: tl.tensor
) -> tuple[tl.tensor, tl.tensor, tl.tensor, tl.tensor]:
    """Four numbers divided by their sum plus ``eps``."""
    scale = 1.0 / ((a + b) + (c + d) + eps)
    return a * scale, b * scale, c * scale, d * scale


@triton.jit  # type: ignore[untyped-decorator]
def sinkhorn_4x4(logits: tl.tensor, FIRST: tl.constexpr, eps: tl.tensor, ITERATIONS: tl.constexpr) -> tl.tensor:
    """The normalised matrix, float32 ``[16]``, of the 16 ``logits`` from FIRST on: both row by row."""
    a0, a1, a2, a3 = _four(logits, FIRST)
    b0, b1, b2, b3 = _four(logits, FIRST + 4)
    c0, c1, c2, c3 = _four(logits, FIRST + 8)
    d0, d1, d2, d3 = _four(logits, FIRST + 12)

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

    i = tl.arange(0, 16)
    j = i % 4
    return _chosen(
        i // 4,
        _chosen(j, a0, a1, a2, a3),
        _chosen(j, b0, b1, b2, b3),
        _chosen(j, c0, c1, c2, c3),
        _chosen(j, d0, d1, d2, d3),
    )
