"""What is installed can be looked at, and taken out again entry by entry and object by object."""

from __future__ import annotations

import functools
from typing import Any

import pytest
import wrapt

from overlay.errors import InstallError
from overlay.install import MARK, Ledger, describe_owner, held
from overlay.model import Method, Slot, Target
from tests.unit.install_sandbox import MODULE, replaced, slot, snapshot, wrapped

GROUP = ["top", "Outer.plain", "Outer.static", "Outer.klass", "Outer.Inner.deep", "Heir.added", "added"]


def test_uninstall_restores_every_entry(module: Any) -> None:
    ledger, before = Ledger(), snapshot(module)
    ledger.install("p", [replaced(q) for q in GROUP])
    ledger.install("q", [wrapped("Sealed.first"), replaced("Sealed.second")])
    assert snapshot(module) != before
    assert ("p" in ledger, "q" in ledger) == (True, True)
    ledger.uninstall("q")
    ledger.uninstall("p")
    assert snapshot(module) == before
    assert "p" not in ledger
    ledger.install("p", [replaced(q) for q in GROUP])
    assert module.top() == "ours"


def test_a_function_that_is_not_ours_is_not_marked(module: Any) -> None:
    upstream = module.Outer.plain
    ledger = Ledger()
    ledger.install("p", [Target(slot("top"), Method.REPLACE, lambda _original: upstream)])
    ledger.uninstall("p")
    assert not hasattr(upstream, MARK)


def test_a_key_is_installed_once(module: Any) -> None:
    ledger = Ledger()
    ledger.install("p", [replaced("top")])
    with pytest.raises(InstallError, match="p is already installed"):
        ledger.install("p", [replaced("Outer.plain")])
    assert module.Outer().plain() == "plain"


def test_uninstall_of_what_was_never_installed_is_our_error() -> None:
    with pytest.raises(InstallError, match="ghost"):
        Ledger().uninstall("ghost")


def test_uninstall_leaves_a_slot_that_somebody_filled_since(module: Any) -> None:
    ledger, before = Ledger(), snapshot(module)
    ledger.install("p", [replaced("top"), replaced("Outer.plain")])
    theirs = module.Outer.plain = lambda self: "theirs"
    ledger.uninstall("p")
    assert vars(module.Outer)["plain"] is theirs
    assert snapshot(module)["module"] == before["module"]


def test_lost_names_the_slots_that_no_longer_hold_ours(module: Any) -> None:
    ledger = Ledger()
    ledger.install("p", [replaced("top"), replaced("Heir.added"), wrapped("Outer.plain")])
    assert ledger.lost("p") == ledger.lost("unknown") == []
    module.top = theirs = lambda: "theirs"
    del module.Heir.added
    assert ledger.lost("p") == [(slot("top"), theirs), (slot("Heir.added"), None)]


def test_held_is_the_raw_entry(module: Any) -> None:
    assert isinstance(held(slot("Outer.static")), staticmethod)
    assert held(slot("Heir.plain")) is None
    for missing in (Slot("no_such", "f"), slot("Ghost.f")):
        with pytest.raises(InstallError):
            held(missing)


def test_describe_owner_says_whose_a_value_is(module: Any) -> None:
    before = module.Outer.plain
    Ledger().install("p", [replaced("Outer.plain")])
    copied = functools.wraps(before)(lambda: 0)
    for value, text in (
        (None, "nothing"),
        (before, f"{MODULE}.Outer.plain (function)"),
        (copied, f"{MODULE}.Outer.plain (function)"),
        (vars(module.Outer)["klass"], f"{MODULE}.Outer.klass (classmethod)"),
        (wrapt.FunctionWrapper(before, print), f"{MODULE}.Outer.plain (FunctionWrapper)"),
        (7, "?.int (int)"),
    ):
        assert describe_owner(value) == text
    assert describe_owner(module.Outer.plain).endswith("of patch p")
