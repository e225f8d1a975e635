"""Fused residual add + Gemma RMSNorm: one Triton kernel, on every GPU that Triton reaches.

Over the last dimension, in float32::

    y = s * rsqrt(mean(s ** 2) + eps) * (1 + weight)

where ``s`` is ``x``, or the *rounded* sum ``x + (residual + post_residual_addition)``. Each sum is rounded to the
dtype that ``torch.add`` gives it before the norm reads it, as in SGLang's ``GemmaRMSNorm.forward_native``: so the
residual output is bit-identical to the native path's and ``y`` is within one unit in the last place of it. ``1 +
weight`` is formed in float32 by every launch: it is never rounded to 16 bits, and a weight updated in place is seen
by the next call and by every graph captured before.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from patches.kernels import device, tuning

MAX_HIDDEN_SIZE = 16384
"""Longest row, in elements, that one program holds in registers without spilling."""

_ACTIVATION_DTYPES = frozenset({torch.bfloat16, torch.float16})
_OPERAND_DTYPES = _ACTIVATION_DTYPES | {torch.float32}


# m changes with every batch and only bounds a mask. The strides stay specialised: without knowing that a row starts
# on a 16-byte boundary the compiler would load one element at a time. Without a residual s_ptr and residual_ptr are
# None, and so is an absent post_ptr: Triton compiles their branches away.
@triton.jit(do_not_specialize=["m"])  # type: ignore[untyped-decorator]
def _gemma_rmsnorm_kernel(
    y_ptr: tl.tensor,
    s_ptr: tl.tensor,
    x_ptr: tl.tensor,
    residual_ptr: tl.tensor,
    post_ptr: tl.tensor,
    weight_ptr: tl.tensor,
    m: tl.tensor,
    x_stride: tl.tensor,
    residual_stride: tl.tensor,
    post_stride: tl.tensor,
    eps: tl.tensor,
    N: tl.constexpr,
    BLOCK: tl.constexpr,
    ROWS: tl.constexpr,
    PDL: tl.constexpr,
) -> None:
    if PDL:  # launched while the kernel before it in the stream still runs: nothing may be touched before that ends
        tl.extra.cuda.gdc_wait()
    first_row = tl.program_id(0).to(tl.int64) * ROWS  # 64 bits: m * N passes 2**31 in a long prefill
    rows = tl.arange(0, ROWS).to(tl.int64)[:, None]
    cols = tl.arange(0, BLOCK)[None, :]
    mask = cols < N
    if ROWS > 1:
        mask = mask & (first_row + rows < m)

    # The weight is loaded here, not where it is used: behind the reduction's barrier its latency would be exposed. As a
    # whole tile it has the layout of x, so a thread reads 16 bytes of it too, and no exchange between threads follows.
    weight = tl.load(weight_ptr + tl.broadcast_to(cols, (ROWS, BLOCK)), mask=cols < N, other=0.0)
    x = tl.load(x_ptr + first_row * x_stride + (rows * x_stride + cols), mask=mask, other=0.0)
    s = x.to(tl.float32)
    if residual_ptr is not None:
        residual_offsets = first_row * residual_stride + (rows * residual_stride + cols)
        residual = tl.load(residual_ptr + residual_offsets, mask=mask, other=0.0)
        addend = residual.to(tl.float32)
        if post_ptr is not None:
            post = tl.load(post_ptr + first_row * post_stride + (rows * post_stride + cols), mask=mask, other=0.0)
            addend += post.to(tl.float32)
            # Two different dtypes of {bfloat16, float16, float32} promote to float32, which needs no rounding.
            if residual.dtype == post.dtype:
                addend = addend.to(residual.dtype).to(tl.float32)
        rounded = (s + addend).to(s_ptr.dtype.element_ty)
        tl.store(s_ptr + first_row * N + (rows * N + cols), rounded, mask=mask)
        s = rounded.to(tl.float32)

    mean_square = tl.sum(s * s, axis=1)[:, None] / N
    y = s * tl.rsqrt(mean_square + eps) * (1.0 + weight.to(tl.float32))
    tl.store(y_ptr + first_row * N + (rows * N + cols), y.to(y_ptr.dtype.element_ty), mask=mask)


_INTERPRETED = not isinstance(_gemma_rmsnorm_kernel, triton.JITFunction)
"""Whether Triton bound the kernel above to its CPU interpreter, which it decides when the decorator runs."""


class LaunchConfig(NamedTuple):
    """Shape of one program: a tile of ``rows`` x ``block`` elements, worked on by ``num_warps`` warps."""

    block: int
    rows: int
    num_warps: int


def launch_config(n: int, warp_size: int) -> LaunchConfig:
    """The tile and warps for rows of ``n`` elements on a GPU whose warps (AMD: waves) have ``warp_size`` threads.

    A thread gets 16 bytes of each 16-bit input, the widest load of either vendor; so the unit is the thread, and a
    GPU with 64-wide waves gets half as many of them as one with 32-wide warps. Beyond 512 threads the reduction loses
    more than the loads gain, and each gets more. Rows of up to 256 elements (per-head norms, of which there are
    tokens x heads) share a program of 128 threads. The number of rows plays no part: from 1 row to 65536 this shape
    was within 10 % of the best one for that number (H200), and one shape per n is one compilation per n.
    """
    block = triton.next_power_of_2(n)
    rows = 1024 // block if block <= 256 else 1
    return LaunchConfig(block, rows, num_warps=min(rows * block // 8, 512) // warp_size)


@functools.cache
def _current_launch_config(n: int) -> LaunchConfig:
    if _INTERPRETED:  # it has no warps, and no driver to ask about them
        return launch_config(n, 32)
    tuned = tuning.choice("gemma_rmsnorm", f"n={n}", tuning.current_arch())
    if tuned is not None:
        return LaunchConfig(triton.next_power_of_2(n), **tuned)
    return launch_config(n, triton.runtime.driver.active.get_current_target().warp_size)


@functools.cache
def _launch_options() -> Mapping[str, bool]:
    """CUDA's programmatic dependent launch where there is one: Hopper and later, not ROCm.

    A program then starts while the kernel before it ends. In the graph of a decode step of sglang 0.5.12, 41 norms so
    launched take the median gap between two kernels, of whatever kind, from 0.42 to 0.10 us (H200).
    """
    if not _INTERPRETED:
        target = triton.runtime.driver.active.get_current_target()
        if target.backend == "cuda" and target.arch >= 90:
            return {"PDL": True, "launch_pdl": True}
    return {"PDL": False}


def _is_addend(t: Tensor, x: Tensor) -> bool:
    return t.dtype in _OPERAND_DTYPES and t.shape == x.shape and t.device == x.device


def supports(
    x: Tensor, weight: Tensor, residual: Tensor | None = None, post_residual_addition: Tensor | None = None
) -> bool:
    """Whether :func:`gemma_rmsnorm` may be called with these tensors; reads metadata only, and traces."""
    return (
        (x.is_cuda or (_INTERPRETED and x.device.type == "cpu"))
        and x.dtype in _ACTIVATION_DTYPES
        and x.dim() >= 1
        and 1 <= x.shape[-1] <= MAX_HIDDEN_SIZE
        and weight.dtype in _OPERAND_DTYPES
        and weight.shape == x.shape[-1:]
        and weight.is_contiguous()
        and weight.device == x.device
        and (
            residual is None
            or (_is_addend(residual, x) and (post_residual_addition is None or _is_addend(post_residual_addition, x)))
        )
    )


def can_overwrite(x: Tensor, residual: Tensor) -> bool:
    """Whether the norm may put its outputs where these inputs are; :func:`supports` is true for them.

    A program has read its rows when it starts to write them, so what must not be is that a row's storage is another
    row's as well: an expanded view, or two tensors that overlap. Two dimensions and no gradient are what sgl_kernel's
    ``gemma_fused_add_rmsnorm``, which always works in place, takes too. While torch.compile traces it is false:
    functionalisation would copy what it cannot prove dead, and Inductor reuses buffers on its own.
    """
    return (
        not torch.compiler.is_compiling()
        and x.dim() == 2
        and residual.dtype == x.dtype  # then the sum's dtype is the residual's
        and x.is_contiguous()
        and residual.is_contiguous()
        and not x.requires_grad
        and not residual.requires_grad
        and abs(x.data_ptr() - residual.data_ptr()) >= x.numel() * x.element_size()
    )


def gemma_rmsnorm(
    x: Tensor,
    weight: Tensor,
    eps: float,
    residual: Tensor | None = None,
    post_residual_addition: Tensor | None = None,
    overwrite: bool = False,
) -> Tensor | tuple[Tensor, Tensor]:
    """Gemma RMSNorm of ``x``, or of ``x`` plus a residual.

    Call it where :func:`supports` is true for the same tensors: it does not check them again. Unless ``overwrite`` is
    true, no input is written to and no output aliases one. It neither waits for the GPU nor allocates outside torch's
    allocator, so a CUDA or HIP graph can capture it; ``torch.compile`` sees one opaque operator.

    Args:
        x: ``(..., n)``, bfloat16 or float16, any strides; no rows is allowed.
        weight: ``(n,)``, contiguous; bfloat16, float16 or float32, whatever ``x`` is.
        eps: added to the mean square.
        residual: shape of ``x``; bfloat16, float16 or float32.
        post_residual_addition: like ``residual``, added to it first. Without a residual it is ignored, as in
            ``GemmaRMSNorm.forward_native``.
        overwrite: the caller reads neither ``x`` nor ``residual`` again: where :func:`can_overwrite` is true the
            outputs take their storage. Values are the same bits either way.

    Returns:
        ``y``, of ``x``'s shape and dtype; with a residual ``(y, residual_out)``, where ``residual_out`` is the sum in
        the promoted dtype of its terms. All are contiguous. Overwritten, they are ``x`` and ``residual`` themselves.
    """
    if torch.compiler.is_compiling():
        if residual is None:
            return _NORM_OP(x, weight, eps)
        return _ADD_NORM_OP(x, residual, post_residual_addition, weight, eps)
    if residual is None:
        return _norm(x, weight, eps)
    if overwrite and post_residual_addition is None and can_overwrite(x, residual):
        # Half the footprint of fresh outputs: up to twice as many tokens stay in the last-level cache.
        _launch(x, residual, x, residual, None, weight, eps)
        return x, residual
    return _add_norm(x, residual, post_residual_addition, weight, eps)


def _norm(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    y = torch.empty(x.shape, dtype=x.dtype, device=x.device)
    _launch(y, None, x, None, None, weight, eps)
    return y


def _add_norm(x: Tensor, residual: Tensor, post: Tensor | None, weight: Tensor, eps: float) -> tuple[Tensor, Tensor]:
    y = torch.empty(x.shape, dtype=x.dtype, device=x.device)
    s = torch.empty(x.shape, dtype=_sum_dtype(x, residual, post), device=x.device)
    _launch(y, s, x, residual, post, weight, eps)
    return y, s


def _sum_dtype(x: Tensor, residual: Tensor, post: Tensor | None) -> torch.dtype:
    dtype = torch.promote_types(x.dtype, residual.dtype)
    return dtype if post is None else torch.promote_types(dtype, post.dtype)


def _as_rows(t: Tensor, n: int) -> tuple[Tensor, int]:
    """``t`` as ``(rows, n)`` with adjacent columns, and its row stride; a view where there is one.

    A single row has no stride that matters, and torch may report any: a 1 would compile the kernel again.
    """
    if t.dim() != 2:
        t = t.reshape(-1, n)
    if t.stride(1) != 1:
        t = t.contiguous()
    return t, t.stride(0) if t.shape[0] > 1 else n


def _launch(
    y: Tensor, s: Tensor | None, x: Tensor, residual: Tensor | None, post: Tensor | None, weight: Tensor, eps: float
) -> None:
    n = x.shape[-1]
    m = x.numel() // n
    if m == 0:
        return  # an empty grid is a launch error
    x, x_stride = _as_rows(x, n)
    residual_stride = post_stride = 0
    if residual is not None:
        residual, residual_stride = _as_rows(residual, n)
        if post is not None:
            post, post_stride = _as_rows(post, n)
    block, rows, num_warps = _current_launch_config(n)
    index = x.get_device()  # -1 on the CPU
    with device.guard(index):
        _gemma_rmsnorm_kernel[((m + rows - 1) // rows,)](
            y, s, x, residual, post, weight, m, x_stride, residual_stride, post_stride, eps,
            N=n, BLOCK=block, ROWS=rows, num_warps=num_warps, **_launch_options(),
        )  # fmt: skip


# torch.compile must not look inside the launch. Eager calls skip the operators, whose dispatch takes the host half as
# long again as the launch. Defining an operator a second time (a module reload) replaces it.
torch.library.custom_op(
    "amd_sglang::gemma_rmsnorm", _norm, mutates_args=(), schema="(Tensor x, Tensor weight, float eps) -> Tensor"
).register_fake(lambda x, weight, eps: x.new_empty(x.shape))
torch.library.custom_op(
    "amd_sglang::gemma_add_rmsnorm",
    _add_norm,
    mutates_args=(),
    schema="(Tensor x, Tensor residual, Tensor? post, Tensor weight, float eps) -> (Tensor, Tensor)",
).register_fake(
    lambda x, residual, post, weight, eps: (
        x.new_empty(x.shape),
        x.new_empty(x.shape, dtype=_sum_dtype(x, residual, post)),
    )
)
_NORM_OP: Callable[..., Tensor] = torch.ops.amd_sglang.gemma_rmsnorm.default
_ADD_NORM_OP: Callable[..., tuple[Tensor, Tensor]] = torch.ops.amd_sglang.gemma_add_rmsnorm.default
