"""Proof that a live function is the source that was fingerprinted.

The chain: the plan's digest was taken from a file; the file is read again and must give the same digest; what it
defines at the slot's name is compiled, and the code object must equal the code of the function that the slot holds. A
function that another overlay, a plugin or an instrumenting loader put there cannot pass.
"""

from __future__ import annotations

import sys
from functools import cache
from types import CodeType, FunctionType, ModuleType
from typing import Any

from overlay import fingerprint, known_sources
from overlay.install import describe_owner
from overlay.model import ABSENT, Slot
from overlay.sighting import SourceFile

#: What these decorators make of a function, which carries it as `__wrapped__`.
_CACHED = type(cache(lambda: None))
_CACHES = frozenset({"functools.cache", "functools.lru_cache", "cache", "lru_cache"})


class Proof:
    """The source of one executed module, compared with what its slots hold."""

    def __init__(self, module: ModuleType) -> None:
        self._file = str(module.__file__)
        with open(self._file, "rb") as stream:
            self._source = SourceFile(stream.read(), known_sources.memory())
        if not self._source.readable:
            raise SyntaxError(f"{self._file} ran and does not parse any more: it was changed while being imported")

    def objection(self, slot: Slot, held: object, observed: str) -> str | None:
        """Why `held` is not the code whose digest `observed` the plan recorded, or None if it is."""
        now = self._source.sighting(slot.qualname).observed
        if now != observed:
            return f"changed on disk since the plan was made ({observed} is now {now} in {self._file})"
        return self.foreign(slot, held)

    def foreign(self, slot: Slot, held: object) -> str | None:
        """Why `held` is not what this module's own source defines at the slot, or None if it is."""
        source = self._source.sighting(slot.qualname).observed
        if source == ABSENT:
            return None if held is None else f"is absent in the source and holds {describe_owner(held)}"
        if places := fingerprint.imported_from(source):
            if held is not None and any(held is getattr(sys.modules.get(m), name, None) for m, name in places):
                return None
            return f"holds {describe_owner(held)}, not {' or '.join(f'{m}.{name}' for m, name in places)}"
        # type(), not isinstance(): a wrapt proxy claims the class of what it wraps.
        function: Any = held
        if type(held) in (staticmethod, classmethod):
            function = function.__func__
        if any(self._defines(text, slot.qualname, function) for text in self._source.texts(slot.qualname)):
            return None
        return f"holds {describe_owner(held)}, which is not the function in {self._file}"

    def _defines(self, text: bytes, qualname: str, function: Any) -> bool:
        """Whether `function` was compiled from what a text has at a qualified name, and is cached only if that is."""
        if type(function) is _CACHED and (tree := fingerprint.parse(text)) is not None:
            decorated = fingerprint.decorators(tree, qualname)[:1]
            function = function.__wrapped__ if _CACHES.intersection(decorated) else None
        if type(function) is not FunctionType:
            return False
        flags = self._source.sighting(qualname).compiler_flags
        try:
            module = compile(text, self._file, "exec", flags, dont_inherit=True)
        except SyntaxError:  # the lines are those of a sighting, which may be wrong: the whole file comes next
            return False
        return function.__code__ == _find(module, qualname)


def _find(module: CodeType, qualname: str) -> CodeType | None:
    """The code object nested in a module's code at a qualified name."""
    code = module
    for part in qualname.split("."):
        inner = [c for c in code.co_consts if isinstance(c, CodeType) and c.co_name == part]
        if len(inner) != 1:
            return None
        code = inner[0]
    return code
