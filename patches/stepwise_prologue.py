"""What Qwen3-VL's separate operations make of one projection, to hold a fused prologue against in a shadow run.

Compared is what the prologue makes, not what attention and the output projection make of it: the latter ends in an
all-reduce, which one rank must not run oftener than another, and attention would write the cache once more.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from overlay.bound import Bound, mismatches, row_eps

if TYPE_CHECKING:
    from torch import Tensor

#: Of queries, keys and values, a row being a head. The stepwise path rounds both products of a rotation to 16 bits, at
#: most two units of the head's largest element; a norm that lies on a tie moves an element by as much.
BOUNDS = (Bound("q", 4, row_eps), Bound("k", 4, row_eps), Bound("v", 0, mismatches))


class _Projected:
    """A layer whose projection has been made: a second one need not give the same bits."""

    def __init__(self, layer: Any, qkv: Tensor) -> None:
        self._layer, self._qkv = layer, qkv

    def __getattr__(self, name: str) -> Any:
        return getattr(self._layer, name)

    def qkv_proj(self, _hidden_states: Tensor) -> tuple[Tensor, None]:
        return self._qkv.clone(), None  # an operation may work in place


def stepwise(layer: Any, positions: Tensor, hidden_states: Tensor, qkv: Tensor, slots: Tensor) -> tuple[Tensor, ...]:
    """Queries (T, heads, D), and keys and values (tokens that are kept, heads, D), of a `Qwen3Attention`."""
    made = type(layer).forward_prepare_native(_Projected(layer, qkv), positions, hidden_states)
    q, k, v = (tensor.reshape(len(slots), -1, layer.head_dim) for tensor in made)
    kept = slots > _PADDING
    return q, k[kept], v[kept]


def cached(layer: Any, q: Tensor, k_cache: Tensor, v_cache: Tensor, slots: Tensor) -> tuple[Tensor, ...]:
    """The same of a fused prologue, whose keys and values lie in caches (slots, heads, D)."""
    kept = slots[slots > _PADDING]
    return q.reshape(len(slots), -1, layer.head_dim), k_cache[kept], v_cache[kept]


_PADDING = 0
"""The slot that every padded token of a batch is written to (`MHATokenToKVPool`, memory_pool.py:809, 0.5.9): which of
them it holds afterwards is anybody's guess. A slot below it is not written to."""
