"""Models of 16 layers for the engine's benchmarks: the shapes of real ones, with weights drawn from a seed."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

#: What the two share: a hidden size of 2048, one attention layer in four, 128 experts of which 8 are taken, one shared.
_SHAPE: Mapping[str, Any] = {
    "vocab_size": 32000,
    "hidden_size": 2048,
    "num_hidden_layers": 16,
    "num_attention_heads": 16,
    "num_key_value_heads": 2,
    "head_dim": 256,
    "full_attention_interval": 4,
    "linear_num_value_heads": 32,
    "linear_num_key_heads": 16,
    "linear_key_head_dim": 128,
    "linear_value_head_dim": 128,
    "linear_conv_kernel_dim": 4,
    "num_experts": 128,
    "num_experts_per_tok": 8,
    "moe_intermediate_size": 512,
    "shared_expert_intermediate_size": 512,
    "partial_rotary_factor": 0.25,
    "max_position_embeddings": 4096,
    "eos_token_id": 0,
}

QWEN3_NEXT: Mapping[str, Any] = {
    **_SHAPE,
    "architectures": ["Qwen3NextForCausalLM"],
    "model_type": "qwen3_next",
    "dtype": "bfloat16",
    "intermediate_size": 5632,
    "rope_theta": 10000.0,
}

QWEN3_5: Mapping[str, Any] = {
    "architectures": ["Qwen3_5MoeForConditionalGeneration"],
    "model_type": "qwen3_5_moe",
    "dtype": "bfloat16",
    "tie_word_embeddings": False,
    "text_config": {
        **_SHAPE,
        "model_type": "qwen3_5_moe_text",
        "rope_parameters": {
            "rope_type": "default",
            "rope_theta": 10000.0,
            "partial_rotary_factor": 0.25,
            "mrope_section": [11, 11, 10],
            "mrope_interleaved": True,
        },
    },
    "vision_config": {
        "depth": 1,
        "hidden_size": 64,
        "intermediate_size": 128,
        "num_heads": 2,
        "out_hidden_size": 2048,
        "num_position_embeddings": 16,
        "patch_size": 16,
    },
    "image_token_id": 31990,
    "video_token_id": 31991,
    "vision_start_token_id": 31992,
    "vision_end_token_id": 31993,
}

MODELS: Mapping[str, Mapping[str, Any]] = {"qwen3-next": QWEN3_NEXT, "qwen3.5": QWEN3_5}
