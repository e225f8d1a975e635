"""The PyTorch bodies of the fakes, against the definition of what they compute."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from overlay.simulate.fakes import aiter_moe, aiter_norm, aiter_rope, kernel_bodies
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


def test_fused_qk_norm_mrope_writes_queries_and_the_cache() -> None:
    tokens, heads, size, rotary = 3, 2, 8, 8
    qkv, qw, kw = torch.randn(tokens, 4 * size), torch.randn(size), torch.randn(size)
    angle = torch.rand(16, rotary // 2)
    positions = torch.tensor([[1, 2, 3], [4, 5, 6], [7, 8, 9]])
    q_out, k_cache, v_cache = torch.empty(tokens, heads * size), torch.zeros(6, 1, size), torch.zeros(6, 1, size)
    slots = torch.tensor([2, -1, 4])
    aiter_rope.fused_qk_norm_mrope(
        qkv, qw, kw, torch.cat([angle.cos(), angle.sin()], -1), positions, tokens, heads, 1, 1, size, True, [2, 1, 1],
        True, 1e-6, q_out, k_cache, v_cache, slots, None, None, False, False,
    )  # fmt: skip
    q, k, v = torch.split(qkv.view(tokens, 4, size), [heads, 1, 1], 1)
    # Interleaved sections [2, 1, 1]: frequencies take their positions from dimensions 0, 1, 2, 0.
    taken = torch.stack([angle[positions[d], f] for f, d in enumerate((0, 1, 2, 0))], -1)[:, None]
    expected = aiter_rope.rotate(aiter_norm.rms_norm(q, qw, 1e-6), taken.cos(), taken.sin(), True)
    torch.testing.assert_close(q_out.view_as(expected), expected)
    torch.testing.assert_close(
        k_cache[2], aiter_rope.rotate(aiter_norm.rms_norm(k, kw, 1e-6), taken.cos(), taken.sin(), True)[0]
    )
    assert torch.equal(v_cache[[2, 4]], v[[0, 2]])
    assert not v_cache[[0, 1, 3, 5]].any()  # slot -1 is written nowhere
