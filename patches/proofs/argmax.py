"""The greedy argmax against its definition, and against `torch.argmax` or aiter's `greedy_sample`."""

from __future__ import annotations

import importlib
import os
from collections.abc import Callable, Iterator, Sequence

import torch
from torch import Tensor

from overlay.bound import Bound, mismatches
from overlay.verify.case import Case, Draw, Expected, Tensors
from overlay.verify.shapes import Shapes
from patches import greedy_sampler
from patches.kernels.argmax import greedy_argmax, supports

_TOKENS = Bound("a token", 0, mismatches)
_UNWRITTEN = -7


def native(logits: Tensor) -> Tensor:
    """What upstream runs: (batch, vocab) -> int64 (batch,)."""
    return torch.argmax(logits, -1)


def reference(logits: Tensor) -> Tensor:
    """The definition, without an argmax: of each row the first column that holds NaN, else the first that holds the
    maximum. (batch, vocab) -> int64 (batch,)."""
    columns = torch.arange(logits.shape[1], device=logits.device)
    is_nan = logits.isnan()
    wanted = torch.where(is_nan.any(1, keepdim=True), is_nan, logits == logits.amax(1, keepdim=True))
    return torch.where(wanted, columns, logits.shape[1]).amin(1)


def cases(shapes: Shapes) -> Iterator[Case]:
    """`torch.argmax` is replaced: tokens are a new tensor, int64."""
    if greedy_sampler.BACKEND.read(os.environ) == "torch":
        return
    for batch, vocab, dtype in _sizes(shapes):

        def fused(logits: Tensor) -> tuple[Tensor]:
            return (greedy_argmax(logits),)

        yield Case(
            _label(batch, vocab, dtype),
            "triton",
            inputs=_drawing(batch, vocab, dtype),
            takes=supports,
            fused=fused,
            replaced=native,
            expected=_expected,
        )


def in_place_cases(shapes: Shapes) -> Iterator[Case]:
    """aiter's `greedy_sample` is replaced, where aiter has one: tokens are written to int32 that the caller owns."""
    sample = _aiter_greedy_sample()
    for batch, vocab, dtype in _sizes(shapes):
        logits_of = _drawing(batch, vocab, dtype)

        def inputs(draw: Draw, logits_of: Callable[[Draw], Tensors] = logits_of, batch: int = batch) -> Tensors:
            (logits,) = logits_of(draw)
            return logits, torch.full((batch,), _UNWRITTEN, dtype=torch.int32, device=draw.device)

        def fused(logits: Tensor, out: Tensor) -> tuple[Tensor]:
            return (greedy_argmax(logits, out),)

        def replaced(logits: Tensor, out: Tensor) -> None:
            sample(out, logits)

        yield Case(
            f"in place, {_label(batch, vocab, dtype)}",
            "triton",
            inputs=inputs,
            takes=lambda logits, _out: supports(logits),
            fused=fused,
            replaced=replaced,
            expected=_expected,
        )


def _aiter_greedy_sample() -> Callable[[Tensor, Tensor], object]:
    try:
        found: Callable[[Tensor, Tensor], object] = importlib.import_module("aiter").greedy_sample
    except (ImportError, AttributeError):
        return lambda out, logits: out.copy_(torch.argmax(logits, -1))
    return found


def _sizes(shapes: Shapes) -> list[tuple[int, int, torch.dtype]]:
    """A sampler gets float32 of most models, and the activations' dtype of some."""
    vocabularies = {(model.vocab_size, dtype): None for model in shapes.models for dtype in ("float32", model.dtype)}
    return [(batch, vocab, getattr(torch, dtype)) for vocab, dtype in vocabularies for batch in shapes.tokens]


def _label(batch: int, vocab: int, dtype: torch.dtype) -> str:
    return f"{batch} x {vocab} {str(dtype).removeprefix('torch.')}"


def _drawing(batch: int, vocab: int, dtype: torch.dtype) -> Callable[[Draw], Tensors]:
    """Logits in which rows of 16 bits have ties by themselves; rows 1 and 2 are a grammar's (negative, but for a few
    -inf) and one with NaN."""

    def inputs(draw: Draw) -> Tensors:
        logits = draw.normal(batch, vocab, dtype=dtype)
        if batch > 1:
            logits[1] = float("-inf")
            kept = draw.distinct(min(5, vocab), vocab)
            logits[1, kept] = -1 - draw.uniform(len(kept)).to(dtype)
        if batch > 2:
            logits[2, draw.distinct(min(2, vocab), vocab)] = float("nan")
        return (logits,)

    return inputs


def _expected(given: Tensors, _made: Sequence[Tensor]) -> list[Expected]:
    logits = given[0]
    assert logits is not None
    return [Expected(_TOKENS, reference(logits))]
