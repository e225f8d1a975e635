"""aiter's split-K GEMM: one semaphore buffer per stream.

What is wrong. Until v0.1.14 aiter's `gemm_a16w16_asm` counts the finished work groups of a split-K GEMM in one buffer
per device. Two such GEMMs on two streams count in each other's, neither sees its last work group, and the GPU hangs in
the kernel (ROCm/aiter#3288, fixed in v0.1.15). sglang reaches it through aiter's tuned `tgemm` since 0.5.10. What
decides is the aiter that is installed, whatever sglang runs on it, so that is what is fingerprinted.

How we know it is right. `gemm_a16w16_asm` asks `get_semaphore_workspace` by its module's global name and nothing else
does. Its replacement allocates with aiter's own function and keeps one buffer per device and stream, as v0.1.15 does.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import TYPE_CHECKING, Any

from overlay.fingerprint import NO_MODULE
from overlay.model import ABSENT, Facts, Image, Method, Need, Patch, Slot, Target, Variant, always
from overlay.stream_environment import STREAM_VARIABLES, streams_on

if TYPE_CHECKING:
    import torch
    from torch import Tensor

_MODULE = "aiter.ops.gemm_op_a16w16"
_WORKSPACE = Slot(_MODULE, "get_semaphore_workspace")
_GEMM = Slot(_MODULE, "gemm_a16w16_asm")


def make_workspace(original: Any) -> Callable[[torch.device], Tensor]:
    """aiter's `get_semaphore_workspace`, remembered by device and stream instead of by device."""
    import torch

    allocate = original.__wrapped__

    # Unbounded, where v0.1.15 keeps 64: a captured graph may count in a buffer that a bounded cache would drop.
    @cache
    def workspace(device: torch.device, _stream: int) -> Tensor:
        return allocate(device)  # type: ignore[no-any-return]

    def get_semaphore_workspace(device: torch.device) -> Tensor:
        return workspace(device, torch.cuda.current_stream(device).cuda_stream)

    return get_semaphore_workspace


def _where_streams_are_on(facts: Facts) -> Need:
    if not streams_on(facts.environ):
        names = " and ".join(variable.name for variable in STREAM_VARIABLES if not variable.needs)
        return Need(False, f"{names} are off: aiter's GEMMs stay on one stream")
    return Need(True, "fix of ROCm/aiter#3288: split-K GEMMs of two streams share a semaphore in this aiter, and hang")


_fixed = always(Need(False, "this aiter has a semaphore for each stream"))


_older = always(Need(False, "this aiter's GEMM has no semaphore"))


_no_aiter = always(
    Need(False, "aiter's source is not here: not installed, simulated, or a tree that was only looked at")
)


PATCH = Patch(
    id="fix-aiter-semaphore",
    title="no hang of aiter's split-K GEMMs on two streams",
    why="Through v0.1.14 aiter's split-K GEMMs share one semaphore buffer per device. Two of them on two streams, as "
    "SGLANG_ALT_STREAM and SGLANG_ROCM_USE_MULTI_STREAM ask for, hang the GPU. sglang's images through 0.5.12.post1 "
    "carry such an aiter.",
    upstream=("ROCm/aiter#3288",),
    contained_since="aiter v0.1.15",
    versions=">=0.5.9,<0.5.24",
    variants=(
        Variant(
            name="one-per-device",
            images=(
                Image.of(_WORKSPACE, "a04d2d6d25cf0b89", "2eea2cc0c3987e06"),
                Image.of(_GEMM, "0fa18843dd4951aa", "130f52defa3e93a3", "6ba30f4fc3907163"),
            ),
            need=_where_streams_are_on,
            targets=(Target(_WORKSPACE, Method.REPLACE, make_workspace),),
        ),
        Variant(name="one-per-stream", images=(Image.of(_WORKSPACE, "4fc2c8d0b9c24664"),), need=_fixed),
        Variant(
            name="before-semaphores",
            images=(Image.of(_WORKSPACE, ABSENT), Image.of(_GEMM, "02280fb8c5cfd90d", "ef68695a6bf0c293")),
            need=_older,
        ),
        Variant(name="no-aiter", images=(Image.of(_WORKSPACE, NO_MODULE),), need=_no_aiter),
    ),
    verified_by="aiter's function of v0.1.9 to v0.1.14.post1, loaded as aiter loads it: one buffer per stream, and "
    "the same each time; fingerprints of every aiter release from v0.1.1 to v0.1.20.post1",
    remove_when="no supported release's images carry an aiter before v0.1.15",
)
