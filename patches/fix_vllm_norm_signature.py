"""RMSNorm on ROCm without aiter: vLLM's norm is called the way vLLM defines it.

What is wrong upstream. With SGLANG_USE_AITER off, `RMSNorm.forward_hip` (and from 0.5.10 `GemmaRMSNorm.forward_hip`)
calls vLLM's `fused_add_rms_norm` with six arguments, out of place. vLLM takes four and works in place: v0.4.1, where
the function appears, to v0.9.2, a main branch of 2026, and every release tag of ROCm/vllm. Six are taken only by 2025
branches of ROCm/vllm around 355_wip. With any other the first layer that has a residual raises TypeError (#31403,
#31553, #32034; #13727 repaired it once and was reverted for those branches by #13814). `rms_norm`, the form without
residual, is called as vLLM defines it.

How we know it is right. The name that the norms call, one global of layernorm.py, is bound to an adapter that hands
vLLM copies to work in, so that the six-argument contract holds: `out` and `residual_out` are written, and neither
`input` nor `residual` is. A vLLM whose function has the six parameters keeps it; any other signature is refused.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from overlay.errors import InstallError
from overlay.fingerprint import IMPORT
from overlay.model import Facts, Image, Method, Need, Patch, Slot, Target, Variant

if TYPE_CHECKING:
    from torch import Tensor

_MODULE = "sglang.srt.layers.layernorm"
_FUSED = Slot(_MODULE, "fused_add_rms_norm")
_HIP = Slot(_MODULE, "RMSNorm.forward_hip")

#: vllm/_custom_ops.py, the same names in every version of either form.
_IN_PLACE = ("input", "residual", "weight", "epsilon")
_OUT_OF_PLACE = ("out", "input", "residual_out", "residual", "weight", "epsilon")


def make_fused_add_rms_norm(original: Any) -> Callable[..., None]:
    """The six-argument form of what vLLM provides. Raises InstallError for a signature that is neither form."""
    parameters = tuple(inspect.signature(original).parameters)
    if parameters == _OUT_OF_PLACE:
        kept: Callable[..., None] = original
        return kept
    if parameters != _IN_PLACE:
        raise InstallError(
            f"vLLM's fused_add_rms_norm takes ({', '.join(parameters)}): neither ({', '.join(_IN_PLACE)}), in place, "
            f"nor ({', '.join(_OUT_OF_PLACE)})"
        )

    def fused_add_rms_norm(
        out: Tensor, input: Tensor, residual_out: Tensor, residual: Tensor, weight: Tensor, epsilon: float
    ) -> None:
        out.copy_(input)
        residual_out.copy_(residual)
        original(out, residual_out, weight, epsilon)

    return fused_add_rms_norm


def _calls_vllm(facts: Facts, without_vllm: str) -> Need:
    if facts.is_on("SGLANG_USE_AITER"):
        return Need(False, "SGLANG_USE_AITER is on: the norms call aiter's function, which takes the six arguments")
    if facts.platform.vllm is None:
        return Need(False, without_vllm)
    return Need(True, f"fix of #31403: the norms call vLLM {facts.platform.vllm} with six arguments, and it takes four")


def _unguarded(facts: Facts) -> Need:
    return _calls_vllm(
        facts, "vLLM is not installed and SGLANG_USE_AITER is off: layernorm.py of this release needs one of the two"
    )


def _guarded(facts: Facts) -> Need:
    return _calls_vllm(facts, "vLLM is not installed: this release then takes forward_native")


_IMPORTED = f"{IMPORT}aiter.rmsnorm2d_fwd_with_add|vllm._custom_ops.fused_add_rms_norm"
_IMPORTED_GFX1250 = (
    f"{IMPORT}aiter.ops.triton.normalization.rmsnorm.rmsnorm2d_fwd_with_add|"
    "aiter.rmsnorm2d_fwd_with_add|vllm._custom_ops.fused_add_rms_norm"
)
_TARGETS = (Target(_FUSED, Method.REPLACE, make_fused_add_rms_norm),)

#: It reads RMSNorm.forward_hip, which fix-deepstack-residual fills, and so stands before it. GemmaRMSNorm.forward_hip,
#: which has called the same global in the same way since 0.5.10, is no image: gemma-rmsnorm fills it.
PATCH = Patch(
    id="fix-vllm-norm-signature",
    title="RMSNorm that works with vLLM's norm, where aiter is off",
    why="With SGLANG_USE_AITER off, every release calls vLLM's in-place fused_add_rms_norm with six arguments instead "
    "of four: RMSNorm, and from 0.5.10 GemmaRMSNorm, raise TypeError on the first token, for every model.",
    upstream=("#31403", "#31553", "#32034"),
    contained_since="no release yet",
    versions=">=0.5.6.post2,<0.5.24",
    variants=(
        Variant(
            name="unguarded-import",
            images=(
                Image.of(_FUSED, _IMPORTED),
                Image.of(_HIP, "9f872c7a9d7cd08a", "48caa18476f7b32f"),
            ),
            need=_unguarded,
            targets=_TARGETS,
        ),
        Variant(
            name="guarded-import",
            images=(
                Image.of(_FUSED, _IMPORTED, _IMPORTED_GFX1250),
                Image.of(
                    _HIP,
                    "72edae356abe74cf",
                    "d1c86ecac76f480a",
                    "4f2d081aaeaea97d",
                    "8f81d2080d6390f9",
                    "e5595231d5ca8b3f",
                ),
            ),
            need=_guarded,
            targets=_TARGETS,
        ),
    ),
    verified_by="real RMSNorm and GemmaRMSNorm of six releases on the CPU, TypeError before and forward_native's "
    "values after, with a fake of vLLM's two functions; vLLM's signatures read in every branch and tag of ROCm/vllm",
    remove_when="every supported release tells vLLM's four-argument function from the six-argument one",
)
