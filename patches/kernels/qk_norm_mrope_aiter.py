"""aiter's fused attention prologue, where its signature and its own answers say that it is the one we know.

`fused_qk_norm_mrope_3d_cache_pts_quant_shuffle` (aiter/ops/fused_qk_norm_mrope_cache_quant.py) is called by position
with 26 arguments. Since v0.1.16 it checks no dtype, and since b0cc5392dd it takes the strides of a cache from four
dimensions. So the signature must match name by name, every dtype is checked here, the cache is given as blocks of one
slot, which every version reads alike, and before a layer shape is first used the op's results are compared with those
of our own kernel. It is never chosen automatically.
"""

from __future__ import annotations

import importlib
import inspect
from collections.abc import Callable

import torch
from torch import Tensor

from patches.kernels import qk_norm_mrope as own
from patches.kernels.qk_norm_mrope import Geometry

_NAME = "fused_qk_norm_mrope_3d_cache_pts_quant_shuffle"
_PARAMETERS = (
    *("qkv", "qw", "kw", "cos_sin", "positions", "num_tokens", "num_heads_q", "num_heads_k", "num_heads_v"),
    *("head_size", "is_neox_style", "mrope_section_", "is_interleaved", "eps", "q_out", "k_cache", "v_cache"),
    *("slot_mapping", "per_tensor_k_scale", "per_tensor_v_scale", "k_out", "v_out", "return_kv"),
    *("use_shuffle_layout", "block_size", "x"),
)
#: Parameters added later, with the defaults under which the op is the one above: v0.1.12 and v0.1.18.
_LATER = {"rotary_dim": 0, "gemma_norm": False}


class UnsuitableAiterError(Exception):
    """The installed aiter has no fused prologue that is known to compute the same."""

    def __init__(self, why: str) -> None:
        super().__init__(f"AMD_SGLANG_QWEN3_ATTENTION_BACKEND=aiter, and {why}. Use auto.")


class AiterPrologue:
    """The op with its rules. Raises UnsuitableAiterError if aiter lacks it or has another signature."""

    def __init__(self) -> None:
        try:
            op = getattr(importlib.import_module("aiter"), _NAME)
        except (ImportError, AttributeError) as error:
            raise UnsuitableAiterError(f"{error}") from error
        names = list(inspect.signature(op).parameters)
        later = {p.name: p.default for p in inspect.signature(op).parameters.values() if p.name not in _PARAMETERS}
        if tuple(names[: len(_PARAMETERS)]) != _PARAMETERS or not later.items() <= _LATER.items():
            raise UnsuitableAiterError(f"this aiter's {_NAME} takes other parameters: {', '.join(names)}")
        self._op: Callable[..., None] = op
        # The op reads the scales on the host: on a GPU that would be a wait, and an error in a captured graph.
        self._scale = torch.tensor(1.0, dtype=torch.float32, device="cpu")
        self._proved: set[tuple[Geometry, torch.dtype]] = set()

    def supports_tensors(
        self,
        geometry: Geometry,
        qkv: Tensor,
        q_weight: Tensor,
        k_weight: Tensor,
        cos_sin: Tensor,
        k_cache: Tensor,
        v_cache: Tensor,
    ) -> bool:
        """Like our own kernel's rule, for packed caches.

        Raises UnsuitableAiterError if the op computes something else for this geometry and dtype.
        """
        if not (
            own.supports_tensors(geometry, qkv, q_weight, k_weight, cos_sin, k_cache, v_cache)
            and k_cache.is_contiguous()
            and v_cache.is_contiguous()
        ):
            return False
        key = geometry, qkv.dtype
        if key not in self._proved:
            if torch.cuda.is_available() and torch.cuda.is_current_stream_capturing():
                return False  # nothing can be compared while a graph is captured
            self._prove(geometry, qkv)
            self._proved.add(key)
        return True

    def __call__(
        self,
        geometry: Geometry,
        qkv: Tensor,
        q_weight: Tensor,
        k_weight: Tensor,
        cos_sin: Tensor,
        positions: Tensor,
        k_cache: Tensor,
        v_cache: Tensor,
        slots: Tensor,
    ) -> Tensor:
        """As `patches.kernels.qk_norm_mrope.qk_norm_mrope`."""
        tokens = qkv.shape[0]
        num_q_heads, num_kv_heads, head_size, sections, interleaved, neox, eps = geometry
        q_out = torch.empty((tokens, num_q_heads, head_size), dtype=qkv.dtype, device=qkv.device)
        self._op(
            qkv.view(tokens, -1, head_size), q_weight, k_weight, cos_sin, positions, tokens,
            num_q_heads, num_kv_heads, num_kv_heads, head_size, neox, list(sections), interleaved, eps,
            q_out, k_cache.unsqueeze(1), v_cache.unsqueeze(1), slots, self._scale, self._scale,
            None, None, False, False, 0, 0,
        )  # fmt: skip
        return q_out.view(tokens, -1)

    def _prove(self, geometry: Geometry, like: Tensor) -> None:
        """Compare the op with our kernel: positions that differ by axis, a skipped slot, untouched slots."""
        heads, d = geometry.num_kv_heads, geometry.head_size
        generator = torch.Generator().manual_seed(0)

        def randn(*shape: int) -> Tensor:
            return torch.randn(*shape, generator=generator).to(like)

        angle = torch.rand(32, d // 2, generator=generator) * 6
        cos_sin = torch.cat([angle.cos(), angle.sin()], 1).to(like)
        qkv, q_weight, k_weight = randn(5, geometry.row_size), 1 + randn(d) / 4, 1 + randn(d) / 4
        positions = torch.tensor([[3, 0, 31, 7, 9], [4, 1, 30, 17, 8], [5, 2, 29, 27, 7]]).to(like.device)
        slots = torch.tensor([6, 0, -1, 3, 1]).to(like.device)
        answers = []
        prologues: tuple[Callable[..., Tensor], ...] = (own.qk_norm_mrope, self)
        for prologue in prologues:
            caches = [torch.full((8, heads, d), -7.0).to(like) for _ in range(2)]
            try:
                q = prologue(geometry, qkv, q_weight, k_weight, cos_sin, positions, *caches, slots)
            except Exception as error:
                raise UnsuitableAiterError(f"its {_NAME} failed: {type(error).__name__}: {error}") from error
            answers.append([q, *caches])
        (q, k, v), (aiter_q, aiter_k, aiter_v) = answers
        # The op may round differently by a few units in the last place; another layout or axis is off by whole values.
        close = all(torch.allclose(a, b, rtol=2**-5, atol=2**-5) for a, b in ((aiter_q, q), (aiter_k, k)))
        if not (close and torch.equal(aiter_v, v)):
            raise UnsuitableAiterError(f"its {_NAME} computes something else for {geometry} in {like.dtype}")
