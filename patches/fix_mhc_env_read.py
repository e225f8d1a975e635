"""DeepSeek-V4's mHC on ROCm: whether aiter's kernel may run is found out once, not at every boundary of every layer.

What is wrong upstream. #32577 (0.5.19) asks `_is_aiter_gfx95_mhc_available()` at each fused boundary, and that reads
and parses SGLANG_USE_AITER anew: twice a layer and eager step, although the layers fixed `use_fused_mhc_post_pre` by
the same answer when they were built.

How we know it is right. The release's own function answers, the first time it is asked.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from overlay.model import Image, Method, Need, Patch, Slot, Target, Variant, always

_MODULE = "sglang.srt.models.deepseek_common.amd.deepseek_v4_fused_mhc"
_AVAILABLE = Slot(_MODULE, "_is_aiter_gfx95_mhc_available")
_TRY_AITER = Slot(_MODULE, "try_aiter_fused_mhc_post_pre")


def make_is_available(original: Any) -> Callable[[], bool]:
    """The release's answer, remembered. Not `functools.cache`, whose object is no plain function."""
    answer: bool | None = None

    def is_aiter_gfx95_mhc_available() -> bool:
        nonlocal answer
        if answer is None:
            answer = bool(original())
        return answer

    return is_aiter_gfx95_mhc_available


_needed = always(
    Need(True, "fix of #32577: this release parses SGLANG_USE_AITER again at every mHC boundary of every layer")
)


PATCH = Patch(
    id="fix-mhc-env-read",
    title="SGLANG_USE_AITER is read once for the fused mHC",
    why="Every fused mHC boundary of DeepSeek-V4 and GLM-5-Next reads and parses SGLANG_USE_AITER again, twice a layer "
    "and eager step.",
    upstream=("#32577",),
    contained_since="no release yet",
    versions=">=0.5.19,<0.5.24",
    variants=(
        Variant(
            name="boundary",
            images=(Image.of(_AVAILABLE, "066786b8d623578b"), Image.of(_TRY_AITER, "1d3645fd18703ceb")),
            need=_needed,
            targets=(Target(_AVAILABLE, Method.REPLACE, make_is_available),),
        ),
    ),
    verified_by="the real module of the releases, in which 50 boundaries read the environment 50 times, and once with "
    "the patch",
    remove_when="the oldest supported release reads the environment when the layers are built",
)
