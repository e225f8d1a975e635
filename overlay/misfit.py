"""Whether data that somebody else made has the types it is annotated with. mypy sees our patches, and not theirs."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import fields, is_dataclass
from functools import cache
from types import UnionType
from typing import TypeVar, Union, get_args, get_origin, get_type_hints

from overlay.gates import Gate
from overlay.platform import Platform

#: What `overlay.model` imports for type checkers only.
_UNIMPORTED = {"Gate": Gate, "Platform": Platform}


def misfit(value: object, wanted: object, where: str) -> str | None:
    """The first place in `value` that is not of the annotated type, and what is there; None where all of it is.

    Looks into dataclasses, tuples and frozen sets. What a function takes and returns cannot be seen.
    """
    kind, arguments = get_origin(wanted) or wanted, get_args(wanted)
    if kind in (Union, UnionType):
        found = [misfit(value, one, where) for one in arguments]
        return None if None in found else found[0]
    if wanted is object or isinstance(wanted, TypeVar):
        return None
    if kind is Callable:
        return None if callable(value) else _says(value, "something to call", where)
    assert isinstance(kind, type)
    if not isinstance(value, kind):
        return _says(value, kind.__name__, where)
    parts: list[tuple[object, object, str]] = []
    if isinstance(value, tuple | frozenset) and arguments:
        parts = [(item, arguments[0], f"{where}[{at}]") for at, item in enumerate(value)]
    elif is_dataclass(kind):
        hints = _hints(kind)
        parts = [(getattr(value, f.name), hints[f.name], f"{where}.{f.name}") for f in fields(kind)]
    return next(filter(None, (misfit(*part) for part in parts)), None)


@cache
def _hints(kind: type) -> dict[str, object]:
    return get_type_hints(kind, localns=_UNIMPORTED)


def _says(value: object, wanted: str, where: str) -> str:
    return f"{where} is of type {type(value).__name__}, where {wanted} is wanted"
