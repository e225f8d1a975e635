"""A second overlay, as somebody else would write it: it fills slots of sglang and knows nothing of ours."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import wrapt

Undo = Callable[[], None]


def replace(owner: Any, name: str) -> Undo:
    """Put a function there that never calls what it found."""
    return _put(owner, name, lambda *_: "theirs")


def wrap(owner: Any, name: str) -> Undo:
    """Put a function there that calls what it found, as `functools.wraps` leaves it."""
    inner = getattr(vars(owner)[name], "__func__", vars(owner)[name])

    @functools.wraps(inner)
    def around(*args: Any, **kwargs: Any) -> str:
        return f"theirs({inner(*args, **kwargs)})"

    return _put(owner, name, around)


def wrap_with_wrapt(owner: Any, name: str) -> Undo:
    """What wrapt's own users do."""
    found = vars(owner)[name]
    wrapt.wrap_function_wrapper(owner, name, lambda inner, _, args, kwargs: f"theirs({inner(*args, **kwargs)})")
    return lambda: setattr(owner, name, found)


def _put(owner: Any, name: str, function: Any) -> Undo:
    found = vars(owner)[name]
    setattr(owner, name, classmethod(function) if isinstance(found, classmethod) else function)
    return lambda: setattr(owner, name, found)
