"""Whether what stands in a slot now still leads to what we put there."""

from __future__ import annotations

from collections.abc import Sequence
from types import CellType, FunctionType
from typing import Any

#: Deeper than any chain of decorators; ends a chain that leads back into itself.
_DEPTH = 32


def leads_to(value: object, ours: Sequence[object]) -> bool:
    """Whether `value` is one of `ours`, or wraps one: `__wrapped__` is followed where the wrapper can reach it.

    `functools.wraps` names the wrapped function also in a wrapper that never calls it: sglang's plugins replace a
    function that way (srt/plugins/hook_registry.py, `HookType.REPLACE`).
    """
    wanted = [_function(one) for one in ours]
    for _ in range(_DEPTH):
        value = _function(value)
        # wrapt binds anew on each access through a class; what it makes knows the wrapper that the class holds.
        parent = getattr(value, "_self_parent", None)
        if any(value is one or parent is one for one in wanted):
            return True
        inner = getattr(value, "__wrapped__", None)
        if inner is None or (type(value) is FunctionType and not _refers(value, inner)):
            return False
        value = inner
    return False


def _function(value: Any) -> Any:
    # type(), not isinstance(): a wrapt proxy claims the class of what it wraps.
    return value.__func__ if type(value) in (staticmethod, classmethod) else value


def _refers(function: FunctionType, wanted: object) -> bool:
    """Whether a closure or a global that the function's code names is `wanted`."""
    names = function.__code__.co_names
    cells = [cell.cell_contents for cell in function.__closure__ or () if not _is_empty(cell)]
    return any(one is wanted for one in (*cells, *(function.__globals__.get(name) for name in names)))


def _is_empty(cell: CellType) -> bool:
    """A variable of the enclosing function that was never set; reading it raises ValueError."""
    try:
        _ = cell.cell_contents
    except ValueError:
        return True
    return False
