"""Oracle for the fused attention prologue, which looks the angle of every frequency up by itself."""

from __future__ import annotations

import torch
from torch import Tensor

from patches.kernels.qk_norm_mrope import Geometry, supports_batch, supports_tensors
from patches.proofs.qk_norm_mrope import Inputs as Inputs
from patches.proofs.qk_norm_mrope import Rotated, rotated, split


def supports(geometry: Geometry, inputs: Inputs) -> bool:
    """The kernel's own rules for one call."""
    tensors = inputs.qkv, inputs.q_weight, inputs.k_weight, inputs.cos_sin, inputs.k_cache, inputs.v_cache
    return supports_tensors(geometry, *tensors) and supports_batch(inputs.qkv, inputs.positions, inputs.slots)


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
    q, k, v = split(geometry, inputs.qkv)
    cos, sin = angles(geometry, inputs)
    return rotated(geometry, q, inputs.q_weight, cos, sin), rotated(geometry, k, inputs.k_weight, cos, sin), v


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


def assert_rotated(got: Tensor, want: Rotated) -> None:
    """Within the tolerance of every element, which is 0 for nearly all of them."""
    got = got.reshape(want.value.shape)
    assert not bool(got.isnan().any()), "an element was not written"
    assert bool(((got.double() - want.value.double()).abs() <= want.tolerance).all())
    assert int((want.tolerance > 0).sum()) <= 16 + got.numel() // 50, "the oracle settles too little"
