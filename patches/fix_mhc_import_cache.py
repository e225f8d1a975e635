"""DeepSeek-V4's mHC on ROCm: an aiter without the fused Triton kernel is asked for it once, not at every layer.

What is wrong upstream. #26383 (0.5.13) looks up aiter's `mhc_post_pre` lazily and remembers only success: where the
import fails, every call imports again and logs a warning (deepseek_v4_fused_mhc.py:16), at each boundary of each layer
of each eager step.

How we know it is right. The release's own lookup runs, once; what it answered is the answer from then on.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from overlay.model import Image, Method, Need, Patch, Slot, Target, Variant, always

_MODULE = "sglang.srt.models.deepseek_common.amd.deepseek_v4_fused_mhc"
_GET_OPS = Slot(_MODULE, "_get_triton_mhc_post_pre_ops")
_TRY_FUSED = Slot(_MODULE, "try_fused_hc_post_pre")

Ops = tuple[Callable[..., Any], Callable[..., Any]]


def make_get_ops(original: Any) -> Callable[[], Ops | None]:
    """The lookup of aiter's (mhc_post_pre, get_mhc_config), which is done once; None where aiter lacks them."""
    ops: Ops | None = None
    looked_up = False

    def get_triton_mhc_post_pre_ops() -> Ops | None:
        nonlocal ops, looked_up
        if not looked_up:
            ops = original()
            looked_up = True
        return ops

    return get_triton_mhc_post_pre_ops


_DEFECT = "fix of #26383: an aiter without mhc_post_pre is imported again, with a warning, at every call"
_LOOKUP = Image.of(_GET_OPS, "399116ad06c06000")
_TARGETS = (Target(_GET_OPS, Method.REPLACE, make_get_ops),)

PATCH = Patch(
    id="fix-mhc-import-cache",
    title="one lookup of aiter's fused mHC, whatever it finds",
    why="Where aiter has no mhc_post_pre, every call of DeepSeek-V4's fused mHC imports it again and logs a warning: "
    "twice a layer and step. From 0.5.19 the decoder layers make that call; before, only code that revives the fused "
    "path does, since #25976 closed upstream's own branch on ROCm.",
    upstream=("#26383",),
    contained_since="no release yet",
    versions=">=0.5.13,<0.5.24",
    archs=frozenset({"gfx950", "gfx1250"}),
    variants=(
        Variant(
            name="unreached",
            images=(_LOOKUP, Image.of(_TRY_FUSED, "04bf34cacc6e78e8", "078692e0d9f7c069")),
            need=always(Need(True, f"{_DEFECT}; this release makes it only if its fused mHC is revived")),
            targets=_TARGETS,
        ),
        Variant(
            name="boundary",
            images=(_LOOKUP, Image.of(_TRY_FUSED, "a7904471dda7ccd5")),
            need=always(Need(True, f"{_DEFECT}, which this release makes twice a layer")),
            targets=_TARGETS,
        ),
    ),
    verified_by="the real module of the releases, in which 50 calls without aiter's kernel import and warn 50 times, "
    "and once with the patch",
    remove_when="every supported release remembers that the import failed",
)
