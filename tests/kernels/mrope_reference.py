"""Oracle for the fused attention prologue, written from the definition: which rounding happens where."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from patches.kernels.qk_norm_mrope import Geometry, supports_batch, supports_tensors
from patches.proofs.qk_norm_mrope import Inputs as Inputs
from tests.kernels.norm_reference import ulps_apart


def supports(geometry: Geometry, inputs: Inputs) -> bool:
    """The kernel's own rules for one call."""
    tensors = inputs.qkv, inputs.q_weight, inputs.k_weight, inputs.cos_sin, inputs.k_cache, inputs.v_cache
    return supports_tensors(geometry, *tensors) and supports_batch(inputs.qkv, inputs.positions, inputs.slots)


class Rotated(NamedTuple):
    """One kind of heads, normalised and rotated."""

    value: Tensor
    """(tokens, heads, head_size)"""
    on_a_tie: Tensor
    """Where float32 may round the norm of either element of the pair both ways; bool, like ``value``."""
    unit: Tensor
    """The distance between neighbouring values at the larger element of the pair: what such a rounding moves."""


MAX_POSITION = 512


def make_inputs(geometry: Geometry, tokens: int, dtype: torch.dtype, device: str, slots: int = 64) -> Inputs:
    """Random tensors, distinct slots, different positions on the three axes, and NaN in every slot of the cache."""
    d = geometry.head_size

    def randn(*shape: int) -> Tensor:
        return torch.randn(*shape, device=device).to(dtype)

    angle = torch.outer(torch.arange(MAX_POSITION), 10000.0 ** -(torch.arange(0, d, 2) / d))
    cache = torch.full((slots, geometry.num_kv_heads, d), float("nan"), dtype=dtype, device=device)
    return Inputs(
        qkv=randn(tokens, geometry.row_size) * 2,
        q_weight=1 + randn(d) * 0.2,
        k_weight=1 + randn(d) * 0.2,
        cos_sin=torch.cat([angle.cos(), angle.sin()], 1).to(device, dtype),
        positions=torch.randint(0, MAX_POSITION, (3, tokens), device=device),
        k_cache=cache,
        v_cache=cache.clone(),
        slots=torch.randperm(slots, device=device)[:tokens],
    )


def expected(geometry: Geometry, inputs: Inputs) -> tuple[Rotated, Rotated, Tensor]:
    """Queries, keys and values ``(tokens, heads, head_size)`` before the cache write."""
    counts = [geometry.num_q_heads, geometry.num_kv_heads, geometry.num_kv_heads]
    q, k, v = torch.split(inputs.qkv.view(inputs.qkv.shape[0], -1, geometry.head_size), counts, 1)
    cos, sin = angles(geometry, inputs)
    return (
        _normed_and_rotated(q, inputs.q_weight, cos, sin, geometry),
        _normed_and_rotated(k, inputs.k_weight, cos, sin, geometry),
        v,
    )


def angles(geometry: Geometry, inputs: Inputs) -> tuple[Tensor, Tensor]:
    """Cosines and sines ``(tokens, 1, head_size / 2)`` in float32, frequency by frequency."""
    half = geometry.head_size // 2
    t, h, _ = geometry.mrope_section
    if geometry.interleaved:
        axes = [i % 3 if i < 3 * geometry.mrope_section[i % 3] else 0 for i in range(half)]
    else:
        axes = [0 if i < t else 1 if i < t + h else 2 for i in range(half)]
    rows = inputs.positions[axes].t()  # (tokens, half)
    frequency = torch.arange(half, device=rows.device)
    return inputs.cos_sin[rows, frequency].float()[:, None], inputs.cos_sin[rows, frequency + half].float()[:, None]


def _normed_and_rotated(x: Tensor, weight: Tensor, cos: Tensor, sin: Tensor, geometry: Geometry) -> Rotated:
    wide = x.double()
    exact = wide * torch.rsqrt(wide.pow(2).mean(-1, keepdim=True) + geometry.eps) * weight.double()
    normed = exact.to(x.dtype)
    # float32 rounds four times on the way: a relative 2**-21 at most, twice that with an approximate rsqrt.
    either_way = (exact * (1 - 2.0**-20)).to(x.dtype) != (exact * (1 + 2.0**-20)).to(x.dtype)
    a, b = _pairs(normed.float(), geometry)
    value = _unpaired(a * cos - b * sin, b * cos + a * sin, geometry).to(x.dtype)
    tie = torch.logical_or(*_pairs(either_way, geometry))
    larger = torch.maximum(a.abs(), b.abs()).to(x.dtype)
    unit = (torch.nextafter(larger, torch.full_like(larger, float("inf"))) - larger).float()
    return Rotated(value, _unpaired(tie, tie, geometry), _unpaired(unit, unit, geometry))


def _pairs(x: Tensor, geometry: Geometry) -> tuple[Tensor, Tensor]:
    if geometry.neox:
        half = geometry.head_size // 2
        return x[..., :half], x[..., half:]
    return x[..., ::2], x[..., 1::2]


def _unpaired(a: Tensor, b: Tensor, geometry: Geometry) -> Tensor:
    return torch.cat([a, b], -1) if geometry.neox else torch.stack([a, b], -1).flatten(-2)


def assert_rotated(got: Tensor, want: Rotated) -> None:
    """Bit-equal, except at ties of the norm: there within two units of the pair, which is what the rounding moves.

    Products of two 16-bit values are exact in float32, so once the norm is rounded the rotation has one right result.
    """
    got = got.reshape(want.value.shape)
    assert not bool(got.isnan().any()), "an element was not written"
    settled = ~want.on_a_tie
    assert int(ulps_apart(got[settled], want.value[settled]).max()) == 0
    assert bool(((got.float() - want.value.float()).abs() <= 2 * want.unit)[want.on_a_tie].all())
    assert int(want.on_a_tie.sum()) <= 16 + got.numel() // 50, "the oracle settles too little"
