"""A model's sizes, out of the config.json that Hugging Face's transformers writes."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from overlay.errors import OverlayError
from overlay.verify.shapes import HyperConnections, Model, Mrope, SparseAttention


def read_model(path: Path, tensor_parallel: int = 1) -> Model:
    """The model of a Hugging Face folder or config.json. Raises OverlayError that names the file and the fix."""
    file = path / "config.json" if path.is_dir() else path
    fix = "Give --model-path the folder of a Hugging Face model, or its config.json."
    try:
        document = json.loads(file.read_bytes())
    except OSError as error:
        raise OverlayError(f"--model-path: {file} cannot be read ({error.strerror}). {fix}") from None
    except (ValueError, RecursionError) as error:
        raise OverlayError(f"--model-path: {file} is not JSON ({error}). {fix}") from None
    if not isinstance(document, dict):
        raise OverlayError(f"--model-path: {file} holds no JSON object. {fix}")
    # A model of text and images has a configuration of each.
    text = document.get("text_config")
    config = _Config(file, {**document, **text} if isinstance(text, dict) else document)
    return _split(config.model(document), file, tensor_parallel)


def _split(model: Model, file: Path, ranks: int) -> Model:
    """What one of `ranks` holds: a share of the heads, at least one of keys and values."""
    if ranks < 1 or model.query_heads % ranks:
        raise OverlayError(
            f"--tp {ranks} does not divide the {model.query_heads} attention heads of {file}. "
            "Give the tensor parallel size that the server will have."
        )
    key_value = max(1, model.key_value_heads // ranks)
    return replace(model, query_heads=model.query_heads // ranks, key_value_heads=key_value)


@dataclass(frozen=True)
class _Config:
    """The text half of a config.json."""

    file: Path
    entries: Mapping[str, Any]

    def model(self, document: Mapping[str, Any]) -> Model:
        hidden, heads = self.size("hidden_size"), self.size("num_attention_heads")
        return Model(
            name=str(document.get("model_type") or self.file.parent.name),
            hidden_size=hidden,
            vocab_size=self.size("vocab_size"),
            query_heads=heads,
            key_value_heads=self.size("num_key_value_heads", heads),
            head_size=self.size("head_dim", self.size("v_head_dim", hidden // heads)),
            eps=self.eps("rms_norm_eps"),
            dtype=self.dtype(),
            mrope=self.mrope(),
            hyper_connections=self.hyper_connections(),
            sparse_attention=self.sparse_attention(),
        )

    def size(self, name: str, otherwise: int | None = None) -> int:
        value = self.entries.get(name)
        if value is None and otherwise is not None:
            return otherwise
        if type(value) is not int or value < 1:
            raise self.wrong(name, value, "a whole number above 0")
        return value

    def eps(self, name: str) -> float:
        value = self.entries.get(name, 1e-6)
        if type(value) not in (int, float) or value < 0:
            raise self.wrong(name, value, "a number that is not negative")
        return float(value)

    def wrong(self, name: str, value: object, expected: str) -> OverlayError:
        return OverlayError(
            f"--model-path: {name} of {self.file} is {json.dumps(value)}: expected {expected}. Correct the file, or "
            "leave --model-path away to verify over the default sizes."
        )

    def dtype(self) -> str:
        """The 16-bit type that a server would take: fp32 weights are served in float16 or bfloat16 as well."""
        named = self.entries.get("dtype") or self.entries.get("torch_dtype")
        return "float16" if named == "float16" else "bfloat16"

    def mrope(self) -> Mrope | None:
        """`rope_scaling` through transformers 4, `rope_parameters` since 5."""
        for name in ("rope_scaling", "rope_parameters"):
            rope = self.entries.get(name)
            sections = rope.get("mrope_section") if isinstance(rope, dict) else None
            if sections is None or rope is None:
                continue
            if not isinstance(sections, list) or len(sections) != 3 or not all(type(s) is int for s in sections):
                raise self.wrong(f"{name}.mrope_section", sections, "three whole numbers")
            return Mrope((sections[0], sections[1], sections[2]), bool(rope.get("mrope_interleaved", False)))
        return None

    def hyper_connections(self) -> HyperConnections | None:
        if "hc_mult" not in self.entries:
            return None
        return HyperConnections(self.size("hc_mult"), self.size("hc_sinkhorn_iters", 20), self.eps("hc_eps"))

    def sparse_attention(self) -> SparseAttention | None:
        """Of DeepSeek-V4, whose keys are their own values; other models with an index have another cache."""
        if "hc_mult" not in self.entries or "index_topk" not in self.entries:
            return None
        return SparseAttention(self.size("window_size", self.size("sliding_window", 128)), self.size("index_topk"))
