"""What `fix-freqs-cache` does to the real rotary tables of one release, and what the release does without it.

Not collected by name: `test_deepseek_v4_fixes.py` runs this file under the overlay, in the simulated gfx950.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterator
from types import ModuleType
from typing import Any

import pytest
import torch
from torch import Tensor

from patches import fix_freqs_cache
from tests.patches.in_release.rounds import WITH_AND_WITHOUT, in_force

ID = "fix-freqs-cache"
ROUNDS = 50
CPU = torch.device("cpu")


@pytest.fixture(scope="module", params=WITH_AND_WITHOUT)
def patched(request: pytest.FixtureRequest) -> bool:
    import sglang.srt.models.deepseek_v4  # noqa: F401

    return in_force(request, ID)


@pytest.fixture
def model(patched: bool) -> Iterator[ModuleType]:
    from sglang.srt.models import deepseek_v4

    deepseek_v4._FREQS_CIS_TO_COS_SIN.clear()
    yield deepseek_v4
    deepseek_v4._FREQS_CIS_TO_COS_SIN.clear()


def frequencies(theta: float) -> Tensor:
    """(16, 4) complex64, as `precompute_freqs_cis` makes them."""
    angles = torch.outer(torch.arange(16.0), theta ** -torch.arange(4.0))
    return torch.polar(torch.ones_like(angles), angles)


def is_right(tables: tuple[Tensor, Tensor], freqs_cis: Tensor, dtype: torch.dtype = torch.bfloat16) -> bool:
    cos, sin = tables
    return torch.equal(cos, freqs_cis.real.to(dtype)) and torch.equal(sin, freqs_cis.imag.to(dtype))


def test_a_recycled_address_gets_its_own_tables(model: ModuleType, patched: bool) -> None:
    wrong, addresses = 0, set()
    for round_ in range(ROUNDS):
        freqs_cis = frequencies(10000.0 + round_)
        addresses.add(id(freqs_cis))
        wrong += not is_right(model._freqs_cis_to_cos_sin(freqs_cis, torch.bfloat16, CPU), freqs_cis)
        del freqs_cis
    assert len(addresses) < ROUNDS, "no address was used twice: this proves nothing"
    assert wrong == 0 if patched else wrong > 0
    assert len(model._FREQS_CIS_TO_COS_SIN) == (0 if patched else len(addresses)), "tables outlive their tensor"


def test_the_layers_that_share_a_tensor_share_its_tables(model: ModuleType) -> None:
    """With and without the patch: one table for each dtype, however often and in whatever order it is asked for."""
    shared, other = frequencies(10000.0), frequencies(160000.0)
    first = model._freqs_cis_to_cos_sin(shared, torch.bfloat16, CPU)
    assert is_right(model._freqs_cis_to_cos_sin(other, torch.bfloat16, CPU), other)
    exact = model._freqs_cis_to_cos_sin(shared, torch.float32, CPU)
    assert is_right(first, shared) and is_right(exact, shared, torch.float32)
    for dtype, tables in ((torch.bfloat16, first), (torch.float32, exact)):
        again = model._freqs_cis_to_cos_sin(shared, dtype, CPU)
        assert again[0] is tables[0] and again[1] is tables[1]
    assert all(table.is_contiguous() for table in first)


def test_a_dead_tensor_takes_only_its_own_tables_along(model: ModuleType, patched: bool) -> None:
    kept, freed = frequencies(10000.0), frequencies(160000.0)
    tables = model._freqs_cis_to_cos_sin(kept, torch.bfloat16, CPU)
    model._freqs_cis_to_cos_sin(freed, torch.bfloat16, CPU)
    model._freqs_cis_to_cos_sin(freed, torch.float32, CPU)
    del freed
    left = list(model._FREQS_CIS_TO_COS_SIN)
    assert left == [(id(kept), torch.bfloat16, CPU)] if patched else len(left) == 3
    assert model._freqs_cis_to_cos_sin(kept, torch.bfloat16, CPU)[0] is tables[0]


def test_the_answer_does_not_wait_for_a_tensors_last_words(
    model: ModuleType, patched: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Tables found at an address are dropped unless they were made from the tensor that is there now, though nobody has
    said yet that the last one is gone; and when that is said, the new tables stay."""
    if patched:
        return  # on the release's own function, which the patch stands upon
    silent, late = weakref.ref, []

    def reference(tensor: Tensor, died: Callable[[Any], None]) -> Any:
        late.append((silent(tensor), died))
        return late[-1][0]

    monkeypatch.setattr(weakref, "ref", reference)
    to_cos_sin = fix_freqs_cache.make_freqs_cis_to_cos_sin(model._freqs_cis_to_cos_sin)
    for round_ in range(ROUNDS):
        freqs_cis = frequencies(10000.0 + round_)
        tables = to_cos_sin(freqs_cis, torch.bfloat16, CPU)
        assert is_right(tables, freqs_cis)
        for dead, died in late[:-1]:
            died(dead)
        assert to_cos_sin(freqs_cis, torch.bfloat16, CPU)[0] is tables[0]
        del freqs_cis
