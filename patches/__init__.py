"""The patches this distribution ships, in the order in which they are decided and applied.

Importing this package imports neither torch nor sglang: a patch loads its kernels when it is applied.
"""

from overlay.model import Patch
from patches import (
    deepseek_dual_stream,
    fix_aiter_greedy_sample,
    fix_aiter_semaphore,
    fix_deepstack_residual,
    fix_dual_stream_inplace,
    fix_dual_stream_scaling,
    fix_fused_mrope_guards,
    fix_vllm_norm_signature,
    gemma_rmsnorm,
    greedy_sampler,
    mori_async_warning,
    qwen3_5_alt_stream,
    qwen3_fused_attention,
)

PATCHES: tuple[Patch, ...] = (
    gemma_rmsnorm.PATCH,
    fix_vllm_norm_signature.PATCH,
    fix_deepstack_residual.PATCH,
    qwen3_fused_attention.PATCH,
    fix_fused_mrope_guards.PATCH,
    greedy_sampler.PATCH,
    fix_aiter_greedy_sample.PATCH,
    fix_dual_stream_inplace.PATCH,
    qwen3_5_alt_stream.PATCH,
    fix_dual_stream_scaling.PATCH,
    deepseek_dual_stream.PATCH,
    mori_async_warning.PATCH,
    fix_aiter_semaphore.PATCH,
)
