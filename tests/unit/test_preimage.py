"""Proof that what a slot holds was compiled from the source that was fingerprinted."""

from __future__ import annotations

import functools
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import wrapt

from overlay.install import held
from overlay.model import Slot
from overlay.preimage import Proof
from tests.unit.engine_support import executed

SOURCE = '''
import functools
import os
from os.path import join as joined

if os.name == "no such system":
    from no_such_package import chosen
else:
    from os.path import basename as chosen

try:
    from no_such_package import missing
except ImportError:
    from os.path import exists as missing

def decorator(f):
    @functools.wraps(f)
    def inner(*args):
        return f(*args)
    return inner

class A:
    """A class."""

    def f(self, x, *, eps=1e-6):
        """Has a docstring, a default, a nested function and a comprehension."""
        def nested(y):
            return y + eps
        return sum([nested(i) for i in range(x)])

    @staticmethod
    def s(x):
        return x

    @classmethod
    def c(cls):
        return cls

    @decorator
    def decorated(self):
        return 1

    if True:
        def conditional(self):
            return 2

    number = 3

def top(x):
    return lambda y: x * y

@functools.lru_cache(maxsize=1)
def cached(x):
    return [x]

@functools.lru_cache
@decorator
def cached_and_decorated(x):
    return [x]
'''


@pytest.fixture
def live(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    (tmp_path / "preimage_sandbox.py").write_text(SOURCE)
    return executed(tmp_path / "preimage_sandbox.py", monkeypatch)


def objection(live: ModuleType, qualname: str) -> str | None:
    slot = Slot("preimage_sandbox", qualname)
    return Proof(live).foreign(slot, held(slot))


@pytest.mark.parametrize(
    "qualname",
    ["A.f", "A.s", "A.c", "A.conditional", "top", "decorator", "A.g", "joined", "chosen", "missing", "cached"],
)
def test_what_the_source_defines_is_accepted(live: Any, qualname: str) -> None:
    assert objection(live, qualname) is None


def test_a_function_that_ran_often_is_still_the_same(live: Any) -> None:
    a = live.A()
    for _ in range(5000):
        a.f(3)
        live.top(2)(3)
    assert objection(live, "A.f") is None
    assert objection(live, "top") is None


def _wraps(original: Callable[..., Any]) -> Any:
    return functools.wraps(original)(lambda *a, **k: original(*a, **k))


def _same_text(original: Callable[..., Any]) -> Any:
    space: dict[str, Any] = {}
    exec("class A:\n    def f(self, x, *, eps=1e-6):\n        return x", space)
    return space["A"].f


TAKEN: dict[str, Callable[[Any], Any]] = {
    "another function": lambda _original: lambda self, x: x,
    "a functools wrapper": _wraps,
    "a wrapt wrapper": lambda original: wrapt.FunctionWrapper(original, lambda w, i, a, k: w(*a, **k)),
    "a partial": lambda original: functools.partial(original, 1),
    "a function of the same name": _same_text,
    "a static method of another": lambda _original: staticmethod(lambda x: x),
    "a value": lambda _original: 3,
}


@pytest.mark.parametrize("taken", TAKEN)
def test_anything_else_is_an_objection(live: Any, taken: str) -> None:
    live.A.f = TAKEN[taken](live.A.f)
    answer = objection(live, "A.f")
    assert answer is not None
    assert answer.endswith(f"which is not the function in {live.__file__}")


def test_an_objection_names_the_owner(live: Any) -> None:
    live.top = test_an_objection_names_the_owner
    owner = f"{__name__}.test_an_objection_names_the_owner (function)"
    assert str(objection(live, "top")).startswith(f"holds {owner}, which is not")
    live.A.g = test_an_objection_names_the_owner
    assert objection(live, "A.g") == f"is absent in the source and holds {owner}"


@pytest.mark.parametrize("qualname", ["A.f", "top"])
def test_a_deleted_function_is_an_objection(live: Any, qualname: str) -> None:
    owner, _, name = qualname.rpartition(".")
    delattr(live.A if owner else live, name)
    assert str(objection(live, qualname)).startswith("holds nothing, ")


@pytest.mark.parametrize("qualname", ["A.decorated", "A.number"])
def test_what_is_not_the_plain_function_of_the_text_is_an_objection(live: Any, qualname: str) -> None:
    assert objection(live, qualname) is not None


def test_a_swapped_code_object_is_an_objection(live: Any) -> None:
    live.A.s.__code__ = (lambda x: x + 1).__code__
    assert objection(live, "A.s") is not None


def test_a_file_that_was_edited_is_an_objection(live: Any) -> None:
    slot = Slot("preimage_sandbox", "A.f")
    observed = _observed(live, slot)
    assert Proof(live).objection(slot, held(slot), observed) is None
    path = Path(live.__file__)
    path.write_text(SOURCE.replace("y + eps", "y - eps"))
    answer = Proof(live).objection(slot, held(slot), observed)
    assert str(answer).startswith(f"changed on disk since the plan was made ({observed} is now ")
    assert objection(live, "A.f") is not None
    path.write_text(SOURCE[: SOURCE.index("class A:")])
    assert "changed on disk" in str(Proof(live).objection(slot, held(slot), observed))


def test_a_comment_more_since_the_plan_is_no_change(live: Any) -> None:
    slot = Slot("preimage_sandbox", "top")
    observed = _observed(live, slot)
    Path(live.__file__).write_text(SOURCE + "# the end\n")
    assert Proof(live).objection(slot, held(slot), observed) is None


def test_a_file_that_does_not_parse_any_more_is_said(live: Any) -> None:
    Path(live.__file__).write_text("def f(:")
    with pytest.raises(SyntaxError, match="ran and does not parse any more"):
        Proof(live)


def _observed(live: ModuleType, slot: Slot) -> str:
    from overlay import fingerprint

    tree = fingerprint.parse(Path(str(live.__file__)).read_bytes())
    assert tree is not None
    return fingerprint.observe(tree, slot.qualname)


def test_an_imported_name_is_accepted_only_while_it_is_what_was_imported(live: Any) -> None:
    live.joined = lambda *_: ""
    assert str(objection(live, "joined")).endswith(", not os.path.join")
    del live.joined
    assert objection(live, "joined") is not None


def test_a_name_imported_in_one_of_several_ways_is_what_one_of_them_imports(live: Any) -> None:
    from os import path

    live.chosen = path.dirname
    assert str(objection(live, "chosen")).endswith(", not no_such_package.chosen or os.path.basename")
    live.chosen = _wraps(path.basename)
    assert objection(live, "chosen") is not None
    del live.chosen
    assert str(objection(live, "chosen")).startswith("holds nothing, not ")


def test_any_of_the_places_will_do(live: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    other = ModuleType("no_such_package")
    other.chosen = lambda: None  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "no_such_package", other)
    assert objection(live, "chosen") is None
    live.chosen = other.chosen
    assert objection(live, "chosen") is None


FALSE_CACHES: dict[str, tuple[str, Callable[[Any], Any]]] = {
    "of another function": ("cached", lambda _original: functools.cache(lambda x: [x])),
    "of a function without one": ("top", functools.cache),
    "of what another decorator made": ("cached_and_decorated", lambda original: original),
}


@pytest.mark.parametrize("false", FALSE_CACHES)
def test_a_cache_is_accepted_only_where_the_source_has_one(live: Any, false: str) -> None:
    name, taken = FALSE_CACHES[false]
    setattr(live, name, taken(getattr(live, name)))
    assert str(objection(live, name)).endswith(f"which is not the function in {live.__file__}")
