"""aiter's mixture of experts: routing, the fused experts, and the layout of their weights. Unquantised."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
import torch.nn.functional as F
from torch import Tensor

from overlay.simulate.fakes.aiter_values import ActivationType, QuantType
from overlay.simulate.fakes.catalogues import aiter
from overlay.simulate.fakes.errors import MissingBodyError
from overlay.simulate.settings import AITER_HEAD

_TOP = ("aiter",)
_FUSED_MOE = (
    "hidden_states, w1, w2, topk_weight, topk_ids, expert_mask=None, activation=0, quant_type=0, "
    "doweight_stage1=False, w1_scale=None, w2_scale=None, a1_scale=None, a2_scale=None, block_size_M=None, "
    "num_local_tokens=None, moe_sorting_dispatch_policy=0, dtype=None, hidden_pad=0, intermediate_pad=0, bias1=None, "
    "bias2=None, splitk=0"
)
_ACTIVATIONS: Mapping[ActivationType, Callable[[Tensor], Tensor]] = {
    ActivationType.Silu: F.silu,
    ActivationType.Gelu: F.gelu,
}
#: Arguments that change the speed and not the answer.
_TUNING = ("block_size_M", "moe_sorting_dispatch_policy", "splitk")


@aiter.function("aiter.fused_moe.fused_moe", _FUSED_MOE, last="v0.1.13")
@aiter.function(
    "aiter.fused_moe.fused_moe",
    f"{_FUSED_MOE}, swiglu_limit=0.0, gate_mode='separated'",
    first="v0.1.15",
    last="v0.1.15",
)
@aiter.function(
    "aiter.fused_moe.fused_moe",
    f"{_FUSED_MOE}, swiglu_limit=None, beta=None, linear_beta=None, gate_mode='separated', shared_w1=None, "
    "shared_w2=None, shared_w1_scale=None, shared_w2_scale=None, shared_expert_id=-1, stage2_scatter=None",
    first=AITER_HEAD,
)
def fused_moe(
    hidden_states: Tensor,
    w1: Tensor,
    w2: Tensor,
    topk_weight: Tensor,
    topk_ids: Tensor,
    expert_mask: Tensor | None,
    activation: int,
    quant_type: int,
    dtype: torch.dtype | None,
    **rest: object,
) -> Tensor:
    """Sum over each token's experts of weight * w2 @ (act(gate) * up).

    `hidden_states` [tokens, hidden], `w1` [experts, 2 * inter, hidden] with the gate first, `w2` [experts, hidden,
    inter], `topk_weight` and `topk_ids` [tokens, topk]; `expert_mask` [global experts] says which of them are here.
    Raises MissingBodyError for everything that is not a plain, unquantised, gated MLP.
    """
    _insist_on_defaults(rest)
    act = _ACTIVATIONS.get(ActivationType(activation))
    if act is None or quant_type != QuantType.No:
        raise MissingBodyError(
            f"aiter.fused_moe.fused_moe with {ActivationType(activation)!r} and {QuantType(quant_type)!r} has no body "
            "in the simulation"
        )
    if expert_mask is None:
        local = torch.arange(w1.shape[0])
    else:
        local = torch.where(expert_mask.bool(), torch.cumsum(expert_mask.int(), 0) - 1, -1)
    x, inter = hidden_states.float(), w2.shape[-1]
    out = torch.zeros(x.shape[0], w2.shape[1])
    for expert, here in enumerate(local.tolist()):
        token, slot = torch.nonzero(topk_ids == expert, as_tuple=True)
        if here < 0 or token.numel() == 0:
            continue
        hidden = F.linear(x[token], w1[here].float())
        projected = F.linear(act(hidden[:, :inter]) * hidden[:, inter:], w2[here].float())
        out.index_add_(0, token, projected * topk_weight[token, slot, None].float())
    return out.to(dtype or hidden_states.dtype)


def _insist_on_defaults(arguments: Mapping[str, object]) -> None:
    asked = {n: v for n, v in arguments.items() if n not in _TUNING and v not in (None, False, 0, 0.0, -1, "separated")}
    if asked:
        raise MissingBodyError(f"aiter.fused_moe.fused_moe with {sorted(asked)} has no body in the simulation")


@aiter.function("aiter.fused_moe.fused_topk")
def fused_topk(
    hidden_states: Tensor,
    gating_output: Tensor,
    topk: int,
    renormalize: bool,
    topk_ids: Tensor | None = None,
    topk_weights: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    weights, ids = torch.topk(torch.softmax(gating_output.float(), -1), topk, -1)
    if renormalize:
        weights = weights / weights.sum(-1, keepdim=True)
    topk_weights = weights if topk_weights is None else topk_weights.copy_(weights)
    topk_ids = ids.to(torch.int32) if topk_ids is None else topk_ids.copy_(ids)
    return topk_weights, topk_ids


@aiter.function("aiter.ops.topk.biased_grouped_topk", shown_in=_TOP)
def biased_grouped_topk(
    gating_output: Tensor,
    correction_bias: Tensor,
    topk_weights: Tensor,
    topk_ids: Tensor,
    num_expert_group: int,
    topk_group: int,
    need_renorm: bool,
    routed_scaling_factor: float = 1.0,
) -> None:
    """DeepSeek-V3's routing: the bias chooses the experts, the sigmoid alone weighs them."""
    scores = gating_output.float().sigmoid()
    chosen_by = scores + correction_bias.float()
    grouped = chosen_by.view(scores.shape[0], num_expert_group, -1)
    best_groups = grouped.topk(2, -1).values.sum(-1).topk(topk_group, -1).indices
    closed = torch.ones_like(grouped, dtype=torch.bool).scatter_(
        1, best_groups[..., None].expand(-1, -1, grouped.shape[-1]), False
    )
    ids = grouped.masked_fill(closed, -torch.inf).flatten(1).topk(topk_ids.shape[-1], -1).indices
    weights = scores.gather(1, ids)
    if need_renorm:
        weights = weights / weights.sum(-1, keepdim=True)
    topk_weights.copy_(weights * routed_scaling_factor)
    topk_ids.copy_(ids)


@aiter.function("aiter.ops.moe_op.moe_sum", shown_in=_TOP)
def moe_sum(input: Tensor, output: Tensor) -> None:
    output.copy_(input.float().sum(1))


@aiter.function("aiter.ops.shuffle.shuffle_weight", "x, layout=(16, 16), use_int4=False", last="v0.1.13")
@aiter.function(
    "aiter.ops.shuffle.shuffle_weight",
    "x, layout=(16, 16), use_int4=False, is_guinterleave=False, gate_up=False",
    first="v0.1.15",
    last="v0.1.15",
)
@aiter.function(
    "aiter.ops.shuffle.shuffle_weight",
    "x, layout=(16, 16), use_int4=False, is_guinterleave=False, gate_up=False, pad_k_to=0",
    first=AITER_HEAD,
)
def shuffle_weight(x: Tensor, **_: object) -> Tensor:
    """The weight as it is: an order that suits the matrix units means nothing to its only reader, `fused_moe`."""
    return x


aiter.signature("aiter.ops.shuffle.shuffle_weight_a16w4", "src, NLane, gate_up")
aiter.signature("aiter.ops.shuffle.shuffle_scale_a16w4", "src, experts_cnt, gate_up")
aiter.signature(
    "aiter.ops.shuffle.shuffle_scale", "src, experts_cnt=None, is_guinterleave=False, gate_up=False", first="v0.1.15"
)
aiter.signature(
    "aiter.ops.shuffle.moe_shuffle_scale",
    "src, experts_cnt=None, is_guinterleave=False, gate_up=False",
    first=AITER_HEAD,
)
aiter.signature(
    "aiter.ops.shuffle.moe_shuffle_weight",
    "src, experts_cnt=None, is_guinterleave=False, gate_up=False, layout=(16, 16)",
    first=AITER_HEAD,
)
