"""What sglang imports of sgl_kernel without calling it here."""

from __future__ import annotations

from overlay.simulate.fakes import scalar_type
from overlay.simulate.fakes.catalogues import sgl_kernel

sgl_kernel.module("sgl_kernel.allreduce")

sgl_kernel.value("sgl_kernel.scalar_type.ScalarType", lambda: scalar_type.ScalarType)
sgl_kernel.value("sgl_kernel.scalar_type.scalar_types", lambda: scalar_type.scalar_types)


def _declare(
    functions: dict[str, str], *, module: str = "sgl_kernel", top: bool = False, last: str | None = None
) -> None:
    for name, parameters in functions.items():
        shown_in = ("sgl_kernel",) if top else ()
        sgl_kernel.signature(f"{module}.{name}", parameters, shown_in=shown_in, last=last)


_declare(
    {
        "gelu_quick": "input, out=None",
        "topk_sigmoid": "topk_weights, topk_ids, gating_output, renormalize=False, correction_bias=None",
        "apply_token_bitmask_inplace_cuda": "logits, bitmask, indices=None",
        "fast_topk": "values, topk, dim",
        "causal_conv1d_fwd": "x, weight, bias_, conv_states, query_start_loc, cache_indices, has_initial_state, "
        "silu_activation, pad_slot_id",
        "causal_conv1d_update": "x, conv_state, weight, bias_, silu_activation, cache_seqlens, conv_state_indices, "
        "pad_slot_id",
        "build_tree_kernel_efficient": "parent_list, selected_index, verified_seq_len, tree_mask, positions, "
        "retrive_index, retrive_next_token, retrive_next_sibling, topk, depth, draft_token_num, tree_mask_mode",
    }
)
_declare(
    {
        "dsv3_router_gemm": "hidden_states, router_weights, out_dtype=...",
        "gptq_gemm": "a, b_q_weight, b_gptq_qzeros, b_gptq_scales, b_g_idx, use_shuffle, bit",
        "gptq_shuffle": "q_weight, q_perm, bit",
    },
    last="0.4.2.post2",
)
_declare({"scaled_fp4_quant": "input, input_global_scale"}, last="0.3.21")

# Copies between the KV cache of the device and that of the host. Names say the layouts: lf layer first, pf page first,
# ph page and head.
_PAIR, _QUOTA = "src_k, dst_k, src_v, dst_v, src_indices, dst_indices", "block_quota=..., num_warps_per_block=..."
_LAYERS = "src_k_layers, dst_k_layers, src_v_layers, dst_v_layers, src_indices, dst_indices, item_size"
_TO_PAGES = "src_k_layers, dst_k, src_v_layers, dst_v, src_indices, dst_indices, item_size, dst_layout_dim, num_layers"
_FROM_PAGES = f"{_PAIR}, layer_id, item_size, src_layout_dim"
_declare(
    {
        "transfer_kv_per_layer": f"{_PAIR}, item_size, {_QUOTA}",
        "transfer_kv_per_layer_mla": f"src, dst, src_indices, dst_indices, item_size, {_QUOTA}",
        "transfer_kv_all_layer": f"{_LAYERS}, num_layers, {_QUOTA}",
        "transfer_kv_all_layer_mla": "src_layers, dst_layers, src_indices, dst_indices, item_size, num_layers, "
        + _QUOTA,
    },
    module="sgl_kernel.kvcacheio",
    top=True,
)
_declare(
    {
        "transfer_kv_direct": "src_layers, dst_layers, src_indices, dst_indices, page_size",
        "transfer_kv_per_layer_pf_lf": f"{_FROM_PAGES}, {_QUOTA}",
        "transfer_kv_per_layer_ph_lf": f"{_FROM_PAGES}, page_size, head_num, {_QUOTA}",
        "transfer_kv_per_layer_mla_pf_lf": "src, dst, src_indices, dst_indices, layer_id, item_size, src_layout_dim, "
        + _QUOTA,
        "transfer_kv_per_layer_direct_pf_lf": "src_ptrs, dst_ptrs, src_indices, dst_indices, layer_id, page_size",
        "transfer_kv_all_layer_lf_pf": f"{_TO_PAGES}, {_QUOTA}",
        "transfer_kv_all_layer_lf_ph": f"{_TO_PAGES}, page_size, head_num, {_QUOTA}",
        "transfer_kv_all_layer_mla_lf_pf": "src_layers, dst, src_indices, dst_indices, item_size, dst_layout_dim, "
        f"num_layers, {_QUOTA}",
        "transfer_kv_all_layer_direct_lf_pf": "src_ptrs, dst_ptrs, src_indices, dst_indices, page_size",
    },
    module="sgl_kernel.kvcacheio",
)
