"""The only code that changes objects of sglang. All or nothing, verified, reversible.

A group of slots is resolved and checked completely before the first one is touched; if anything fails afterwards,
every slot of the group is put back exactly as it was, including names that did not exist.
"""

from __future__ import annotations

import sys
from collections.abc import Iterable, Sequence
from typing import Any

import wrapt

from overlay.errors import InstallError
from overlay.model import Method, Slot, Target
from overlay.records import dataclass

_MISSING = object()

#: Carried by every function we put in place, so that anyone can tell whose it is.
MARK = "__amd_sglang_patch__"


class _Wrapper(wrapt.FunctionWrapper):  # type: ignore[type-arg]  # generic in wrapt 2 only, and not at runtime
    """A wrapt wrapper that carries our mark itself: set as an attribute, wrapt would pass it on to the original."""

    def __init__(self, wrapped: Any, wrapper: Any, key: str) -> None:
        super().__init__(wrapped, wrapper)
        self._self_patch = key

    @property
    def __amd_sglang_patch__(self) -> str:
        patch: str = self._self_patch
        return patch


@dataclass(frozen=True)
class _Change:
    """A slot that was filled: where, with what, and what was there before."""

    slot: Slot
    owner: object
    name: str
    original: object
    installed: object


@dataclass(frozen=True)
class _Addition:
    """What was put at the end of a list."""

    items: list[Any]
    added: tuple[object, ...]

    def take_out(self) -> None:
        # By identity: what was added may compare equal to something of sglang's.
        for at in reversed(range(len(self.items))):
            if any(self.items[at] is one for one in self.added):
                del self.items[at]


class Ledger:
    """Everything the overlay has changed in this process, by the key it was installed under."""

    def __init__(self) -> None:
        self._changes: dict[str, tuple[_Change, ...]] = {}
        self._additions: dict[str, _Addition] = {}

    def __contains__(self, key: str) -> bool:
        return key in self._changes or key in self._additions

    def extend(self, key: str, items: list[Any], added: Sequence[object]) -> None:
        """Put objects at the end of a list of sglang's, such as the routes of its HTTP server.

        Raises InstallError where `items` is no list, or `key` is taken; nothing has been changed then.
        """
        if key in self:
            raise InstallError(f"{key} is already installed in this process")
        if not isinstance(items, list):
            raise InstallError(f"{key} extends {type(items).__name__}, which is not a list")
        items.extend(added)
        self._additions[key] = _Addition(items, tuple(added))

    def install(self, key: str, targets: Sequence[Target]) -> None:
        """Fill every slot of `targets`, or none.

        Whatever is raised (InstallError, or what a `make` raised), no slot differs from what it was before the call.
        """
        if key in self:
            raise InstallError(f"{key} is already installed in this process")
        pending = [_prepare(key, target) for target in targets]
        done: list[_Change] = []
        try:
            for change in pending:
                done.append(change)
                _set(change.owner, change.name, change.installed)
                if _peek(change.owner, change.name) is not change.installed:
                    raise InstallError(f"{change.slot} did not keep what was put there")
        except BaseException:  # also an interrupt must not leave half a group behind
            _restore(done)
            raise
        self._changes[key] = tuple(pending)

    def uninstall(self, key: str) -> None:
        """Put back what was there before `install(key, ...)`, or `extend(key, ...)`. A slot that somebody else has
        filled since is left."""
        if key in self._additions:
            self._additions.pop(key).take_out()
            return
        if key not in self._changes:
            raise InstallError(f"{key} is not installed in this process")
        _restore([c for c in self._changes.pop(key) if _peek(c.owner, c.name) is c.installed])

    def lost(self, key: str) -> list[tuple[Slot, object]]:
        """The slots of `key` that no longer hold what was installed, with what they hold now."""
        found = []
        for change in self._changes.get(key, ()):
            try:
                now = held(change.slot)
            except InstallError:  # the module or the class is gone
                now = None
            if now is not change.installed:
                found.append((change.slot, now))
        return found

    def installed(self, keys: Iterable[str], slot: Slot) -> list[object]:
        """What was put into `slot` under these keys."""
        return [c.installed for key in keys for c in self._changes.get(key, ()) if c.slot == slot]

    def fills(self, key: str, slot: Slot) -> bool:
        """Whether `slot` holds what was installed under `key`."""
        return any(c.slot == slot and held(slot) is c.installed for c in self._changes.get(key, ()))


def held(slot: Slot) -> object:
    """What a slot of an imported module holds: the raw `__dict__` entry, None where there is none.

    Raises InstallError if the module is not imported or the slot has no owner.
    """
    value = _peek(_owner(slot), _name(slot))
    return None if value is _MISSING else value


def put(owner: object, name: str, value: object) -> None:
    """Set one attribute outside any patch: for the simulation, whose processes are never restored."""
    _set(owner, name, value)


def describe_owner(value: object) -> str:
    """Name whose code `value` is: module and qualified name, and the patch id where it is one of ours."""
    if value is None:
        return "nothing"
    own = getattr(value, MARK, None)
    inner = getattr(value, "__func__", value)
    where = f"{getattr(inner, '__module__', '?')}.{getattr(inner, '__qualname__', type(inner).__qualname__)}"
    return f"{where} ({type(value).__name__})" if own is None else f"{where} of patch {own}"


def _prepare(key: str, target: Target) -> _Change:
    owner = _owner(target.slot)
    name = _name(target.slot)
    original = _peek(owner, name)
    made: Any = target.make(None if original is _MISSING else original)
    if target.method is Method.DEFINE:
        if original is not _MISSING:
            raise InstallError(f"{target.slot} exists already: there is nothing to define")
        if not hasattr(made, "__dict__"):
            raise InstallError(f"{key} made {type(made).__name__} for {target.slot}, which cannot carry a mark")
    elif not callable(made) and not isinstance(made, staticmethod | classmethod):
        raise InstallError(f"{key} made {type(made).__name__} for {target.slot}, which is not callable")
    if target.method is Method.WRAP:
        if original is _MISSING:
            raise InstallError(f"{target.slot} is absent: there is nothing to wrap")
        made = _Wrapper(original, made, key)
    else:
        _set(made, MARK, key)
    return _Change(target.slot, owner, name, original, made)


def _owner(slot: Slot) -> object:
    """The namespace a slot lives in. Walks `__dict__`s, so that no descriptor and no lazy attribute runs."""
    node: object = sys.modules.get(slot.module, _MISSING)
    if node is _MISSING:
        raise InstallError(f"{slot.module} is not imported")
    for part in slot.qualname.split(".")[:-1]:
        node = _peek(node, part)
        if node is _MISSING:
            raise InstallError(f"{slot} has no owner: {part} is missing")
        if not hasattr(node, "__dict__"):
            raise InstallError(f"{slot} has no owner: {part} is {node!r}, which holds no names")
    return node


def _name(slot: Slot) -> str:
    return slot.qualname.rpartition(".")[2]


def _peek(owner: object, name: str) -> Any:
    return vars(owner).get(name, _MISSING)


def _set(owner: object, name: str, value: object) -> None:
    setattr(owner, name, value)


def _restore(changes: Sequence[_Change]) -> None:
    for change in reversed(changes):
        if _peek(change.owner, change.name) is not change.original:
            if change.original is not _MISSING:
                _set(change.owner, change.name, change.original)
            else:
                delattr(change.owner, change.name)
        # A patch may install a function that outlives it, such as one of upstream's own.
        vars(change.installed).pop(MARK, None)
