"""The frozen dataclasses of the overlay beside those of the standard library."""

from __future__ import annotations

import copy
import dataclasses
import pickle
from collections.abc import Callable, Mapping
from typing import Any

import pytest

from overlay.model import Slot
from overlay.records import _frozen
from tests.unit.engine_support import python


class Plain:
    """Two fields that must be given, one with a default, and one that is made for each."""

    text: str
    number: int
    share: float = 0.5
    found: list[str] = dataclasses.field(default_factory=list)

    @property
    def twice(self) -> int:
        return 2 * self.number


def both(plain: type, name: str) -> tuple[Any, Any]:
    """The same class made by either."""
    made = (dataclasses.dataclass(frozen=True), _frozen(frozen=True))
    namespace = {key: value for key, value in vars(plain).items() if key not in ("__dict__", "__weakref__")}
    return tuple(make(type(name, plain.__bases__, {**namespace, "__qualname__": name})) for make in made)  # type: ignore[return-value]


STANDARD, OURS = both(Plain, "Plain")

USES: Mapping[str, Callable[[Any], object]] = {
    "by position": lambda cls: repr(cls("a", 1, 2.0, ["x"])),
    "by name": lambda cls: repr(cls(number=1, text="a")),
    "mixed": lambda cls: repr(cls("a", share=3.0, number=1)),
    "a property": lambda cls: cls("a", 4).twice,
    "equal": lambda cls: (cls("a", 1) == cls("a", 1), cls("a", 1) == cls("a", 2), cls("a", 1) == ("a", 1, 0.5, [])),
    "one made for each": lambda cls: cls("a", 1).found is cls("a", 1).found,
    "replace": lambda cls: repr(dataclasses.replace(cls("a", 1), number=7)),
    "fields": lambda cls: [(f.name, f.type, f.default) for f in dataclasses.fields(cls)],
    "asdict": lambda cls: dataclasses.asdict(cls("a", 1)),
    "matching": lambda cls: cls.__match_args__,
    "copied": lambda cls: copy.deepcopy(cls("a", 1)) == cls("a", 1),
    "documented": lambda cls: cls.__doc__,
    "hashed": lambda cls: len({cls("a", 1, 0.5, ()), cls("a", 1, 0.5, ()), cls("b", 1, 0.5, ())}),
}  # fmt: skip


@pytest.mark.parametrize("use", USES)
def test_both_do_the_same(use: str) -> None:
    assert USES[use](OURS) == USES[use](STANDARD)


MISUSES: Mapping[str, tuple[Callable[[Any], object], type[Exception], str]] = {
    "nothing": (lambda cls: cls(), TypeError, "Plain(): lacks text, number"),
    "too little": (lambda cls: cls(text="a"), TypeError, "Plain(): lacks number"),
    "too much": (lambda cls: cls("a", 1, 2.0, [], 5), TypeError, "Plain(): takes no more than 4"),
    "twice": (lambda cls: cls("a", 1, text="b"), TypeError, "Plain(): was given twice text"),
    "unknown": (lambda cls: cls("a", 1, colour=2), TypeError, "Plain(): has no field colour"),
    "assigned": (lambda cls: setattr(cls("a", 1), "number", 2), AttributeError, "cannot assign to field 'number'"),
    "added": (lambda cls: setattr(cls("a", 1), "other", 2), AttributeError, "cannot assign to field 'other'"),
    "deleted": (lambda cls: delattr(cls("a", 1), "text"), AttributeError, "cannot delete field 'text'"),
    "unhashable": (lambda cls: hash(cls("a", 1)), TypeError, "unhashable type: 'list'"),
}  # fmt: skip


@pytest.mark.parametrize("misuse", MISUSES)
def test_both_refuse_the_same(misuse: str) -> None:
    use, error, message = MISUSES[misuse]
    with pytest.raises(error):
        use(STANDARD)
    with pytest.raises(error) as raised:
        use(OURS)
    assert str(raised.value) == message


def test_what_a_class_defines_itself_stays() -> None:
    class Named:
        """A field, and a representation."""

        name: str
        __annotations__ = {"name": str}

        def __repr__(self) -> str:
            return f"<{self.name}>"

    assert [repr(cls("x")) for cls in both(Named, "Named")] == ["<x>", "<x>"]


def test_a_subclass_adds_its_fields() -> None:
    made = _frozen(frozen=True)(type("More", (OURS,), {"__annotations__": {"extra": int}, "extra": 3}))
    assert dataclasses.asdict(made("a", 1, extra=4)) == {
        "text": "a",
        "number": 1,
        "share": 0.5,
        "found": [],
        "extra": 4,
    }
    assert made("a", 1) != OURS("a", 1)


def test_an_instance_can_be_sent_to_another_process() -> None:
    slot = Slot("module", "name")
    assert pickle.loads(pickle.dumps(slot)) == slot


_GENERATED = """
import dataclasses, sys
import overlay.runtime, overlay.launch, patches
ours = [vars(module) for name, module in sys.modules.items() if name.startswith(("overlay", "patches"))]
made = {each for names in ours for each in names.values() if isinstance(each, type) and dataclasses.is_dataclass(each)}
print(len(made) > 20, [each.__qualname__ for each in made if each.__init__.__code__.co_filename == "<string>"])
"""


def test_no_code_is_generated_in_a_process_of_a_server() -> None:
    ended = python("-c", _GENERATED)
    assert ended.out == "True []\n", ended.err
