"""The fused Gemma RMSNorm: with a residual into new tensors, with one in place, and of each attention head.

The first is what a layer does twice a token. In place, the sum replaces the residual and the norm the input, as
sgl_kernel's CUDA op always has it; repeated on the same tensors, as here, the residual stops growing where it is 256
times what is added, since bfloat16 then rounds the addend away. "sum differs" is the share of elements whose residual
is not the rounded sum, bit for bit; "not nearest" the share of norms that are not the nearest value of the dtype.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial

import torch
from torch import Tensor

from benchmarks.case import GPU, Case, Group, Maker, Place, Prepared
from benchmarks.peers import load
from benchmarks.peers.compiled import compiled
from patches.kernels.gemma_rmsnorm import gemma_rmsnorm
from patches.proofs.gemma_rmsnorm import native, reference

_SUITE = "gemma_rmsnorm"
_EPS = 1e-6
_HIDDEN, _TOKENS = (2048, 4096, 5120, 7168), (1, 64, 256, 2048, 8192)
_HEAD_SIZES, _HEADS = (128, 256), (32, 2048, 65536)  # tokens x heads of a token

#: x, weight, residual or None to the norm, and the sum where there is a residual.
Norm = Callable[[Tensor, Tensor, "Tensor | None"], Sequence[Tensor]]


def groups(quick: bool) -> list[Group]:
    hidden, tokens = ((4096,), (1, 64, 2048)) if quick else (_HIDDEN, _TOKENS)
    sizes = [(n, m) for n in hidden for m in tokens]
    heads = [(n, m) for n in _HEAD_SIZES for m in (_HEADS[:2] if quick else _HEADS)]
    return [
        _group("Residual add + Gemma RMSNorm (N = hidden size, M = tokens)", sizes, added),
        _group("The same in place", sizes, added_in_place),
        _group("Gemma RMSNorm of heads (N = head size, M = tokens x heads)", heads, alone),
    ]


def _group(title: str, sizes: list[tuple[int, int]], of: Callable[..., Case]) -> Group:
    return Group(_SUITE, title, "N, M", tuple(of(n, rows) for n, rows in sizes))


def added(n: int, rows: int, place: Place = GPU) -> Case:
    return _case(n, rows, 4, place, partial(_new_tensors, n, rows, place, True))


def added_in_place(n: int, rows: int, place: Place = GPU) -> Case:
    return _case(n, rows, 4, place, partial(_in_place, n, rows, place))


def alone(n: int, rows: int, place: Place = GPU) -> Case:
    return _case(n, rows, 2, place, partial(_new_tensors, n, rows, place, False))


def _case(n: int, rows: int, tensors: int, place: Place, makers: Callable[[], Mapping[str, Maker]]) -> Case:
    moved = (tensors * rows + 1) * n * place.dtype.itemsize
    return Case(f"{n}, {rows}", {"hidden": n, "tokens": rows, "dtype": place.dtype_name}, moved, 0, makers)


def _inputs(n: int, rows: int, place: Place) -> tuple[Tensor, Tensor, Tensor]:
    x, residual = place.normal(rows, n), place.normal(rows, n)
    return x, place.normal(n) * 0.2, residual


def _new_tensors(n: int, rows: int, place: Place, with_residual: bool) -> dict[str, Maker]:
    x, weight, addend = _inputs(n, rows, place)
    residual = addend if with_residual else None

    def prepare(make: Callable[[], Norm]) -> Prepared:
        norm = make()
        return Prepared(partial(norm, x, weight, residual), _errors(norm(x, weight, residual), x, weight, residual))

    makers: dict[str, Callable[[], Norm]] = {
        "ours": lambda: _ours,
        "unfused": lambda: _unfused,
        "torch.compile": lambda: compiled(_unfused),
        "SGLang 0.5.23": _sglang,
        "Liger": _liger,
        "aiter Triton": partial(_aiter, weight),
    }
    return {name: partial(prepare, make) for name, make in makers.items()}


def _in_place(n: int, rows: int, place: Place) -> dict[str, Maker]:
    x, weight, residual = _inputs(n, rows, place)

    def prepare(make: Callable[[], Norm]) -> Prepared:
        norm = make()
        mine, total = x.clone(), residual.clone()
        norm(mine, weight, total)
        return Prepared(partial(norm, mine, weight, total), _errors((mine, total), x, weight, residual))

    makers = {"ours, in place": lambda: _ours_in_place, "sgl_kernel CUDA": _sgl_kernel, "flashinfer": _flashinfer}
    return {name: partial(prepare, make) for name, make in makers.items()}


def _errors(made: Sequence[Tensor], x: Tensor, weight: Tensor, residual: Tensor | None) -> dict[str, float]:
    want, *total = reference(x, weight, _EPS, residual)
    errors = {
        "largest error": float((made[0].double() - want).abs().max()),
        "not nearest": float((made[0] != want.to(x.dtype)).double().mean()),
    }
    if total:
        errors["sum differs"] = float((made[1] != total[0]).double().mean())
    return errors


def _ours(x: Tensor, weight: Tensor, residual: Tensor | None) -> Sequence[Tensor]:
    made = gemma_rmsnorm(x, weight, _EPS, residual)
    return (made,) if isinstance(made, Tensor) else made


def _ours_in_place(x: Tensor, weight: Tensor, residual: Tensor | None) -> Sequence[Tensor]:
    made = gemma_rmsnorm(x, weight, _EPS, residual, overwrite=True)
    assert made[0] is x, "these inputs are such as may be overwritten"
    return x, made[1]


def _unfused(x: Tensor, weight: Tensor, residual: Tensor | None) -> Sequence[Tensor]:
    return native(x, weight, _EPS, residual)


def _sglang() -> Norm:
    kernels = load.module("sglang", "sglang.kernels.ops.layernorm.minimax_m3_rmsnorm")

    def norm(x: Tensor, weight: Tensor, residual: Tensor | None) -> Sequence[Tensor]:
        if residual is None:
            return (kernels.gemma_rmsnorm(x, weight, _EPS),)
        made: tuple[Tensor, Tensor] = kernels.gemma_fused_add_rmsnorm(x, residual, weight, _EPS)
        return made

    return norm


def _liger() -> Norm:
    alone = load.module("liger", "liger_kernel.ops.rms_norm")
    added = load.module("liger", "liger_kernel.ops.fused_add_rms_norm")

    def norm(x: Tensor, weight: Tensor, residual: Tensor | None) -> Sequence[Tensor]:
        if residual is None:
            return (alone.rms_norm_forward(x, weight, _EPS, 1.0, "gemma", None)[0],)
        y, total, *_ = added.fused_add_rms_norm_forward(x, residual, weight, _EPS, 1.0, "gemma")
        return y, total

    return norm


def _aiter(weight: Tensor) -> Norm:
    """aiter has the plain RMSNorm; given 1 + weight, formed beforehand in float32, it computes this one."""
    kernels = load.module("aiter", "aiter.ops.triton.normalization.rmsnorm")
    gemma_weight = 1.0 + weight.float()

    def norm(x: Tensor, _weight: Tensor, residual: Tensor | None) -> Sequence[Tensor]:
        if residual is None:
            return (kernels.rms_norm(x, gemma_weight, _EPS),)
        y, total = torch.empty_like(x), torch.empty_like(x)
        kernels.rmsnorm2d_fwd_with_add(y, x, residual, total, gemma_weight, _EPS)
        return y, total

    return norm


def _sgl_kernel() -> Norm:
    return _overwriting(load.module("sgl_kernel", "sgl_kernel").gemma_fused_add_rmsnorm)


def _flashinfer() -> Norm:
    return _overwriting(load.module("flashinfer", "flashinfer.norm").gemma_fused_add_rmsnorm)


def _overwriting(op: Callable[[Tensor, Tensor, Tensor, float], None]) -> Norm:
    def norm(x: Tensor, weight: Tensor, residual: Tensor | None) -> Sequence[Tensor]:
        assert residual is not None
        op(x, residual, weight, _EPS)
        return x, residual

    return norm
