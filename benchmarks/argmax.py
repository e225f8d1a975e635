"""The greedy argmax over a vocabulary: a sampler's whole work in greedy decoding.

Replays read one set of logits, as a sampler reads what the language-model head has just written; logits larger than the
last-level cache come from memory. "wrong ids" counts the rows whose token is not that of the definition.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor

from benchmarks.case import GPU, AbsentError, Case, Group, Maker, Place, Prepared
from benchmarks.peers import load
from benchmarks.peers.compiled import compiled
from patches.kernels.argmax import greedy_argmax
from patches.proofs.argmax import native, reference

_SUITE = "argmax"
_QWEN = 151936
_SIZES: tuple[tuple[int, int, torch.dtype], ...] = (
    *((batch, _QWEN, torch.bfloat16) for batch in (1, 2, 4, 8, 16, 64, 128, 160, 192, 256, 320, 512)),
    *((batch, _QWEN, torch.float32) for batch in (1, 8, 64, 128, 160, 320)),
    (256, 248320, torch.float32),
    # 16 bytes do not divide the rows of these.
    *((batch, 151666, torch.float32) for batch in (1, 8, 128)),
    (1024, 50257, torch.bfloat16),
)
_QUICK = ((1, _QWEN, torch.bfloat16), (64, _QWEN, torch.bfloat16), (64, _QWEN, torch.float32))

Argmax = Callable[[Tensor], Tensor]


def groups(quick: bool) -> list[Group]:
    sizes = _QUICK if quick else _SIZES
    cases = tuple(case(batch, vocab, GPU._replace(dtype=dtype)) for batch, vocab, dtype in sizes)
    return [Group(_SUITE, "Greedy argmax (B = rows, V = columns)", "B, V, dtype", cases)]


def case(batch: int, vocab: int, place: Place) -> Case:
    return Case(
        label=f"{batch}, {vocab}, {place.dtype_name}",
        parameters={"batch": batch, "vocabulary": vocab, "dtype": place.dtype_name},
        bytes_moved=batch * (vocab * place.dtype.itemsize + torch.int64.itemsize),
        operations=0,
        makers=partial(_makers, batch, vocab, place),
    )


def _makers(batch: int, vocab: int, place: Place) -> dict[str, Maker]:
    logits = place.normal(batch, vocab)

    def prepare(make: Callable[[], Argmax]) -> Prepared:
        argmax = make()
        wrong = int((argmax(logits) != reference(logits)).sum())
        return Prepared(partial(argmax, logits), {"wrong ids": wrong})

    makers: dict[str, Callable[[], Argmax]] = {
        "ours": lambda: greedy_argmax,
        "torch.argmax": lambda: native,
        "torch.compile": lambda: compiled(native),
        "aiter HIP": partial(_aiter, batch),
    }
    return {name: partial(prepare, make) for name, make in makers.items()}


def _aiter(batch: int) -> Argmax:
    """A compiled HIP op, and none of aiter's Triton ones: only where aiter itself is installed."""
    sample = getattr(load.module("aiter", "aiter"), "greedy_sample", None)
    if sample is None:
        raise AbsentError("greedy_sample is a compiled HIP op of a whole aiter, of which there is none here")
    tokens = torch.empty(batch, dtype=torch.int32, device="cuda")

    def argmax(logits: Tensor) -> Tensor:
        sample(tokens, logits)
        return tokens

    return argmax
