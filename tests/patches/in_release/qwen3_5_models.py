"""Qwen3.5 models of a few kilobytes, built of a release's own classes."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import torch

HIDDEN = 32


def text_config(moe: bool = True, can_fuse: bool = True, shared: bool = True) -> SimpleNamespace:
    """What the model classes of every release read of the config of a linear and an attention layer.

    `shared`: whether MoE blocks have a shared expert; `can_fuse`: whether it is as large as a routed one, which fusing
    it takes.
    """
    rope = {"rope_type": "default", "rope_theta": 1e4, "mrope_section": [2, 1, 1], "mrope_interleaved": True}
    return SimpleNamespace(
        model_type="qwen3_5_moe_text" if moe else "qwen3_5_text",
        layers_block_type=["linear_attention", "attention"],
        num_hidden_layers=2,
        vocab_size=64,
        hidden_size=HIDDEN,
        intermediate_size=32,
        hidden_act="silu",
        rms_norm_eps=1e-6,
        tie_word_embeddings=False,
        dtype=torch.bfloat16,
        torch_dtype=torch.bfloat16,
        num_attention_heads=2,
        num_key_value_heads=1,
        head_dim=16,
        attention_bias=False,
        attn_output_gate=True,
        output_gate_type="sigmoid",
        max_position_embeddings=64,
        rope_theta=1e4,
        partial_rotary_factor=0.5,
        rope_scaling=rope,
        rope_parameters={**rope, "partial_rotary_factor": 0.5},
        linear_conv_kernel_dim=4,
        linear_key_head_dim=16,
        linear_value_head_dim=16,
        linear_num_key_heads=2,
        linear_num_value_heads=2,
        mamba_ssm_dtype="float32",
        num_experts=4,
        num_experts_per_tok=2,
        norm_topk_prob=True,
        moe_intermediate_size=16,
        shared_expert_intermediate_size=(16 if can_fuse else 32) * shared,
    )


def vision_language_config() -> SimpleNamespace:
    """The text config inside a vision-language one."""
    vision = SimpleNamespace(
        model_type="qwen3_5",
        hidden_size=HIDDEN,
        intermediate_size=32,
        num_heads=2,
        depth=1,
        patch_size=2,
        spatial_merge_size=2,
        temporal_patch_size=2,
        in_channels=3,
        out_hidden_size=HIDDEN,
        num_position_embeddings=16,
        deepstack_visual_indexes=[],
        hidden_act="silu",
    )
    return SimpleNamespace(
        text_config=text_config(), vision_config=vision, rms_norm_eps=1e-6, tie_word_embeddings=False
    )


def build(cls: Any, **arguments: object) -> Any:
    """A `cls` in bfloat16, with small random weights."""
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.bfloat16)
    try:
        model = cls(**arguments)
    finally:
        torch.set_default_dtype(before)
    for parameter in model.parameters():
        parameter.data = (torch.randn(parameter.shape) * 0.1).to(parameter.dtype)
    return model
