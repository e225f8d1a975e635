"""What the benchmark of the sparse decode says of a graph's replay."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from benchmarks.case import Place
from benchmarks.sparse_mla import Inputs, change, copied, fresh
from overlay.bound import mismatches
from patches.kernels.sparse_mla import Scope, sparse_decode
from tests.kernels.conftest import ON_GPU

_PLACE = Place("cuda" if ON_GPU else "cpu", torch.float16)


def _with_stale(old: Inputs, new: Inputs) -> Iterator[Inputs]:
    """`new` with one tensor after the other as it was in `old`."""
    yield new._replace(q=old.q)
    yield new._replace(sink=old.sink)
    for name in ("window", "chosen"):
        before, after = getattr(old, name), getattr(new, name)
        for field in Scope._fields:
            yield new._replace(**{name: after._replace(**{field: getattr(before, field)})})


def _decode(inputs: Inputs) -> tuple[Tensor, Tensor]:
    return sparse_decode(inputs.q, (inputs.window, inputs.chosen), 0.04, inputs.sink)


def test_a_replay_that_reads_any_input_of_before_is_seen() -> None:
    old = fresh(4, 2, _PLACE)
    new = copied(old)
    change(new)
    made = _decode(new)
    assert all(tensor.isfinite().all() for tensor in made)
    stale = [sum(map(mismatches, _decode(inputs), made)) for inputs in _with_stale(old, new)]
    assert len(stale) == 8 and all(stale)
    assert not sum(map(mismatches, _decode(copied(new)), made))
