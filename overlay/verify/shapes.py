"""The sizes over which kernels are verified: those of one model, or of models that are widely served."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Mrope:
    """Rotary embedding over the axes time, height and width: how many frequencies each has."""

    sections: tuple[int, int, int]
    interleaved: bool


@dataclass(frozen=True)
class HyperConnections:
    """DeepSeek-V4's mHC: residual streams, rounds of Sinkhorn, and its epsilon."""

    streams: int
    iterations: int
    eps: float


@dataclass(frozen=True)
class SparseAttention:
    """DeepSeek-V4's sparse decode: keys of the sliding window, and keys that the indexer chooses."""

    window: int
    chosen: int


@dataclass(frozen=True)
class Model:
    """What one rank has of a model. Sizes in elements; `dtype` is that of its activations, by torch's name.

    What a model does not have is None, and kernels for it have no case.
    """

    name: str
    hidden_size: int
    vocab_size: int
    query_heads: int
    key_value_heads: int
    head_size: int
    eps: float = 1e-6
    dtype: str = "bfloat16"
    mrope: Mrope | None = None
    hyper_connections: HyperConnections | None = None
    sparse_attention: SparseAttention | None = None


@dataclass(frozen=True)
class Shapes:
    """`models`, over decode batches of so many `tokens` and a prefill of `prefill` tokens. `large` are batches for
    kernels that begin where others end."""

    models: tuple[Model, ...]
    tokens: tuple[int, ...]
    prefill: int
    large: tuple[int, ...]


_QWEN3_VL = Mrope((24, 20, 20), interleaved=True)
_V4_STREAMS = HyperConnections(streams=4, iterations=20, eps=1e-6)
_V4_KEYS = SparseAttention(window=128, chosen=512)

#: One rank each. Between them every kernel has a case.
_SERVED = (
    Model("Gemma 2 9B", 3584, 256000, 16, 8, 256),
    Model("Qwen3-Next 80B-A3B", 2048, 151936, 16, 2, 256),
    Model("Qwen3-VL 8B", 4096, 151936, 32, 8, 128, mrope=_QWEN3_VL),
    Model("DeepSeek-V4 Flash", 4096, 129280, 64, 1, 512, hyper_connections=_V4_STREAMS, sparse_attention=_V4_KEYS),
    Model("DeepSeek-V4 Pro", 7168, 129280, 128, 1, 512, hyper_connections=_V4_STREAMS, sparse_attention=_V4_KEYS),
)
_TINY = (
    Model("tiny", 96, 515, 4, 2, 64, mrope=Mrope((12, 10, 10), interleaved=True)),
    Model(
        "tiny DeepSeek-V4", 128, 515, 16, 1, 512,
        hyper_connections=_V4_STREAMS, sparse_attention=SparseAttention(window=16, chosen=16),
    ),
)  # fmt: skip


def served() -> Shapes:
    """The default set for a GPU."""
    return _on_gpu(_SERVED)


def tiny() -> Shapes:
    """The default set for Triton's interpreter."""
    return _interpreted(_TINY)


def of(model: Model, *, interpreted: bool) -> Shapes:
    """Those of one model, with few tokens for the interpreter."""
    return _interpreted((model,)) if interpreted else _on_gpu((model,))


def _on_gpu(models: tuple[Model, ...]) -> Shapes:
    return Shapes(models, tokens=(1, 16, 64, 256), prefill=4096, large=(256, 1024))


def _interpreted(models: tuple[Model, ...]) -> Shapes:
    return Shapes(models, tokens=(1, 3), prefill=5, large=(2,))
