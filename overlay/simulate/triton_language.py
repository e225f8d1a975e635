"""What the interpreter's `triton.language` lacks: functions of the device library, and built-ins under an alias."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable
from typing import Any

import numpy as np
import triton.language as tl
from triton.language.extra import libdevice
from triton.runtime.interpreter import interpreter_builder, interpreter_semantic

from overlay.simulate.fakes.errors import MissingBodyError

_UNARY: dict[str, Callable[[Any], Any]] = {
    "exp": np.exp,
    "exp2": np.exp2,
    "fast_expf": np.exp,
    "fast_log2f": np.log2,
    "fast_logf": np.log,
    "log": np.log,
    "log1p": np.log1p,
    "rint": np.rint,
    "rsqrt": lambda x: 1 / np.sqrt(x),
    "sqrt": np.sqrt,
    "tanh": np.tanh,
}


def apply() -> None:
    """Complete the language of the interpreter."""
    for name, _ in inspect.getmembers(libdevice, inspect.isfunction):
        operation = _UNARY.get(name)
        setattr(libdevice, name, _missing(name) if operation is None else _elementwise(operation))
    for module in (tl, tl.math):
        for name, function in inspect.getmembers(module, tl.core.is_builtin):
            setattr(module, name, _at_home(function))


def _elementwise(operation: Callable[[Any], Any]) -> Callable[..., Any]:
    def call(x: Any, **_: object) -> Any:
        return tl.core.tensor(interpreter_builder.unary_op(x.handle, operation), x.type)

    return call


def _missing(name: str) -> Callable[..., Any]:
    """The functions of libdevice have empty bodies: uninterpreted they answer None, which fails far from the cause."""

    def call(*_: object, **__: object) -> Any:
        raise MissingBodyError(f"triton.language.extra.libdevice.{name} has no body in the simulation")

    return call


def _at_home(builtin: Callable[..., Any]) -> Callable[..., Any]:
    """A built-in that works under any name.

    The interpreter makes built-ins callable by replacing the attributes of `triton.language` for the time of a launch.
    An alias made at import, `exp = tl.exp` of fla/op.py, keeps the unbound built-in: that one must find its semantics
    itself.
    """

    @functools.wraps(builtin)
    def call(*args: Any, **kwargs: Any) -> Any:
        if kwargs.get("_semantic") is None:
            kwargs["_semantic"] = interpreter_semantic
        return builtin(*args, **kwargs)

    return call
