"""`dataclass(frozen=True)` without generated code, for the modules that every process of a server loads.

The standard library compiles six functions for each class (Lib/dataclasses.py, `_create_fn`), which for the thirty of
the overlay took half of the time to import it. Here they are closures. `fields`, `replace` and `asdict` take these
classes for what they are, dataclasses, and type checkers see nothing else. There is no `__post_init__`, and a
subclass is made here too.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from operator import attrgetter
from typing import TYPE_CHECKING, Any, Literal, TypeVar

__all__ = ["dataclass"]

_Class = TypeVar("_Class", bound=type)


def _frozen(*, frozen: Literal[True]) -> Callable[[_Class], _Class]:
    def made(cls: _Class) -> _Class:
        dataclasses.dataclass(init=False, repr=False, eq=False)(cls)
        for name, method in _methods(cls).items():
            if name not in cls.__dict__:
                setattr(cls, name, method)
        return cls

    return made


def _methods(cls: type) -> Mapping[str, Callable[..., Any]]:
    """What a frozen dataclass of these fields can do, by name."""
    fields = dataclasses.fields(cls)
    names = tuple(field.name for field in fields)
    known = frozenset(names)
    factories = {f.name: f.default_factory for f in fields if f.default_factory is not dataclasses.MISSING}
    required = {f.name for f in fields if f.default is dataclasses.MISSING} - factories.keys()
    key = attrgetter(*names)

    def __init__(self: object, *args: object, **kwargs: object) -> None:
        given = {**dict(zip(names, args, strict=False)), **kwargs}
        if len(given) != len(args) + len(kwargs) or not required <= given.keys() <= known:
            raise TypeError(_objection(cls, names, required, args, kwargs))
        made = {name: make() for name, make in factories.items() if name not in given}
        self.__dict__.update(given | made)

    def __repr__(self: object) -> str:
        return f"{type(self).__qualname__}({', '.join(f'{name}={getattr(self, name)!r}' for name in names)})"

    def __eq__(self: object, other: object) -> bool:
        return key(self) == key(other) if type(other) is type(self) else NotImplemented

    def __hash__(self: object) -> int:
        return hash(key(self))

    def __setattr__(_self: object, name: str, _value: object) -> None:
        raise dataclasses.FrozenInstanceError(f"cannot assign to field {name!r}")

    def __delattr__(_self: object, name: str) -> None:
        raise dataclasses.FrozenInstanceError(f"cannot delete field {name!r}")

    methods = (__init__, __repr__, __eq__, __hash__, __setattr__, __delattr__)
    return {method.__name__: method for method in methods}


def _objection(
    cls: type, names: tuple[str, ...], required: set[str], args: tuple[object, ...], kwargs: Mapping[str, object]
) -> str:
    """Why these arguments do not make an instance."""
    given = {*names[: len(args)], *kwargs}
    found = {
        "lacks": [name for name in names if name in required - given],
        "has no field": sorted(kwargs.keys() - set(names)),
        "was given twice": [name for name in names[: len(args)] if name in kwargs],
        "takes no more than": [str(len(names))] if len(args) > len(names) else [],
    }
    return f"{cls.__name__}(): " + "; ".join(f"{what} {', '.join(which)}" for what, which in found.items() if which)


if TYPE_CHECKING:
    from dataclasses import dataclass as dataclass
else:
    dataclass = _frozen
