"""The sizes to verify over: what a config.json says, in the forms that models have."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from overlay.errors import OverlayError
from overlay.verify import shapes
from overlay.verify.model_config import read_model
from overlay.verify.shapes import HyperConnections, Mrope, SparseAttention

GEMMA2: dict[str, Any] = {
    "model_type": "gemma2", "hidden_size": 3584, "num_attention_heads": 16, "num_key_value_heads": 8, "head_dim": 256,
    "vocab_size": 256000, "rms_norm_eps": 1e-06, "torch_dtype": "float32",
}  # fmt: skip
QWEN3_VL: dict[str, Any] = {
    "model_type": "qwen3_vl",
    "text_config": {
        "model_type": "qwen3_vl_text", "hidden_size": 4096, "num_attention_heads": 32, "num_key_value_heads": 8,
        "head_dim": 128, "vocab_size": 151936, "dtype": "bfloat16",
        "rope_scaling": {"mrope_interleaved": True, "mrope_section": [24, 20, 20], "rope_type": "default"},
    },
    "vision_config": {"hidden_size": 1152, "num_heads": 16},
}  # fmt: skip
QWEN2_VL: dict[str, Any] = {
    "model_type": "qwen2_vl", "hidden_size": 3584, "num_attention_heads": 28, "num_key_value_heads": 4,
    "vocab_size": 152064, "torch_dtype": "float16", "rope_parameters": {"type": "mrope", "mrope_section": [16, 24, 24]},
}  # fmt: skip
DEEPSEEK_V4: dict[str, Any] = {
    "model_type": "deepseek_v4", "hidden_size": 4096, "num_attention_heads": 64, "num_key_value_heads": 1,
    "v_head_dim": 512, "vocab_size": 129280, "hc_mult": 4, "hc_sinkhorn_iters": 20, "hc_eps": 1e-5, "index_topk": 512,
    "window_size": 64,
}  # fmt: skip


def write(folder: Path, config: object) -> Path:
    (folder / "config.json").write_text(config if isinstance(config, str) else json.dumps(config))
    return folder


def test_a_flat_configuration(tmp_path: Path) -> None:
    model = read_model(write(tmp_path, GEMMA2))
    assert (model.name, model.hidden_size, model.vocab_size) == ("gemma2", 3584, 256000)
    assert (model.query_heads, model.key_value_heads, model.head_size) == (16, 8, 256)
    assert (model.eps, model.dtype) == (1e-6, "bfloat16")  # of a checkpoint in float32 a server makes bfloat16
    assert (model.mrope, model.hyper_connections, model.sparse_attention) == (None, None, None)


def test_the_text_half_of_a_model_of_text_and_images(tmp_path: Path) -> None:
    model = read_model(write(tmp_path, QWEN3_VL) / "config.json")
    assert (model.name, model.hidden_size, model.query_heads, model.dtype) == ("qwen3_vl", 4096, 32, "bfloat16")
    assert model.mrope == Mrope((24, 20, 20), interleaved=True)


def test_rotary_embedding_as_transformers_5_writes_it_and_a_head_size_that_follows(tmp_path: Path) -> None:
    model = read_model(write(tmp_path, QWEN2_VL))
    assert model.mrope == Mrope((16, 24, 24), interleaved=False)
    assert (model.head_size, model.dtype) == (128, "float16")


def test_hyper_connections_and_sparse_attention(tmp_path: Path) -> None:
    model = read_model(write(tmp_path, DEEPSEEK_V4))
    assert model.hyper_connections == HyperConnections(4, 20, 1e-5)
    assert model.sparse_attention == SparseAttention(window=64, chosen=512)
    assert model.head_size == 512


def test_ranks_share_the_heads(tmp_path: Path) -> None:
    model = read_model(write(tmp_path, QWEN3_VL), tensor_parallel=16)
    assert (model.query_heads, model.key_value_heads, model.hidden_size) == (2, 1, 4096)


def test_the_interpreter_gets_the_models_sizes_with_few_tokens(tmp_path: Path) -> None:
    model = read_model(write(tmp_path, GEMMA2))
    interpreted, on_gpu = shapes.of(model, interpreted=True), shapes.of(model, interpreted=False)
    assert interpreted.models == on_gpu.models == (model,)
    assert max(*interpreted.tokens, interpreted.prefill, *interpreted.large) < 10 < on_gpu.prefill


@pytest.mark.parametrize("default", [shapes.served(), shapes.tiny()])
def test_the_default_sets_reach_every_kernel(default: shapes.Shapes) -> None:
    for part in ("mrope", "hyper_connections", "sparse_attention"):
        assert any(getattr(model, part) is not None for model in default.models)


@pytest.mark.parametrize(
    ("config", "said"),
    [
        ("{", "config.json is not JSON (Expecting property name"),
        ("[" * 100_000, "config.json is not JSON ("),
        ([GEMMA2], "config.json holds no JSON object"),
        ({**GEMMA2, "hidden_size": "3584"}, 'config.json is "3584": expected a whole number above 0'),
        ({**GEMMA2, "num_attention_heads": 0}, "num_attention_heads of"),
        ({**GEMMA2, "vocab_size": None}, "vocab_size of"),
        ({**GEMMA2, "vocab_size": True}, "vocab_size of"),
        ({**GEMMA2, "head_dim": [256]}, "head_dim of"),
        ({**GEMMA2, "rms_norm_eps": "small"}, "rms_norm_eps of"),
        ({**DEEPSEEK_V4, "hc_eps": None}, "hc_eps of"),
        ({**GEMMA2, "rope_scaling": {"mrope_section": [1, 2]}}, "rope_scaling.mrope_section of"),
        ({**GEMMA2, "rope_scaling": {"mrope_section": [1, 2, "3"]}}, "rope_scaling.mrope_section of"),
    ],
)
def test_a_configuration_that_cannot_be_used(tmp_path: Path, config: object, said: str) -> None:
    with pytest.raises(OverlayError) as caught:
        read_model(write(tmp_path, config))
    assert said in str(caught.value)
    assert str(tmp_path / "config.json") in str(caught.value)


def test_no_such_model(tmp_path: Path) -> None:
    for path in (tmp_path, tmp_path / "absent"):
        with pytest.raises(OverlayError, match=r"cannot be read \(No such file or directory\). Give --model-path"):
            read_model(path)


def test_ranks_that_do_not_divide_the_heads(tmp_path: Path) -> None:
    with pytest.raises(OverlayError, match="--tp 3 does not divide the 16 attention heads"):
        read_model(write(tmp_path, GEMMA2), tensor_parallel=3)
