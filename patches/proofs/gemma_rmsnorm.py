"""The fused Gemma RMSNorm against a float64 norm of the rounded sum, and against `GemmaRMSNorm.forward_native`."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from functools import partial

import torch
from torch import Tensor

from overlay.bound import Bound, mismatches
from overlay.verify.case import Case, Draw, Expected, Tensors
from overlay.verify.shapes import Shapes
from patches import gemma_rmsnorm as patch
from patches.kernels import gemma_rmsnorm as own
from patches.kernels import gemma_rmsnorm_aiter

_SUM = Bound("the residual", 0, mismatches)

_RESIDUAL, _IN_PLACE, _PLAIN, _TWO_ADDENDS = "residual", "residual in place", "plain", "two addends and fp32 weight"


def native(
    x: Tensor, weight: Tensor, eps: float, residual: Tensor | None = None, post: Tensor | None = None
) -> tuple[Tensor, ...]:
    """The operations of `GemmaRMSNorm.forward_native`, one kernel each: x (..., n), weight (n,) -> the norm, and with a
    residual the sum."""
    dtype = x.dtype
    if residual is not None:
        x = residual = x + (residual if post is None else residual + post)
    wide = x.float()
    wide = wide * torch.rsqrt(wide.pow(2).mean(dim=-1, keepdim=True) + eps)
    y = (wide * (1.0 + weight.float())).to(dtype)
    return (y,) if residual is None else (y, residual)


def reference(
    x: Tensor, weight: Tensor, eps: float, residual: Tensor | None = None, post: Tensor | None = None
) -> tuple[Tensor, ...]:
    """The definition: the norm in float64, of the sum as `torch.add` rounds it."""
    total = x if residual is None else torch.add(x, residual if post is None else torch.add(residual, post))
    wide = total.double()
    y = wide * torch.rsqrt(wide.square().mean(-1, keepdim=True) + eps) * (1.0 + weight.double())
    return (y,) if residual is None else (y, total)


def cases(shapes: Shapes) -> Iterator[Case]:
    """The residual norm over the hidden size in decode and prefill, also in place, the plain norm over the hidden and
    the head size, and once what a kernel may misread: an fp32 weight and a second addend."""
    backend = patch.BACKEND.read(os.environ)
    if backend == "native":
        return
    kernel = "aiter" if backend == "aiter" else "triton"
    forms = [_RESIDUAL, _PLAIN, _TWO_ADDENDS] + [_IN_PLACE] * (backend == "auto")
    sizes: dict[tuple[str, int, int, str, float], None] = {}
    for model in shapes.models:
        most = shapes.tokens[-1]
        rows_of = dict.fromkeys(forms, (most,)) | {_RESIDUAL: (*shapes.tokens, shapes.prefill)}
        for form, counts in rows_of.items():
            sizes |= {(form, rows, model.hidden_size, model.dtype, model.eps): None for rows in counts}
        sizes[_PLAIN, most * model.query_heads, model.head_size, model.dtype, model.eps] = None
    for form, rows, n, dtype, eps in sizes:
        yield _case(kernel, form, rows, n, getattr(torch, dtype), eps)


def _case(kernel: str, form: str, rows: int, n: int, dtype: torch.dtype, eps: float) -> Case:
    norm: Callable[..., Tensor | tuple[Tensor, Tensor]]
    norm, supports = gemma_rmsnorm_aiter.load() if kernel == "aiter" else (own.gemma_rmsnorm, own.supports)
    if form == _IN_PLACE:
        norm = partial(norm, overwrite=True)
    norm_bound = replace(patch.bounds_of(kernel)[0], name="the norm")

    def inputs(draw: Draw) -> Tensors:
        weight = draw.normal(n) * 0.2
        x, residual, post = (draw.normal(rows, n, dtype=dtype) for _ in range(3))
        if form == _TWO_ADDENDS:
            return x, weight, residual, post
        return x, weight.to(dtype), None if form == _PLAIN else residual, None

    def fused(x: Tensor, weight: Tensor, residual: Tensor | None, post: Tensor | None) -> tuple[Tensor, ...]:
        made = norm(x, weight, eps, residual, post)
        return (made,) if isinstance(made, Tensor) else made

    def replaced(x: Tensor, weight: Tensor, residual: Tensor | None, post: Tensor | None) -> tuple[Tensor, ...]:
        return native(x, weight, eps, residual, post)

    def expected(given: Tensors, _made: Sequence[Tensor]) -> list[Expected]:
        x, weight, residual, post = given
        assert x is not None and weight is not None
        y, *total = reference(x, weight, eps, residual, post)
        return [Expected(norm_bound, y.to(x.dtype)), *(Expected(_SUM, one) for one in total)]

    label = f"{form}, {rows} x {n} {str(dtype).removeprefix('torch.')}"
    return Case(label, kernel, inputs, supports, fused, replaced, expected)
