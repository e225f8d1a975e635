"""aiter's Triton kernel for one mHC boundary, where its signature, its source and its answers say that it may be used.

`mhc_post_pre` (aiter/ops/triton/fusions/mhc.py) is new in #3190. Only since #3305 has it the Sinkhorn that DeepSeek-V4
is trained with; only since #3278 does it mask its partial sums, without which it reads past its scratch wherever it
makes a number of slices that is no power of two, as for C = 7168. v0.1.15 has both. It rounds `fn` to 16 bits: aiter's
own tests allow 1e-2, where `patches.kernels.mhc` is within 1e-5. So it is never chosen automatically.
"""

from __future__ import annotations

import ast
import importlib
import inspect
import textwrap
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from patches.kernels import mhc as own
from patches.kernels.mhc import Boundary, Constants

_OP = "aiter.ops.triton.fusions.mhc", "mhc_post_pre"
_REDUCTION = "aiter.ops.triton._triton_kernels.fusions.mhc", "_mhc_post_pre_reduce_apply_kernel"
_POSITIONAL = (
    *("layer_input", "residual_in", "post_mix", "comb_mix", "phi", "alphas", "bias", "n"),
    *("eps", "hc_pre_eps", "hc_post_mult_value", "sinkhorn_iters"),
)
_KEYWORDS = frozenset(
    {"asymmetric_exp_domain", "hc_sinkhorn_eps", "residual_out", "h_post", "h_res", "layer_input_out"}
)
#: What rounding `fn` to 16 bits may move, with the margin that aiter's own tests take.
_TOLERANCE = 2**-5


class UnsuitableAiterError(Exception):
    """The installed aiter has no fused mHC that is known to compute the same."""

    def __init__(self, why: str) -> None:
        super().__init__(f"AMD_SGLANG_DSV4_MHC_BACKEND=aiter, and {why}. Use auto.")


class AiterMhc:
    """The op with its rules. Raises UnsuitableAiterError if aiter lacks it or has one that must not be used."""

    def __init__(self) -> None:
        op, reduction = _find(*_OP), _find(*_REDUCTION)
        names = list(inspect.signature(op).parameters)
        if tuple(names[: len(_POSITIONAL)]) != _POSITIONAL or _KEYWORDS.difference(names):
            raise UnsuitableAiterError(f"this aiter's mhc_post_pre takes other parameters: {', '.join(names)}")
        if not _masks_its_partial_sums(reduction):
            raise UnsuitableAiterError("this aiter's mhc_post_pre reads past its scratch (aiter #3278)")
        self._op: Callable[..., object] = op
        self._proved: set[tuple[int, torch.dtype, torch.device]] = set()

    def supports(
        self, x: Tensor, residual: Tensor, post: Tensor, comb: Tensor, fn: Tensor, scale: Tensor, base: Tensor
    ) -> bool:
        """As our own kernel's rule, for at least one token.

        Raises UnsuitableAiterError if the op computes something else for this hidden size and dtype.
        """
        if x.dim() != 2 or x.shape[0] == 0 or not own.supports(x, residual, post, comb, fn, scale, base):
            return False
        key = x.shape[1], x.dtype, x.device
        if key not in self._proved:
            if torch.cuda.is_available() and torch.cuda.is_current_stream_capturing():
                return False  # nothing can be compared while a graph is captured
            self._prove(x)
            self._proved.add(key)
        return True

    def __call__(
        self,
        x: Tensor,
        residual: Tensor,
        post: Tensor,
        comb: Tensor,
        fn: Tensor,
        scale: Tensor,
        base: Tensor,
        constants: Constants,
    ) -> Boundary:
        """As `patches.kernels.mhc.mhc_post_pre` without a norm."""
        made = Boundary(
            torch.empty_like(residual),
            torch.empty(x.shape, dtype=x.dtype, device=x.device),
            torch.empty_like(post),
            torch.empty_like(comb),
        )
        self._op(
            x, residual, post, comb, fn.t(), scale, base, own.STREAMS,
            constants.rms_eps, constants.hc_eps, constants.post_mult, constants.iterations,
            asymmetric_exp_domain=True, hc_sinkhorn_eps=constants.hc_eps,
            residual_out=made.residual, h_post=made.post, h_res=made.comb, layer_input_out=made.layer_input,
        )  # fmt: skip
        return made

    def _prove(self, like: Tensor) -> None:
        """Compare the op with our kernel on three random tokens whose logits spread so that Sinkhorn's form shows."""
        hidden, n = like.shape[1], own.STREAMS
        generator = torch.Generator().manual_seed(0)

        def randn(*shape: int) -> Tensor:
            return torch.randn(*shape, generator=generator).to(like.device)

        arguments = (
            randn(3, hidden).to(like.dtype),
            randn(3, n, hidden).to(like.dtype),
            torch.sigmoid(randn(3, n)) * 2,
            torch.softmax(randn(3, n, n), -1),
            randn(own.MIXES, n * hidden) / (n * hidden) ** 0.5,
            torch.tensor([1.0, 1.0, 4.0]).to(like.device),
            randn(own.MIXES),
        )
        constants = Constants(1e-6, 1e-6, 2.0, 20)
        want = own.mhc_post_pre(*arguments, constants)
        try:
            made = self(*arguments, constants)
        except Exception as error:
            raise UnsuitableAiterError(f"its mhc_post_pre failed: {type(error).__name__}: {error}") from error
        close = all(
            torch.allclose(a.float(), b.float(), rtol=_TOLERANCE, atol=_TOLERANCE)
            for a, b in zip(made, want, strict=True)
        )
        if not close:
            raise UnsuitableAiterError(f"its mhc_post_pre computes something else for C = {hidden} in {like.dtype}")


def _find(module: str, name: str) -> Any:
    try:
        return getattr(importlib.import_module(module), name)
    except (ImportError, AttributeError) as error:
        raise UnsuitableAiterError(f"{error}") from error


def _masks_its_partial_sums(kernel: Any) -> bool:
    """Whether every load of `acc_sq_ptr` in aiter's reduction kernel is masked by `ks_mask`; False if it is unreadable.

    The slices are padded to a power of two, and what is masked is what lies behind the last one.
    """
    try:
        tree = ast.parse(textwrap.dedent(inspect.getsource(getattr(kernel, "fn", kernel))))
    except (OSError, TypeError, SyntaxError):
        return False
    loads = [
        node
        for node in ast.walk(tree)
        if isinstance(node, ast.Call)
        and ast.unparse(node.func) == "tl.load"
        and "acc_sq_ptr" in ast.unparse(node.args[0])
    ]
    masks = [ast.unparse(k.value) for node in loads for k in node.keywords if k.arg == "mask"]
    return bool(loads) and len(masks) == len(loads) and all("ks_mask" in mask for mask in masks)
