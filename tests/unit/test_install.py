"""Filling slots: all or nothing."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from overlay.errors import InstallError
from overlay.install import MARK, Ledger
from overlay.model import Method, Slot, Target
from tests.unit.install_sandbox import Guarded, raising, replaced, slot, snapshot, wrapped


def test_a_replacement_is_a_plain_function_with_our_mark(module: Any) -> None:
    Ledger().install("p", [replaced("Outer.plain"), replaced("top"), replaced("Outer.Inner.deep")])
    assert [module.Outer().plain(), module.top(), module.Outer.Inner().deep()] == ["ours"] * 3
    assert type(vars(module.Outer)["plain"]) is type(lambda: 0)
    assert getattr(module.top, MARK) == "p"


def test_a_wrapper_sees_the_original(module: Any) -> None:
    Ledger().install("p", [wrapped("Outer.plain"), wrapped("Outer.static"), wrapped("Outer.klass"), wrapped("top")])
    outer = module.Outer()
    assert [outer.plain(), outer.static(), outer.klass(), module.Heir.klass(), module.top()] == [
        "around plain",
        "around static",
        "around Outer",
        "around Heir",
        "around top",
    ]


@pytest.mark.parametrize("kind", [staticmethod, classmethod])
def test_a_replacement_may_be_a_descriptor(module: Any, kind: Callable[..., Any]) -> None:
    ours = kind(lambda *args: len(args))
    Ledger().install("p", [Target(slot("Outer.klass"), Method.REPLACE, lambda _original: ours)])
    assert vars(module.Outer)["klass"] is ours
    assert module.Outer.klass() == (1 if kind is classmethod else 0)


def test_make_receives_the_raw_entry_and_none_where_there_is_none(module: Any) -> None:
    seen: list[object] = []

    def make(original: object) -> object:
        seen.append(original)
        return lambda *_: None

    raw = [vars(module.Outer)["static"], vars(module.Outer)["klass"]]
    targets = [Target(slot(q), Method.REPLACE, make) for q in ("Outer.static", "Outer.klass", "Heir.plain")]
    Ledger().install("p", targets)
    assert seen == [*raw, None]


def test_a_name_that_is_inherited_is_added_to_the_heir_alone(module: Any) -> None:
    ledger, before = Ledger(), snapshot(module)
    ledger.install("p", [replaced("Heir.plain")])
    assert (module.Heir().plain(), module.Outer().plain()) == ("ours", "plain")
    ledger.uninstall("p")
    assert snapshot(module) == before


class Value:
    """Something that is no function, and raises where it is taken for a truth value, as sglang's EnvField does."""

    def __bool__(self) -> bool:
        raise RuntimeError("use .get()")

    def __len__(self) -> int:
        raise RuntimeError("use .get()")


def defined(qualname: str, value: object) -> Target:
    return Target(slot(qualname), Method.DEFINE, lambda _original: value)


def test_a_name_may_be_defined_with_any_object(module: Any) -> None:
    ledger, before, value = Ledger(), snapshot(module), Value()
    ledger.install("p", [defined("Outer.number", value), replaced("top")])
    assert module.Outer.number is value
    assert getattr(value, MARK) == "p"
    assert ledger.lost("p") == []
    ledger.uninstall("p")
    assert snapshot(module) == before
    assert not hasattr(value, MARK)


GROUP = ["top", "Outer.plain", "Outer.static", "Outer.klass", "Outer.Inner.deep", "Heir.added", "added"]


BAD: dict[str, tuple[Callable[[], Target], str, str]] = {
    "make raises": (lambda: raising("Sealed.third"), "", "no kernel"),
    "not callable": (lambda: Target(slot("top"), Method.REPLACE, lambda _: 3), "", "made int for install_sandbox:top"),
    "nothing made": (lambda: Target(slot("top"), Method.WRAP, lambda _: None), "", "made NoneType"),
    "wrap of nothing": (lambda: wrapped("Heir.plain"), "", "Heir.plain is absent: there is nothing to wrap"),
    "no owner": (lambda: replaced("Ghost.plain"), "", "Ghost.plain has no owner: Ghost is missing"),
    "no module": (lambda: Target(Slot("no_such", "f"), Method.REPLACE, lambda _: print), "", "no_such is not imported"),
    "a value as owner": (lambda: replaced("constant.real"), "", "constant|vars"),
    "define of something": (lambda: defined("top", Value()), "", "top exists already: there is nothing to define"),
    "define of what carries no mark": (lambda: defined("Outer.number", 3), "", "made int for .*cannot carry a mark"),
    "a slot that refuses": (lambda: replaced("Sealed.third"), "third", "third is read-only"),
    "a wrap that is refused": (lambda: wrapped("Sealed.third"), "third", "third is read-only"),
}


@pytest.mark.parametrize("at", range(len(GROUP) + 1))
@pytest.mark.parametrize("bad", BAD)
def test_if_one_slot_fails_none_is_filled(module: Any, monkeypatch: pytest.MonkeyPatch, bad: str, at: int) -> None:
    target, refuses, message = BAD[bad]
    monkeypatch.setattr(Guarded, "refuses", refuses, raising=False)
    ledger, before = Ledger(), snapshot(module)
    group = [replaced(q) for q in GROUP]
    group.insert(at, target())
    with pytest.raises((InstallError, RuntimeError, TypeError), match=message):
        ledger.install("p", group)
    assert snapshot(module) == before
    assert "p" not in ledger


def test_a_slot_of_a_value_that_has_no_namespace_is_our_error(module: Any) -> None:
    with pytest.raises(InstallError, match="constant"):
        Ledger().install("p", [replaced("constant.real")])


def test_an_owner_that_drops_what_is_put_there_is_found_out(module: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    before = snapshot(module)
    monkeypatch.setattr(Guarded, "__setattr__", lambda *_: None)
    with pytest.raises(InstallError, match=r"Sealed\.first did not keep"):
        Ledger().install("p", [replaced("top"), replaced("Sealed.first")])
    assert snapshot(module) == before


def test_an_interrupt_in_the_middle_restores_too(module: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    before = snapshot(module)

    def interrupted(cls: type, name: str, value: object) -> None:
        type.__setattr__(cls, name, value)
        if name == "second" and getattr(value, MARK, None):
            raise KeyboardInterrupt

    monkeypatch.setattr(Guarded, "__setattr__", interrupted)
    with pytest.raises(KeyboardInterrupt):
        Ledger().install("p", [replaced("top"), replaced("Sealed.first"), replaced("Sealed.second")])
    assert snapshot(module) == before
