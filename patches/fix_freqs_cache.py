"""DeepSeek-V4's rotary tables on ROCm: a table of cosines belongs to the tensor it was made from, not to its address.

What is wrong upstream. `_freqs_cis_to_cos_sin` (#26383) keeps its tables by `id(freqs_cis)` and never drops one. Once
the tensor is freed (a model that is moved or loaded again, `precompute_freqs_cis`'s `lru_cache`), Python gives the
address to the next tensor, and that one is answered with the tables of the dead: wrong rotations, no error. Nothing
called the function before #37658 (0.5.20), which does so behind SGLANG_OPT_FP8_WO_A_FUSED_INVROPE on gfx950.

How we know it is right. The release's own function makes and keeps the tables; an entry whose tensor is not the one
that is asked for is dropped before.
"""

from __future__ import annotations

import sys
import weakref
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from overlay.model import Facts, Image, Method, Need, Patch, Slot, Target, Variant

if TYPE_CHECKING:
    import torch
    from torch import Tensor

_MODULE = "sglang.srt.models.deepseek_v4"
_TO_COS_SIN = Slot(_MODULE, "_freqs_cis_to_cos_sin")
_ATTENTION = Slot(_MODULE, "MQALayer.forward")
_SWITCH = "SGLANG_OPT_FP8_WO_A_FUSED_INVROPE"


def make_freqs_cis_to_cos_sin(original: Any) -> Callable[..., tuple[Tensor, Tensor]]:
    """(cos, sin), each (positions, rope_dim / 2) in `dtype`, of `freqs_cis` (positions, rope_dim / 2) complex64."""
    tables: dict[tuple[int, torch.dtype, torch.device], object] = sys.modules[_MODULE]._FREQS_CIS_TO_COS_SIN
    owners: dict[int, weakref.ref[Tensor]] = {}

    def forget(address: int) -> None:
        owners.pop(address, None)
        for key in [key for key in tuple(tables) if key[0] == address]:
            tables.pop(key, None)

    def adopt(freqs_cis: Tensor) -> None:
        address = id(freqs_cis)
        forget(address)

        def died(reference: weakref.ref[Tensor]) -> None:
            # By then the address may already be another tensor's.
            if owners.get(address) is reference:
                forget(address)

        owners[address] = weakref.ref(freqs_cis, died)

    def freqs_cis_to_cos_sin(freqs_cis: Tensor, dtype: torch.dtype, device: torch.device) -> tuple[Tensor, Tensor]:
        owner = owners.get(id(freqs_cis))
        if owner is None or owner() is not freqs_cis:
            adopt(freqs_cis)
        tables_of_this: tuple[Tensor, Tensor] = original(freqs_cis, dtype, device)
        return tables_of_this

    return freqs_cis_to_cos_sin


def _where_it_is_called(facts: Facts) -> Need:
    # An `EnvBool` of sglang, which takes more words for true than `get_bool_env_var`.
    if facts.environ.get(_SWITCH, "").lower() not in ("true", "1", "yes", "y"):
        return Need(False, f"this release makes these tables only with {_SWITCH}, which is off")
    return Need(True, "fix of #26383: rotary tables are kept by the address of a tensor that may be gone")


PATCH = Patch(
    id="fix-freqs-cache",
    title="rotary tables that outlive no tensor",
    why="DeepSeek-V4's cache of cosines and sines is keyed by id(): when the tensor is freed and its address taken by "
    "another, that one gets the tables of the dead tensor, so attention is rotated by wrong angles. Taken with "
    "SGLANG_OPT_FP8_WO_A_FUSED_INVROPE on gfx950.",
    upstream=("#26383", "#37658"),
    contained_since="no release yet",
    versions=">=0.5.20,<0.5.24",
    archs=frozenset({"gfx950"}),
    variants=(
        Variant(
            name="by-address",
            images=(
                Image.of(_TO_COS_SIN, "738192472ba4d288"),
                Image.of(_ATTENTION, "2191e9402b1d75ee", "7b1cd255fd8a6a7d", "b5dd8a5f62bd00d6", "85ecd17689419e2b"),
            ),
            need=_where_it_is_called,
            targets=(Target(_TO_COS_SIN, Method.REPLACE, make_freqs_cis_to_cos_sin),),
        ),
    ),
    verified_by="the real function of the releases over recycled addresses: the tables of dead tensors without the "
    "patch, every table right and none left over with it",
    remove_when="the oldest supported release ties the tables to the tensor",
)
