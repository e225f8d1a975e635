"""Tiny DeepSeek-V3s out of the real classes of one release."""

from __future__ import annotations

from contextlib import contextmanager
from types import ModuleType
from typing import Any

import torch
from torch import Tensor
from transformers import PretrainedConfig

from tests.patches.in_release import one_rank

HIDDEN = 64
SCALING = 2.5


class Release:
    """A server of one rank in this process, and the module of its DeepSeek models."""

    def __init__(self) -> None:
        self.args = one_rank.start()
        from sglang.srt.layers.moe import initialize_moe_config

        initialize_moe_config(self.args)
        # The registry of a server imports every model; the fix of the in-place race waits for both of its two.
        from sglang.srt.models import deepseek_v2, qwen2_moe  # noqa: F401

        self.module: ModuleType = deepseek_v2
        self.args.disable_shared_experts_fusion = True
        self.args.device = "cpu"

    def model(self, **changed: object) -> Any:
        """A `DeepseekV2Model` of one dense and one MoE layer."""
        with bfloat16():
            return self.module.DeepseekV2Model(config(**changed))

    def draft(self) -> Any:
        from sglang.srt.models.deepseek_nextn import DeepseekModelNextN

        with bfloat16():
            return DeepseekModelNextN(config())

    def block(self, model: Any | None = None) -> Any:
        """The MoE block of a model, with weights that leave no result at zero."""
        block = (model or self.model()).layers[1].mlp
        torch.manual_seed(0)
        for parameter in block.parameters():
            parameter.data = (torch.randn(parameter.shape) * 0.2).to(parameter.dtype)
        block.experts.quant_method.process_weights_after_loading(block.experts)
        return block

    def set_aiter(self, monkeypatch: Any, on: bool) -> None:
        """What routing and the model's forward take aiter for; the experts stay aiter's."""
        from sglang.srt.layers.moe import topk

        for module in (topk, self.module):
            monkeypatch.setattr(module, "_use_aiter", on)


def config(**changed: object) -> PretrainedConfig:
    return PretrainedConfig(
        **{
            "architectures": ["DeepseekV3ForCausalLM"],
            "vocab_size": 64,
            "hidden_size": HIDDEN,
            "intermediate_size": 128,
            "moe_intermediate_size": 32,
            "num_hidden_layers": 2,
            "first_k_dense_replace": 1,
            "moe_layer_freq": 1,
            "num_attention_heads": 4,
            "num_key_value_heads": 4,
            "kv_lora_rank": 32,
            "q_lora_rank": 32,
            "qk_rope_head_dim": 16,
            "qk_nope_head_dim": 16,
            "v_head_dim": 16,
            "n_shared_experts": 1,
            "n_routed_experts": 16,
            "num_experts_per_tok": 4,
            "n_group": 4,
            "topk_group": 2,
            "topk_method": "noaux_tc",
            "norm_topk_prob": True,
            "scoring_func": "sigmoid",
            "routed_scaling_factor": SCALING,
            "hidden_act": "silu",
            "max_position_embeddings": 256,
            "rms_norm_eps": 1e-6,
            "rope_theta": 10000.0,
            "rope_scaling": {
                "rope_type": "deepseek_yarn",
                "factor": 4.0,
                "original_max_position_embeddings": 64,
                "mscale": 1.0,
                "mscale_all_dim": 1.0,
                "beta_fast": 32,
                "beta_slow": 1,
            },
            "pad_token_id": 0,
            **changed,
        }
    )


def tokens(count: int = 5) -> Tensor:
    return torch.randn(count, HIDDEN, generator=torch.Generator().manual_seed(1)).to(torch.bfloat16)


@contextmanager
def bfloat16() -> Any:
    """The dtype in which a server builds its layers."""
    torch.set_default_dtype(torch.bfloat16)
    try:
        yield
    finally:
        torch.set_default_dtype(torch.float32)
