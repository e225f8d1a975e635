"""GemmaRMSNorm on ROCm: one exact kernel instead of eight, or instead of a fused one that rounds wrongly.

What upstream lacks. Through 0.5.9 `GemmaRMSNorm` runs `forward_native`, eight elementwise launches a call. #21188
(0.5.10) took aiter's or vLLM's RMSNorm kernel with `1 + weight` rounded to the activation dtype, which moves a third of
the outputs by an ulp or two, reads an fp32 weight as bf16, fails on zero tokens, and passes six arguments to vLLM's
four-argument in-place op. 0.5.16 replaced it by Triton kernels that run only with SGLANG_USE_AITER.

How we know it is right. `patches.kernels.gemma_rmsnorm` keeps the rounding of `forward_native`: the residual output is
bit-identical, the norm within one ulp. What the kernel does not take goes to the release's own `forward_native`.

In place. With a residual every release's CUDA path writes over both of its arguments (`_forward_impl` calls
sgl_kernel's `gemma_fused_add_rmsnorm` and returns them), and no call of the class with a residual stands in a branch
that only ROCm takes: a caller that keeps a reference copies first (`captured_last_layer_outputs`, communicator.py:401
of 0.5.9). So this path does the same for the tensors that op takes, where the release's CUDA path is one known to.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING, Any

from overlay import guard as guards
from overlay import shadow
from overlay.bound import Bound, mismatches, ulps
from overlay.counters import CALLS, FALLBACKS
from overlay.gates import Gate, OneOf
from overlay.model import ABSENT, Facts, Image, Method, Need, Patch, Slot, Target, Variant, always

if TYPE_CHECKING:
    from torch import Tensor

    Normed = Tensor | tuple[Tensor, Tensor]
    Norm = Callable[..., Normed]

_MODULE = "sglang.srt.layers.layernorm"
_INIT = Slot(_MODULE, "GemmaRMSNorm.__init__")
_HIP = Slot(_MODULE, "GemmaRMSNorm.forward_hip")
_NATIVE = Slot(_MODULE, "GemmaRMSNorm.forward_native")
#: The CUDA path, never filled: that it works in place is why this one may.
_CUDA = Slot(_MODULE, "GemmaRMSNorm.forward_cuda")
_CUDA_BODY = Slot(_MODULE, "GemmaRMSNorm._forward_impl")

_ID = "gemma-rmsnorm"

BACKEND = Gate(
    "AMD_SGLANG_GEMMA_RMSNORM_BACKEND",
    "kernel of GemmaRMSNorm: auto (triton, in place where upstream's CUDA path is), triton (never in place), "
    "aiter (only one that adds 1 to the weight in fp32), native (upstream's unfused torch code)",
    "auto",
    OneOf(("auto", "triton", "aiter", "native")),
)


def make_forward_hip(_original: object) -> Callable[..., Normed]:
    """The `forward_hip` of every release: the chosen kernel where it takes the call, else `forward_native`."""
    import torch

    backend = BACKEND.read(os.environ)
    (norm, supports), bounds = _kernel(backend), bounds_of(backend)
    guard = guards.guard(_ID)

    def forward_hip(
        self: Any, x: Tensor, residual: Tensor | None = None, post_residual_addition: Tensor | None = None
    ) -> Normed:
        weight = self.weight.data
        if guard.on and supports(x, weight, residual, post_residual_addition):
            if torch.compiler.is_compiling():  # neither a counter nor a failure can be traced
                return norm(x, weight, self.variance_epsilon, residual, post_residual_addition)
            if guard.shadow_runs and shadow.due(guard):
                arguments = x, weight, self.variance_epsilon, residual, post_residual_addition
                upstream = partial(_native, self, x, residual, post_residual_addition)
                made = bounds[:1] if residual is None else bounds
                return shadow.run(guard, partial(norm, *arguments), upstream, made, arguments)
            try:
                normed = norm(x, weight, self.variance_epsilon, residual, post_residual_addition)
            except Exception as error:  # noqa: BLE001 - a kernel may fail in any way, and upstream computes the same
                guard.trip(error)
            else:
                guard.counts[CALLS] += 1
                return normed
        elif guard.on and not torch.compiler.is_compiling():
            guard.counts[FALLBACKS] += 1
        return _native(self, x, residual, post_residual_addition)

    return forward_hip


def bounds_of(backend: str) -> tuple[Bound, Bound]:
    """Of the norm and of the residual output, against `forward_native`. aiter may norm the sum before it is rounded,
    which moves an element by half a unit at most, and then rounds it."""
    return Bound("y", 2 if backend == "aiter" else 1, ulps), Bound("residual", 0, mismatches)


def _native(norm: Any, x: Tensor, residual: Tensor | None, post_residual_addition: Tensor | None) -> Normed:
    if residual is not None and post_residual_addition is not None:
        # forward_native takes two arguments before 0.5.8 and ignores the third before 0.5.9; where it honours it,
        # this addition is its first statement.
        residual = residual + post_residual_addition
    normed: Normed = norm.forward_native(x, residual)
    return normed


def make_init(_original: object) -> Callable[..., None]:
    """Ends the constructor by undoing its re-dispatch to `forward_native` (layernorm.py:370, 0.5.7)."""

    def wrapper(
        wrapped: Callable[..., None], instance: Any, args: tuple[object, ...], kwargs: dict[str, object]
    ) -> None:
        wrapped(*args, **kwargs)
        if not instance.is_torch_compile:
            instance._forward_method = instance.forward_hip

    return wrapper


def _kernel(backend: str) -> tuple[Norm, Callable[..., bool]]:
    """The kernel and its call-time rule. Raises if `aiter` was asked for and is not provably exact enough."""
    if backend == "native":
        return _unreachable, lambda *_: False
    if backend == "aiter":
        from patches.kernels import gemma_rmsnorm_aiter

        return gemma_rmsnorm_aiter.load()
    from patches.kernels import gemma_rmsnorm

    overwrite = backend == "auto"
    return partial(gemma_rmsnorm.gemma_rmsnorm, overwrite=overwrite), gemma_rmsnorm.supports


def _unreachable(*_: object) -> Normed:
    raise AssertionError("the native backend takes no call")


def _unless_aiter(facts: Facts) -> Need:
    """0.5.16+ takes its own Triton kernel exactly if SGLANG_USE_AITER is on."""
    if facts.is_on("SGLANG_USE_AITER"):
        return Need(False, "upstream's Triton kernel is taken, since SGLANG_USE_AITER is on")
    return Need(True, "upstream takes its Triton kernel only with SGLANG_USE_AITER, which is off here")


_FORWARD = Target(_HIP, Method.REPLACE, make_forward_hip)

PATCH = Patch(
    id=_ID,
    title="one exact Triton kernel for GemmaRMSNorm, with and without residual",
    why="Through 0.5.9 every Gemma-style norm (Gemma 2, Qwen3-Next, Qwen3.5, Step-3.5) runs as eight elementwise "
    "launches on ROCm. From 0.5.10 to 0.5.15.post1 it runs aiter's or vLLM's kernel with 1 + weight rounded to bf16, "
    "reads fp32 weights as bf16, fails on zero tokens and calls vLLM's in-place op with six arguments instead of four. "
    "From 0.5.16 the exact kernel exists and runs only with SGLANG_USE_AITER.",
    upstream=("#21188",),
    contained_since="0.5.16, with SGLANG_USE_AITER",
    versions=">=0.5.6.post2,<0.5.24",
    kernels="patches.proofs.gemma_rmsnorm:cases",
    gates=(BACKEND,),
    variants=(
        Variant(
            name="unfused",
            images=(
                Image.of(_INIT, "5d54af9f0e70f5fc"),
                Image.of(_HIP, ABSENT),
                Image.of(_NATIVE, "ebcbe12728b4ee1a", "0cfedfd49896b8b0", "78568b4436593103"),
                Image.of(_CUDA, "82efa32c5adfa49a", "4bc94b70bed558ad"),
                Image.of(_CUDA_BODY, "62677c38dda19562", "6734f702baae61fa", "504319b6a92dba04"),
            ),
            need=always(Need(True, "back-port of #21188: this release runs GemmaRMSNorm unfused on ROCm")),
            targets=(_FORWARD, Target(_INIT, Method.WRAP, make_init)),
        ),
        Variant(
            name="rounded-weight",
            images=(
                Image.of(_INIT, "320f6508a5b050ea", "4ae6967a90637517", "ac2438c1e0357473"),
                Image.of(_HIP, "bf63f234680d5a8d", "866e677074b4c0f2"),
                Image.of(_NATIVE, "78568b4436593103"),
                Image.of(_CUDA, "4bc94b70bed558ad"),
                Image.of(_CUDA_BODY, "504319b6a92dba04", "8ab9df655332540d"),
            ),
            need=always(
                Need(True, "fix of #21188: this release rounds 1 + weight to the activation dtype, or runs unfused")
            ),
            targets=(_FORWARD,),
        ),
        Variant(
            name="triton-with-aiter",
            images=(
                Image.of(_INIT, "ac2438c1e0357473"),
                Image.of(_HIP, "b5da0705762caa8e"),
                Image.of(_NATIVE, "78568b4436593103"),
                Image.of(_CUDA, "4bc94b70bed558ad"),
                Image.of(_CUDA_BODY, "8ab9df655332540d"),
            ),
            need=_unless_aiter,
            targets=(_FORWARD,),
        ),
    ),
    verified_by="real class of seven releases in the Triton interpreter against float64; real engine in the simulated "
    "ROCm, tokens equal to transformers'; H200 in bf16 and fp16; offline compilation for gfx942 and gfx950",
    remove_when="the oldest supported release takes an exact fused kernel without SGLANG_USE_AITER",
)
