"""What one source file has at a qualified name: its observation, and where in the file it stands.

It follows from the bytes of the file alone, so it is looked up under their SHA-256 before anything is parsed: parsing
the 1.3 MiB of 0.5.23 that a plan looks at takes a third of a second, hashing them a few milliseconds.
"""

from __future__ import annotations

import ast
import hashlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import cached_property
from typing import Any

from overlay import fingerprint
from overlay.records import dataclass


@dataclass(frozen=True)
class Sighting:
    """The observation of `overlay.fingerprint` and, where that is the digest of one definition whose lines can be cut
    out of the file and still give it, the first and the last line of it and its decorators, from 1.

    The other two are what its code depends on beyond its own text: whether the file postpones the evaluation of
    annotations, and which names with an attribute in it the file imports: `name.attribute()` compiles to other
    instructions where the module imports `name` (Python/compile.c, is_import_originated).
    """

    observed: str
    first: int = 0
    last: int = 0
    postponed: bool = False
    imported: tuple[str, ...] = ()

    @classmethod
    def of(cls, observed: str, *where: Any) -> Sighting:
        """A sighting from its fields as JSON has them."""
        return cls(observed, *where[:3], *map(tuple, where[3:]))

    @property
    def compiler_flags(self) -> int:
        """What `compile` has to be told about the file, if it is not given all of it."""
        # The name is bound by this module's own import from __future__, to the object that describes the feature.
        return annotations.compiler_flag if self.postponed else 0


class Memory:
    """Sightings by the content of files: those known beforehand, and those of every file parsed since."""

    def __init__(self, known: Mapping[str, Mapping[str, Sequence[Any]]] | None = None) -> None:
        self._known = known or {}
        self._seen: dict[str, dict[str, Sighting]] = {}

    def of(self, content: str) -> dict[str, Sighting]:
        """The sightings in a file by the SHA-256 of its content, by qualified name: to look up and to add to."""
        if content not in self._seen:
            rows = self._known.get(content, {})
            self._seen[content] = {name: Sighting.of(*row) for name, row in rows.items()}
        return self._seen[content]


class SourceFile:
    """The bytes of one module, parsed at most once, and only if asked for what its memory does not have."""

    def __init__(self, source: bytes, memory: Memory) -> None:
        self.content = hashlib.sha256(source).hexdigest()
        self._source = source
        self._seen = memory.of(self.content)

    @property
    def readable(self) -> bool:
        """Whether this is Python source, as whatever was seen in is."""
        return bool(self._seen) or self._tree is not None

    def sighting(self, qualname: str) -> Sighting:
        """What is at a qualified name. At every name of what is not Python source that is UNREADABLE."""
        if qualname in self._seen:
            return self._seen[qualname]
        if self._tree is None:
            return Sighting(fingerprint.UNREADABLE)
        found = self._see(self._tree, qualname)
        if found.observed != fingerprint.UNREADABLE:  # too deep for this stack, perhaps not for the next
            self._seen[qualname] = found
        return found

    def texts(self, qualname: str) -> Iterator[bytes]:
        """Modules that have the definition at a qualified name on the lines it has here: first one with nothing else,
        if it can be cut out, then the whole file. The first needs the `compiler_flags` of the sighting. It gave the
        digest when it was sighted, and is not digested again: that takes longer than all of a proof."""
        sighting = self.sighting(qualname)
        if sighting.last:
            yield self._alone(qualname, sighting)
        yield self._source

    @cached_property
    def _lines(self) -> list[bytes]:
        return self._source.splitlines(keepends=True)

    @cached_property
    def _tree(self) -> ast.Module | None:
        return fingerprint.parse(self._source)

    def _see(self, tree: ast.Module, qualname: str) -> Sighting:
        observed, node = fingerprint.observe(tree, qualname), fingerprint.definition(tree, qualname)
        if node is None:
            return Sighting(observed)
        first = min(each.lineno for each in (node, *node.decorator_list))
        imports = [each for each in _statements(tree) if isinstance(each, ast.Import | ast.ImportFrom)]
        bound = {alias.asname or alias.name.partition(".")[0] for each in imports for alias in each.names}
        owners = [inner.value for inner in ast.walk(node) if isinstance(inner, ast.Attribute)]
        used = {owner.id for owner in owners if isinstance(owner, ast.Name)}
        found = Sighting(observed, first, node.end_lineno or first, _postponed(imports), tuple(sorted(bound & used)))
        alone = fingerprint.parse(self._alone(qualname, found))
        cut_out = alone is not None and fingerprint.observe(alone, qualname) == observed
        return found if cut_out else Sighting(observed)

    def _alone(self, qualname: str, sighting: Sighting) -> bytes:
        """The lines of a sighting as a module of their own: below its imports, the headers of the classes that own the
        name, or something that indents it as the file does, and as many empty lines as keep their numbers. Nothing
        where there is no room for them."""
        lines = self._lines[sighting.first - 1 : sighting.last]
        owners = qualname.split(".")[:-1]
        headers = [f"{' ' * depth}class {owner}:\n" for depth, owner in enumerate(owners)]
        if not owners and lines[0][:1].isspace():
            headers = ["if True:\n"]
        if sighting.imported:
            headers.insert(0, f"import {', '.join(sighting.imported)}\n")
        above = sighting.first - 1 - len(headers)
        return "".join(["\n" * above, *headers]).encode() + b"".join(lines) if above >= 0 else b""


def _statements(node: ast.AST) -> Iterator[ast.AST]:
    """Every statement of a scope, with those inside of compound statements."""
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.stmt | ast.ExceptHandler | ast.match_case):
            yield child
            if not isinstance(child, fingerprint.Definition):
                yield from _statements(child)


def _postponed(imports: Iterable[ast.Import | ast.ImportFrom]) -> bool:
    future = [each for each in imports if isinstance(each, ast.ImportFrom) and each.module == "__future__"]
    return any(alias.name == "annotations" for each in future for alias in each.names)
