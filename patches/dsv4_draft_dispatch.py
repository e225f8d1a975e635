"""DeepSeek-V4's MTP on ROCm, builds of 2026-05-18 to 05-27: the draft model gets the attention backend of ROCm.

What is wrong upstream. #24933 taught the registry of attention backends that ROCm has one of its own, hip_radix, and
left out the factory of the draft model's backends (speculative/draft_utils.py:228, :320), which goes on building
CUDA's: the first metadata of the draft model imports `sgl_kernel.flash_mla` (`flash_mla` in the first builds), which
ROCm has not. #26383 asks there too.

How we know it is right. The two constructors are called with the arguments of #26383, which 0.5.13 kept.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable
from typing import Any

from overlay.model import Image, Method, Need, Patch, Slot, Target, Variant, always
from patches import dsv4_window as window

_FACTORY = "sglang.srt.speculative.draft_utils"
_DECODE = Slot(_FACTORY, "DraftBackendFactory._create_dsv4_decode_backend")
_PREFILL = Slot(_FACTORY, "DraftBackendFactory._create_dsv4_prefill_backend")
_STEPS = Slot(window.RADIX, "DeepseekV4MultiStepBackend.__init__")
_STEP = Slot(window.RADIX, "DeepseekV4HipRadixBackend.__init__")


def make_decode_backend(_original: object) -> Callable[..., Any]:
    """The backend of all draft steps, hip_radix's."""

    def create_dsv4_decode_backend(self: Any) -> Any:
        radix = importlib.import_module(window.RADIX)
        return radix.DeepseekV4MultiStepBackend(self.draft_model_runner, self.topk, self.speculative_num_steps)

    return create_dsv4_decode_backend


def make_prefill_backend(_original: object) -> Callable[..., Any]:
    """The backend that extends the draft model by the tokens that were accepted, hip_radix's."""

    def create_dsv4_prefill_backend(self: Any) -> Any:
        radix = importlib.import_module(window.RADIX)
        return radix.DeepseekV4HipRadixBackend(self.draft_model_runner, skip_prefill=False)

    return create_dsv4_prefill_backend


_needed = always(
    Need(True, "back-port of #26383: this build gives the draft model CUDA's attention backend, and MTP dies")
)


PATCH = Patch(
    id="dsv4-draft-dispatch",
    title="DeepSeek-V4's draft model on ROCm's attention backend",
    why="In builds of 2026-05-18 to 05-27 the factory of the draft model's attention backends knows only CUDA's, "
    "so that a server with MTP dies on the import of FlashMLA.",
    upstream=(window.UPSTREAM,),
    contained_since="0.5.13",
    versions=window.VERSIONS,
    variants=(
        Variant(
            name="cuda-only",
            images=(
                window.HIP_RADIX,
                Image.of(_DECODE, "0c51b6b420880ddb"),
                Image.of(_PREFILL, "b36fc920d5600f2e"),
                Image.of(_STEPS, "8b2d9ea6d287de68", "5d0ecf4d4498fc4b"),
                Image.of(_STEP, "2821e0801081c195", "ca28a4b97b156bc1", "d2afd85579ef4a29"),
            ),
            need=_needed,
            targets=(
                Target(_DECODE, Method.REPLACE, make_decode_backend),
                Target(_PREFILL, Method.REPLACE, make_prefill_backend),
            ),
        ),
        window.contained(
            "builds ROCm's backend for the draft model",
            Image.of(_DECODE, "159f8f9886d24425"),
            Image.of(_PREFILL, "0d2387cc546f3bf0"),
        ),
        window.NO_BACKEND,
    ),
    verified_by="the real factory of five builds: without the patch it builds CUDA's backends, with it both are "
    "hip_radix's with the arguments of 0.5.13",
    remove_when=window.REMOVE_WHEN,
)
