"""A module to be patched, targets in it, and a picture of every entry it has."""

from __future__ import annotations

from collections.abc import Callable
from types import ModuleType

from overlay.model import Method, Slot, Target

MODULE = "install_sandbox"


class Guarded(type):
    """A class whose slots refuse to be set: by name, or after a number of times."""

    refuses = ""

    def __setattr__(cls, name: str, value: object) -> None:
        if name == Guarded.refuses:
            raise TypeError(f"{name} is read-only")
        super().__setattr__(name, value)


def build() -> ModuleType:
    module = ModuleType(MODULE)
    source = """
def top(): return "top"
class Outer:
    def plain(self): return "plain"
    @staticmethod
    def static(): return "static"
    @classmethod
    def klass(cls): return cls.__name__
    class Inner:
        def deep(self): return "deep"
class Heir(Outer): pass
class Sealed(metaclass=Guarded):
    def first(self): return "first"
    def second(self): return "second"
    def third(self): return "third"
constant = 7
"""
    module.__dict__["Guarded"] = Guarded
    exec(compile(source, f"{MODULE}.py", "exec"), module.__dict__)
    return module


def slot(qualname: str) -> Slot:
    return Slot(MODULE, qualname)


def replaced(qualname: str, value: object = "ours") -> Target:
    return Target(slot(qualname), Method.REPLACE, lambda _original: lambda *_: value)


def wrapped(qualname: str) -> Target:
    def wrapper(
        inner: Callable[..., str], _instance: object, args: tuple[object, ...], kwargs: dict[str, object]
    ) -> str:
        return f"around {inner(*args, **kwargs)}"

    return Target(slot(qualname), Method.WRAP, lambda _original: wrapper)


def raising(qualname: str) -> Target:
    def make(_original: object) -> object:
        raise RuntimeError("no kernel")

    return Target(slot(qualname), Method.REPLACE, make)


def snapshot(module: ModuleType) -> dict[str, list[tuple[str, int, object]]]:
    """Every entry of every namespace, in order, by identity; the values are kept, so that no identity is used twice."""
    classes = [module.Outer, module.Outer.Inner, module.Heir, module.Sealed]
    spaces = {"module": module, **{c.__qualname__: c for c in classes}}
    # Python adds these two by itself, the first time it needs them.
    own = {"__static_attributes__", "__firstlineno__"}
    return {n: [(k, id(v), v) for k, v in vars(s).items() if k not in own] for n, s in spaces.items()}
