"""The PyTorch bodies of the fakes, against the definition of what they compute."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F

from overlay.simulate.fakes import aiter_moe, aiter_mrope, aiter_norm, aiter_rope, kernel_bodies
from overlay.simulate.fakes.aiter_values import QuantType
from overlay.simulate.fakes.errors import MissingBodyError

TOKENS, EXPERTS, TOPK, HIDDEN, INTER = 7, 4, 2, 8, 6


@pytest.fixture(autouse=True)
def _seeded() -> None:
    torch.manual_seed(0)


def _moe(activation: int = 0, quant_type: int = 0, **more: object) -> tuple[torch.Tensor, torch.Tensor]:
    """Output of the fake and of a plain loop over tokens and experts."""
    x = torch.randn(TOKENS, HIDDEN)
    w1, w2 = torch.randn(EXPERTS, 2 * INTER, HIDDEN), torch.randn(EXPERTS, HIDDEN, INTER)
    weights, ids = torch.rand(TOKENS, TOPK), torch.stack([torch.randperm(EXPERTS)[:TOPK] for _ in range(TOKENS)])
    mask = more.pop("expert_mask", None)
    assert mask is None or isinstance(mask, torch.Tensor)
    local = w1 if mask is None else w1[: int(mask.sum())]
    out = aiter_moe.fused_moe(x, local, w2[: local.shape[0]], weights, ids, mask, activation, quant_type, None, **more)
    expected = torch.zeros(TOKENS, HIDDEN)
    where = torch.arange(EXPERTS) if mask is None else torch.cumsum(mask, 0) - 1
    for token in range(TOKENS):
        for weight, expert in zip(weights[token], ids[token], strict=True):
            if mask is None or mask[expert]:
                gate, up = (w1[where[expert]] @ x[token]).chunk(2)
                act = F.silu if activation == 0 else F.gelu
                expected[token] += weight * (w2[where[expert]] @ (act(gate) * up))
    return out, expected


@pytest.mark.parametrize("activation", [0, 1])
@pytest.mark.parametrize("mask", [None, torch.tensor([0, 1, 1, 0])])
def test_fused_moe_is_a_loop_over_experts(activation: int, mask: torch.Tensor | None) -> None:
    torch.testing.assert_close(*_moe(activation, expert_mask=mask))


@pytest.mark.parametrize(
    "asked", [{"activation": 2}, {"quant_type": 2}, {"w1_scale": torch.ones(1)}, {"hidden_pad": 8}]
)
def test_fused_moe_refuses_what_it_does_not_compute(asked: dict[str, object]) -> None:
    with pytest.raises(MissingBodyError, match="fused_moe"):
        _moe(**asked)  # type: ignore[arg-type]


def test_fused_moe_accepts_what_only_tunes() -> None:
    torch.testing.assert_close(*_moe(block_size_M=64, splitk=2))


def test_the_residual_is_rounded_before_the_norm() -> None:
    x, residual = (torch.randn(3, HIDDEN).to(torch.bfloat16) for _ in range(2))
    weight, out, residual_out = torch.randn(HIDDEN).to(torch.bfloat16), torch.empty_like(x), torch.empty_like(x)
    aiter_norm.rmsnorm2d_fwd_with_add(out, x, residual, residual_out, weight, 1e-6)
    assert torch.equal(residual_out, x + residual)
    assert torch.equal(out, aiter_norm.rms_norm(x + residual, weight, 1e-6))
    plain = out.clone()
    aiter_norm.rmsnorm2d_fwd_with_add_or_gemma(out, x, residual, residual_out, weight, 1e-6, gemma_norm=True)
    assert torch.equal(out, aiter_norm.rms_norm(x + residual, weight.float() + 1, 1e-6))
    assert not torch.equal(out, plain)


def test_unquantised_qk_norm_ignores_gemma_and_the_residual_as_the_real_one() -> None:
    q, weight, out = torch.randn(3, HIDDEN), torch.randn(HIDDEN), torch.empty(3, HIDDEN)
    aiter_norm.fused_qk_rmsnorm_quant(q_out_quantized=out, q=q, q_weight=weight, gemma_norm=True)
    assert torch.equal(out, aiter_norm.rms_norm(q, weight, 1e-6))
    with pytest.raises(MissingBodyError, match="per_Token"):
        aiter_norm.fused_qk_rmsnorm_quant(q_out_quantized=out, q=q, q_weight=weight, quant_type=QuantType.per_Token)


@pytest.mark.parametrize("is_neox", [True, False])
def test_rotation_turns_pairs_and_keeps_the_rest(is_neox: bool) -> None:
    x, angle = torch.randn(5, 2, 12), torch.rand(5, 1, 4)
    turned = aiter_rope.rotate(x, angle.cos(), angle.sin(), is_neox)
    first, second = (slice(0, 4), slice(4, 8)) if is_neox else (slice(0, 8, 2), slice(1, 8, 2))
    expected = torch.complex(x[..., first], x[..., second]) * torch.exp(1j * angle)
    torch.testing.assert_close(turned[..., first], expected.real)
    torch.testing.assert_close(turned[..., second], expected.imag)
    assert torch.equal(turned[..., 8:], x[..., 8:])


def test_rope_refuses_a_scaling_it_does_not_know() -> None:
    with pytest.raises(MissingBodyError, match="yarn"):
        aiter_rope.get_rope(8, 8, 16, 10000, rope_scaling={"rope_type": "yarn"})


def test_grouped_routing_chooses_by_biased_and_weighs_by_plain_scores() -> None:
    gating, bias = torch.tensor([[2.0, 1.0, 0.5, -1.0]]), torch.tensor([0.0, 0.0, 5.0, 5.0])
    weights, ids = torch.empty(1, 2), torch.empty(1, 2, dtype=torch.int32)
    aiter_moe.biased_grouped_topk(gating, bias, weights, ids, 2, 1, True, 2.5)
    assert sorted(ids[0].tolist()) == [2, 3]  # the bias lifts the second group
    scores = gating.sigmoid()[0, ids[0].long()]
    torch.testing.assert_close(weights[0], scores / scores.sum() * 2.5)


def test_token_slots_are_sorted_into_whole_blocks() -> None:
    topk_ids = torch.tensor([[0, 2], [2, 0], [2, -1]])
    sorted_ids, experts, padded = torch.empty(20, dtype=torch.int32), torch.full((5,), -9), torch.empty(1)
    kernel_bodies.moe_align_block_size(topk_ids, 4, 2, sorted_ids, experts, padded)
    assert experts.tolist() == [-1, 0, 2, 2, -9]
    assert padded.item() == 8
    assert sorted_ids[:8].tolist() == [5, 6, 0, 3, 1, 2, 4, 6]  # 6: no token


class MropeCall:
    """A call of aiter's fused prologue: one key and value head of 8 elements, three tokens, the second without slot."""

    TOKENS, HEADS, SIZE = 3, 2, 8

    def __init__(self, dtype: torch.dtype = torch.float32, cache_dtype: torch.dtype | None = None) -> None:
        self.qkv = torch.randn(self.TOKENS, 4 * self.SIZE).to(dtype)
        self.qw, self.kw = torch.randn(self.SIZE).to(dtype), torch.randn(self.SIZE).to(dtype)
        angle = torch.rand(16, self.SIZE // 2)
        self.cos_sin = torch.cat([angle.cos(), angle.sin()], -1).to(dtype)
        self.positions = torch.tensor([[1, 2, 3], [4, 5, 6], [7, 8, 9]])
        self.slots = torch.tensor([2, -1, 4])
        self.q_out = torch.empty(self.TOKENS, self.HEADS * self.SIZE, dtype=dtype)
        self.k_cache, self.v_cache = (torch.zeros(6, 1, self.SIZE).to(cache_dtype or dtype) for _ in range(2))

    def run(self, op: Callable[..., None], scale: float = 1.0) -> None:
        op(
            qkv=self.qkv, qw=self.qw, kw=self.kw, positions=self.positions, k_cache=self.k_cache, v_cache=self.v_cache,
            cos_sin=self.cos_sin, num_tokens=self.TOKENS,
            num_heads_q=self.HEADS, num_heads_k=1, num_heads_v=1, head_size=self.SIZE, is_neox_style=True,
            mrope_section_=[2, 1, 1], is_interleaved=True, eps=1e-6, q_out=self.q_out, slot_mapping=self.slots,
            per_tensor_k_scale=torch.tensor(scale), per_tensor_v_scale=torch.tensor(scale), k_out=None, v_out=None,
            return_kv=False, use_shuffle_layout=False, block_size=0, x=0, rotary_dim=0,
        )  # fmt: skip

    def expected(self) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        q, k, v = torch.split(self.qkv.view(self.TOKENS, 4, self.SIZE), [self.HEADS, 1, 1], 1)
        # Interleaved sections [2, 1, 1]: frequencies take their positions from dimensions 0, 1, 2, 0.
        cos, sin = (
            torch.stack([table[self.positions[d], f] for f, d in enumerate((0, 1, 2, 0))], -1)[:, None].float()
            for table in self.cos_sin.chunk(2, -1)
        )
        normed = aiter_norm.rms_norm(q, self.qw, 1e-6), aiter_norm.rms_norm(k, self.kw, 1e-6)
        rotated_q, rotated_k = (aiter_rope.rotate(x, cos, sin, True) for x in normed)
        return rotated_q, rotated_k, v


MROPES = pytest.mark.parametrize("op", [aiter_mrope.with_packed_cache, aiter_mrope.with_strided_cache])


@MROPES
def test_fused_qk_norm_mrope_writes_queries_and_the_cache(op: Callable[..., None]) -> None:
    call = MropeCall()
    call.k_cache, call.v_cache = call.k_cache.unsqueeze(1), call.v_cache.unsqueeze(1)  # blocks of one slot
    call.run(op)
    q, k, v = call.expected()
    torch.testing.assert_close(call.q_out.view_as(q), q)
    torch.testing.assert_close(call.k_cache[2, 0], k[0])
    assert torch.equal(call.v_cache[[2, 4], 0], v[[0, 2]])
    assert not call.v_cache[[0, 1, 3, 5]].any()  # slot -1 is written nowhere


@MROPES
def test_an_fp8_cache_is_divided_by_the_scale(op: Callable[..., None]) -> None:
    call = MropeCall(torch.bfloat16, torch.float8_e4m3fnuz)
    call.k_cache, call.v_cache = call.k_cache.unsqueeze(1), call.v_cache.unsqueeze(1)
    call.run(op, scale=0.5)
    _, _, v = call.expected()
    torch.testing.assert_close(call.v_cache[2, 0].float() * 0.5, v[0].float(), rtol=2**-4, atol=2**-9)


def test_the_newer_fused_qk_norm_mrope_takes_strides_from_dimensions_1_and_2() -> None:
    packed, strided = MropeCall(), MropeCall()
    strided.__dict__.update({**vars(packed), "v_cache": packed.v_cache.clone()})
    packed.run(aiter_mrope.with_packed_cache)
    strided.run(aiter_mrope.with_strided_cache)
    assert torch.equal(packed.v_cache[[2, 4]], packed.expected()[2][[0, 2]])
    # Of [6, 1, 8] that is a stride of 8 from token to token, right with one head alone.
    assert torch.equal(strided.v_cache, packed.v_cache)
    strided.v_cache = torch.zeros(6, 2, 4)  # the same memory, cut otherwise: 4 from token to token
    strided.run(aiter_mrope.with_strided_cache)
    assert torch.equal(strided.v_cache.flatten()[4 * 4 : 4 * 4 + 8], strided.expected()[2][2].flatten())


@pytest.mark.parametrize("name", ["positions", "slots", "qw", "cos_sin"])
def test_fused_qk_norm_mrope_checked_dtypes_and_then_reads_bits(name: str) -> None:
    call = MropeCall(torch.bfloat16)
    wide = name in ("qw", "cos_sin")
    setattr(call, name, getattr(call, name).float() if wide else getattr(call, name).int())
    with pytest.raises(RuntimeError, match="expected scalar type"):
        call.run(aiter_mrope.with_packed_cache)
    if wide:
        call.run(aiter_mrope.with_strided_cache)
        seen: torch.Tensor = getattr(call, name)
        setattr(call, name, seen.view(torch.bfloat16).flatten()[: seen.numel()].view_as(seen))
        q, _, _ = call.expected()
        assert torch.equal(call.q_out.view_as(q).nan_to_num(), q.nan_to_num())
    else:
        with pytest.raises(IndexError):
            call.run(aiter_mrope.with_strided_cache)


@MROPES
def test_fused_qk_norm_mrope_refuses_text_positions(op: Callable[..., None]) -> None:
    call = MropeCall()
    call.positions = call.positions[0]
    with pytest.raises(RuntimeError, match="positions"):
        call.run(op)
