"""The fused attention prologue of Qwen3-VL decode against its definition, and against the separate operations."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from overlay.bound import Bound, mismatches
from overlay.verify.case import Case, Draw, Expected, Tensors, within
from overlay.verify.shapes import Model, Shapes
from patches import qwen3_fused_attention as patch
from patches.kernels import qk_norm_mrope as own
from patches.kernels.qk_norm_mrope import Geometry
from patches.kernels.qk_norm_mrope_aiter import AiterPrologue

_VALUES = Bound("a cached value", 0, mismatches)
_MAX_POSITION = 512
_AITER = 2**-5


class Inputs(NamedTuple):
    """The tensors of one call, in the order of the kernel's arguments."""

    qkv: Tensor
    q_weight: Tensor
    k_weight: Tensor
    cos_sin: Tensor
    positions: Tensor
    k_cache: Tensor
    v_cache: Tensor
    slots: Tensor


class Rotated(NamedTuple):
    """One kind of heads after norm and rotation, `value` (tokens, heads, head_size), and what each element may be off.

    A norm in float32 may round to either neighbour where the exact one lies on a tie of two 16-bit values. `tolerance`
    is two units of the larger element of the rotated pair there, and 0 elsewhere: once the norm is rounded, products of
    16-bit values are exact in float32, and the rotation has one right result.
    """

    value: Tensor
    tolerance: Tensor


def native(geometry: Geometry, inputs: Inputs) -> Tensor:
    """The operations of the unfused path, which write the two caches: the queries, (tokens, q_heads * head_size)."""

    def norm(x: Tensor, weight: Tensor) -> Tensor:
        wide = x.float()
        wide = wide * torch.rsqrt(wide.pow(2).mean(dim=-1, keepdim=True) + geometry.eps)
        return (wide * weight).to(x.dtype)

    def rotate(x: Tensor) -> Tensor:
        a, b = _pairs(x, geometry)
        return _unpaired(a * cos - b * sin, b * cos + a * sin, geometry)

    q, k, v = split(geometry, inputs.qkv)
    q, k = norm(q, inputs.q_weight), norm(k, inputs.k_weight)
    cos, sin = (_mixed(geometry, table) for table in inputs.cos_sin[inputs.positions].chunk(2, -1))
    q, k = rotate(q), rotate(k)
    inputs.k_cache[inputs.slots] = k
    inputs.v_cache[inputs.slots] = v
    return q.reshape(q.shape[0], -1)


def reference(geometry: Geometry, inputs: Inputs) -> tuple[Rotated, Rotated, Tensor]:
    """The definition: queries, keys and values (tokens, heads, head_size)."""
    q, k, v = split(geometry, inputs.qkv)
    tables = inputs.cos_sin[inputs.positions].double().chunk(2, -1)
    cos, sin = (_mixed(geometry, table) for table in tables)
    return rotated(geometry, q, inputs.q_weight, cos, sin), rotated(geometry, k, inputs.k_weight, cos, sin), v


def rotated(geometry: Geometry, x: Tensor, weight: Tensor, cos: Tensor, sin: Tensor) -> Rotated:
    """The definition for one kind of heads: x (tokens, heads, head_size); cos, sin (tokens, 1, head_size / 2)."""
    wide = x.double()
    exact = wide * torch.rsqrt(wide.square().mean(-1, keepdim=True) + geometry.eps) * weight.double()
    normed = exact.to(x.dtype)
    # float32 rounds four times on the way: a relative 2**-21 at most, twice that with an approximate rsqrt.
    either_way = (exact * (1 - 2.0**-20)).to(x.dtype) != (exact * (1 + 2.0**-20)).to(x.dtype)
    a, b = _pairs(normed.double(), geometry)
    # In float32, as the kernel: of the sum of two products, which is rounded once more by the store.
    value = _unpaired(a * cos - b * sin, b * cos + a * sin, geometry).float().to(x.dtype)
    tie = torch.logical_or(*_pairs(either_way, geometry))
    larger = torch.maximum(a.abs(), b.abs()).to(x.dtype)
    unit = (torch.nextafter(larger, torch.full_like(larger, float("inf"))) - larger).double()
    allowed = torch.where(tie, 2 * unit, 0.0)
    return Rotated(value, _unpaired(allowed, allowed, geometry))


def split(geometry: Geometry, qkv: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Queries, keys and values (tokens, heads, head_size) of a packed projection."""
    counts = [geometry.num_q_heads, geometry.num_kv_heads, geometry.num_kv_heads]
    q, k, v = torch.split(qkv.view(qkv.shape[0], -1, geometry.head_size), counts, 1)
    return q, k, v


def cases(shapes: Shapes) -> Iterator[Case]:
    """Decode batches of every model with a multimodal rotary embedding."""
    backend = patch.BACKEND.read(os.environ)
    if backend == "off":
        return
    aiter = AiterPrologue() if backend == "aiter" else None
    for model in shapes.models:
        if model.mrope is not None:
            for tokens in shapes.tokens:
                yield _case(aiter, model, tokens)


def geometry_of(model: Model) -> Geometry:
    """The layer of a model that has a multimodal rotary embedding."""
    assert model.mrope is not None
    return Geometry(
        num_q_heads=model.query_heads,
        num_kv_heads=model.key_value_heads,
        head_size=model.head_size,
        mrope_section=model.mrope.sections,
        interleaved=model.mrope.interleaved,
        neox=True,
        eps=model.eps,
    )


def _case(aiter: AiterPrologue | None, model: Model, tokens: int) -> Case:
    geometry, dtype = geometry_of(model), getattr(torch, model.dtype)
    d, heads = geometry.head_size, geometry.num_kv_heads
    run = own.qk_norm_mrope if aiter is None else aiter
    supports_tensors = own.supports_tensors if aiter is None else aiter.supports_tensors

    def inputs(draw: Draw) -> Inputs:
        """Positions that differ by axis, distinct slots, and NaN in every slot of the caches."""
        frequencies = 10000.0 ** -(torch.arange(0, d, 2, device=draw.device) / d)
        angle = torch.outer(torch.arange(_MAX_POSITION, device=draw.device), frequencies)
        cache = torch.full((2 * tokens + 2, heads, d), float("nan"), dtype=dtype, device=draw.device)
        return Inputs(
            qkv=(draw.normal(tokens, geometry.row_size) * 2).to(dtype),
            q_weight=(1 + draw.normal(d) * 0.2).to(dtype),
            k_weight=(1 + draw.normal(d) * 0.2).to(dtype),
            cos_sin=torch.cat([angle.cos(), angle.sin()], 1).to(dtype),
            positions=draw.integers(0, _MAX_POSITION, 3, tokens),
            k_cache=cache,
            v_cache=cache.clone(),
            slots=draw.distinct(tokens, 2 * tokens + 2),
        )

    def takes(*tensors: Tensor) -> bool:
        given = Inputs(*tensors)
        return (
            own.supports_geometry(geometry)
            and own.supports_batch(given.qkv, given.positions, given.slots)
            and supports_tensors(geometry, *given[:4], given.k_cache, given.v_cache)
        )

    def fused(*tensors: Tensor) -> tuple[Tensor, ...]:
        given = Inputs(*tensors)
        return run(geometry, *tensors), given.k_cache, given.v_cache

    def expected(tensors: Tensors, _made: Sequence[Tensor]) -> list[Expected]:
        given = Inputs(*(t for t in tensors if t is not None))
        q, k, v = reference(geometry, given)
        keys, values = given.k_cache.clone(), given.v_cache.clone()
        tolerance = torch.zeros_like(keys, dtype=torch.float64)
        keys[given.slots], values[given.slots], tolerance[given.slots] = k.value, v, k.tolerance
        if aiter is not None:  # as much as `AiterPrologue` itself lets the op differ
            q = q._replace(tolerance=_AITER * (1 + q.value.double().abs()))
            tolerance = _AITER * (1 + keys.double().abs())
        return [
            within("a query", q.value.flatten(1), q.tolerance.flatten(1)),
            within("a cached key", keys, tolerance),
            Expected(_VALUES, values),
        ]

    def replaced(*tensors: Tensor) -> Tensor:
        return native(geometry, Inputs(*tensors))

    label = f"{tokens} x ({geometry.num_q_heads} + 2 x {heads}) x {d} {model.dtype}"
    return Case(label, "triton" if aiter is None else "aiter", inputs, takes, fused, replaced, expected)


def _mixed(geometry: Geometry, table: Tensor) -> Tensor:
    """Which position axis each frequency takes: (3, tokens, head_size / 2) to (tokens, 1, head_size / 2)."""
    t, h, _ = geometry.mrope_section
    chosen = table[0].clone()
    for axis in (1, 2):
        if geometry.interleaved:
            taken = slice(axis, 3 * geometry.mrope_section[axis], 3)
        else:
            taken = slice(t, t + h) if axis == 1 else slice(t + h, None)
        chosen[:, taken] = table[axis, :, taken]
    return chosen[:, None]


def _pairs(x: Tensor, geometry: Geometry) -> tuple[Tensor, Tensor]:
    if geometry.neox:
        half = geometry.head_size // 2
        return x[..., :half], x[..., half:]
    return x[..., ::2], x[..., 1::2]


def _unpaired(a: Tensor, b: Tensor, geometry: Geometry) -> Tensor:
    return torch.cat([a, b], -1) if geometry.neox else torch.stack([a, b], -1).flatten(-2)
