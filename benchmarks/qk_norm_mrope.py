"""The attention prologue of Qwen3-VL's decode: QKV split, QK norm, multimodal rotary embedding, cache write.

Every implementation starts from a cache full of NaN, which it must replace in the slots of the batch and nowhere else.
Errors are over queries and cached keys, against a norm rounded to 16 bits and a rotation in float64: the largest, and
the share of elements that are not the nearest value of the dtype. aiter's Triton kernel has no multimodal embedding,
and adds 1 to the weights: it gets one position for all three axes and, beforehand, the weights less 1, and so computes
the same.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor

from benchmarks.case import GPU, AbsentError, Case, Group, Maker, Place, Prepared
from benchmarks.peers import load
from benchmarks.peers.compiled import compiled
from patches.kernels.qk_norm_mrope import Geometry, qk_norm_mrope
from patches.proofs.qk_norm_mrope import Inputs, native, reference

_SUITE = "qk_norm_mrope"
_TOKENS = (1, 16, 64, 256)
_SLOTS, _PAGE = 4096, 16
_MAX_POSITION = 32768
#: Query and key/value heads of Qwen3-VL 8B, of 8B on one of four GPUs, and of 32B.
_HEADS = ((32, 8), (8, 2), (64, 8))
_HEAD_SIZE, _SECTIONS = 128, (24, 20, 20)

Prologue = Callable[[Geometry, Inputs], Tensor]


def groups(quick: bool) -> list[Group]:
    heads, tokens = (_HEADS[:1], (1, 64)) if quick else (_HEADS, _TOKENS)
    cases = tuple(case(q_heads, kv_heads, count) for q_heads, kv_heads in heads for count in tokens)
    title = "QK norm, mRoPE and cache write (Hq, Hkv = query, key heads of 128; T = tokens)"
    return [Group(_SUITE, title, "Hq, Hkv, T", cases)]


def case(q_heads: int, kv_heads: int, tokens: int, place: Place = GPU) -> Case:
    geometry = Geometry(q_heads, kv_heads, _HEAD_SIZE, _SECTIONS, interleaved=True, neox=True, eps=1e-6)
    # The projection is read; queries, keys and values are written. An angle's cosine and sine are read once a token.
    elements = 2 * geometry.row_size + _HEAD_SIZE
    return Case(
        label=f"{q_heads}, {kv_heads}, {tokens}",
        parameters={"query_heads": q_heads, "key_heads": kv_heads, "tokens": tokens, "dtype": place.dtype_name},
        bytes_moved=tokens * (elements * place.dtype.itemsize + 4 * torch.int64.itemsize),
        operations=0,
        makers=partial(_makers, geometry, tokens, place),
    )


def _makers(geometry: Geometry, tokens: int, place: Place) -> dict[str, Maker]:
    drawn = _fresh(geometry, tokens, place)
    text_only = drawn._replace(positions=drawn.positions[:1].expand(3, tokens))

    def prepare(make: Callable[[], Prologue], given: Inputs) -> Prepared:
        prologue = make()
        inputs = given._replace(k_cache=given.k_cache.clone(), v_cache=given.v_cache.clone())
        errors = _errors(geometry, inputs, prologue(geometry, inputs))
        return Prepared(partial(prologue, geometry, inputs), errors)

    makers: dict[str, tuple[Callable[[], Prologue], Inputs]] = {
        "ours": (lambda: _ours, drawn),
        "unfused": (lambda: native, drawn),
        "torch.compile": (lambda: compiled(native), drawn),
        "aiter Triton, one axis": (partial(_aiter, text_only), text_only),
    }
    return {name: partial(prepare, *made) for name, made in makers.items()}


def _fresh(geometry: Geometry, tokens: int, place: Place) -> Inputs:
    """Random inputs, positions that differ on every axis, and caches of NaN."""
    d, device, dtype = geometry.head_size, place.device, place.dtype
    angle = torch.outer(torch.arange(_MAX_POSITION), 5e6 ** -(torch.arange(0, d, 2) / d))
    cache = torch.full((_SLOTS, geometry.num_kv_heads, d), float("nan"), dtype=dtype, device=device)
    return Inputs(
        qkv=place.normal(tokens, geometry.row_size),
        q_weight=1 + place.normal(d) * 0.2,
        k_weight=1 + place.normal(d) * 0.2,
        cos_sin=torch.cat([angle.cos(), angle.sin()], 1).to(device, dtype),
        positions=torch.randint(0, _MAX_POSITION, (3, tokens), device=device),
        k_cache=cache,
        v_cache=cache,
        slots=torch.randperm(_SLOTS, device=device)[:tokens],
    )


def _errors(geometry: Geometry, inputs: Inputs, q: Tensor) -> dict[str, float]:
    """Raises AbsentError if a value was changed, or if a slot outside the batch was written."""
    want_q, want_k, values = reference(geometry, inputs)
    if not torch.equal(inputs.v_cache[inputs.slots], values):
        raise AbsentError("the cached values are not the projection's")
    others = torch.ones(_SLOTS, dtype=torch.bool, device=q.device).index_fill_(0, inputs.slots, False)
    if not (inputs.k_cache[others].isnan().all() and inputs.v_cache[others].isnan().all()):
        raise AbsentError("it wrote a slot outside the batch")
    got = torch.cat([q.flatten(), inputs.k_cache[inputs.slots].flatten()])
    want = torch.cat([want_q.value.flatten(), want_k.value.flatten()])
    return {
        "largest error": float((got.double() - want.double()).abs().max()),
        "not nearest": float((got != want.to(got.dtype)).double().mean()),
    }


def _ours(geometry: Geometry, inputs: Inputs) -> Tensor:
    return qk_norm_mrope(geometry, *inputs)


def _aiter(given: Inputs) -> Prologue:
    op = load.module("aiter", "aiter.ops.triton.rope.fused_qkv_split_qk_norm_rope_cache")
    cos, sin = (table.contiguous() for table in given.cos_sin.chunk(2, -1))
    positions = given.positions[0].contiguous()
    q_weight, k_weight = given.q_weight.float() - 1, given.k_weight.float() - 1

    def prologue(geometry: Geometry, inputs: Inputs) -> Tensor:
        shape = (_SLOTS // _PAGE, _PAGE, geometry.num_kv_heads, geometry.head_size)
        q, _, _ = op.fused_qkv_split_qk_norm_rope_cache(
            inputs.qkv, q_weight, k_weight, cos, sin, positions,
            inputs.k_cache.view(shape), inputs.v_cache.view(shape), inputs.slots,
            geometry.num_q_heads, geometry.num_kv_heads, geometry.head_size, eps=geometry.eps, kv_cache_layout="NHD",
        )  # fmt: skip
        made: Tensor = q
        return made.flatten(1)

    return prologue
