"""aiter's attention kernels and what feeds their caches. The simulation runs sglang's Triton attention instead: these
are imported and refuse to be called."""

from __future__ import annotations

from overlay.simulate.fakes.catalogues import aiter
from overlay.simulate.settings import AITER_HEAD

_TOP = ("aiter",)
_TRITON = "aiter.ops.triton"

aiter.signature("aiter.ops.activation.silu_and_mul", "out, input", shown_in=_TOP, last="v0.1.13")
aiter.signature("aiter.ops.activation.silu_and_mul", "out, input, limit=0.0", shown_in=_TOP, first="v0.1.15")

_MLA_DECODE = (
    "q, kv_buffer, o, qo_indptr, kv_indptr, kv_indices, kv_last_page_lens, max_seqlen_q, page_size=1, nhead_kv=1, "
    "sm_scale=None, logit_cap=0.0, num_kv_splits=None, num_kv_splits_indptr=None, work_meta_data=None, "
    "work_indptr=None, work_info_set=None, reduce_indptr=None, reduce_final_map=None, reduce_partial_map=None, "
    "q_scale=None, kv_scale=None, intra_batch_mode=False, return_logits=False, return_lse=False"
)
aiter.signature("aiter.mla.mla_decode_fwd", _MLA_DECODE, last="v0.1.15")
aiter.signature(
    "aiter.mla.mla_decode_fwd",
    f"{_MLA_DECODE}, g_kv_indptr=None, cp_world_size=1, cp_rank=0, causal=True",
    first=AITER_HEAD,
)
aiter.signature(
    "aiter.mla.mla_prefill_fwd",
    "q, kv_buffer, o, qo_indptr, kv_indptr, kv_indices, kv_last_page_lens, max_seqlen_q, sm_scale=None, "
    "logit_cap=0.0, num_kv_splits=None",
)
_MLA_INFO = (
    "batch_size, max_seqlen_qo, num_head_qo, q_dtype, kv_dtype, is_sparse, fast_mode=True, num_kv_splits=32, "
    "intra_batch_mode=False"
)
aiter.signature("aiter.ops.attention.get_mla_metadata_info_v1", _MLA_INFO, shown_in=_TOP, last="v0.1.15")
aiter.signature(
    "aiter.ops.attention.get_mla_metadata_info_v1",
    f"{_MLA_INFO}, max_split_per_batch=-1",
    shown_in=_TOP,
    first=AITER_HEAD,
)
_MLA_METADATA = (
    "seqlens_qo_indptr, seqlens_kv_indptr, kv_last_page_lens, num_heads_per_head_k, num_heads_k, is_causal, "
    "work_metadata_ptrs, work_info_set, work_indptr, reduce_indptr, reduce_final_map, reduce_partial_map, page_size=1, "
    "kv_granularity=16, max_seqlen_qo=-1, uni_seqlen_qo=-1, fast_mode=True, topk=-1, max_split_per_batch=-1, "
    "intra_batch_mode=False"
)
aiter.signature(
    "aiter.ops.attention.get_mla_metadata_v1",
    f"{_MLA_METADATA}, dtype_q=None, dtype_kv=None",
    shown_in=_TOP,
    last="v0.1.15",
)
aiter.signature(
    "aiter.ops.attention.get_mla_metadata_v1",
    f"{_MLA_METADATA}, is_cp_round_robin=False, mla_version=..., dtype_q_nope=None, dtype_q_rope=None, "
    "dtype_kv_nope=None, dtype_kv_rope=None, dtype_q=None, dtype_kv=None",
    shown_in=_TOP,
    first=AITER_HEAD,
)
aiter.signature(
    "aiter.ops.attention.paged_attention_ragged",
    "out, workspace_buffer, query, key_cache, value_cache, scale, kv_indptr, kv_page_indices, kv_last_page_lens, "
    "block_size, max_num_partitions, alibi_slopes, kv_cache_dtype, kv_cache_layout, logits_soft_cap, k_scale, v_scale, "
    "fp8_out_scale=None, partition_size=256, mtp=1",
    shown_in=_TOP,
)
aiter.signature(
    "aiter.ops.mha.flash_attn_varlen_func",
    "q, k, v, cu_seqlens_q, cu_seqlens_k, max_seqlen_q, max_seqlen_k, min_seqlen_q=0, dropout_p=0.0, "
    "softmax_scale=None, logits_soft_cap=0.0, causal=False, window_size=(-1, -1, 0), bias=None, alibi_slopes=None, "
    "deterministic=False, return_lse=False, return_attn_probs=False, how_v3_bf16_cvt=1, block_table=None, out=None, "
    "cu_seqlens_q_padded=None, cu_seqlens_k_padded=None, sink_ptr=None",
    shown_in=_TOP,
)
_BATCH_PREFILL = (
    "q, k, v, cu_seqlens_q, kv_indptr, kv_page_indices, max_seqlen_q, max_seqlen_k, dropout_p=0.0, softmax_scale=None, "
    "logits_soft_cap=0.0, causal=False, window_size=(-1, -1), alibi_slopes=None, deterministic=False, "
    "return_lse=False, return_attn_probs=False, out=None, kv_last_page_lens=None, block_table=None, seqlen_k=None, "
    "q_descale=None, k_descale=None, v_descale=None, kv_block_descale=None, sink_ptr=None"
)
aiter.signature("aiter.ops.mha.mha_batch_prefill_func", _BATCH_PREFILL, shown_in=_TOP, last="v0.1.13")
aiter.signature(
    "aiter.ops.mha.mha_batch_prefill_func", f"{_BATCH_PREFILL}, sink_size=0", shown_in=_TOP, first="v0.1.15"
)

for _name, _parameters in (
    ("indexer_k_quant_and_cache", "k, kv_cache, slot_mapping, quant_block_size, scale_fmt"),
    ("cp_gather_indexer_k_quant_cache", "kv_cache, dst_k, dst_scale, block_table, cu_seq_lens"),
):
    aiter.signature(f"aiter.ops.cache.{_name}", _parameters, last="v0.1.12")
    aiter.signature(f"aiter.ops.cache.{_name}", f"{_parameters}, preshuffle=False", first="v0.1.13")

_MLA_CACHE = (
    "q_nope, q_pe, k_nope, k_pe, kv_cache, slot_mapping, pos, cos, sin, k_scale, is_neox, num_decode_toks_for_zeros=0, "
    "apply_scale=True, q_out=None, decode_q_pe_out=None, k_pe_out=None, q_out_dtype=None"
)
for _first, _last, _more in (
    (None, "v0.1.13", ""),
    ("v0.1.15", "v0.1.15", ", shuffled_kv_cache=False"),
    (AITER_HEAD, None, ", shuffled_kv_cache=False, upcast_operand=False"),
):
    aiter.signature(
        f"{_TRITON}.fusions.fused_kv_cache.fused_qk_rope_cat_and_cache_mla",
        _MLA_CACHE + _more,
        shown_in=(f"{_TRITON}.fused_kv_cache",),
        first=_first,
        last=_last,
    )
aiter.signature(
    f"{_TRITON}.fusions.fused_qk_concat.fused_qk_rope_cat",
    "q_nope, q_pe, k_nope, k_pe, pos, cos, sin, is_neox",
    shown_in=(f"{_TRITON}.fused_qk_concat",),
)
