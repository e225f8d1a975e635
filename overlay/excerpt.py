"""Definitions cut out of source text: the one a slot has in an sglang, and the one a patch puts there."""

from __future__ import annotations

import ast
import builtins
import functools
import importlib.util
import textwrap
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from types import FunctionType

from overlay.fingerprint import parse
from overlay.model import Slot
from overlay.source import SourceTree, UnreadableSourceError, module_file, read_module

_Function = ast.FunctionDef | ast.AsyncFunctionDef
_Definition = _Function | ast.ClassDef
#: A `make` that reaches what it returns through more calls than this is shown itself.
_DEPTH = 5
_ROOT = Path(__file__).parent.parent


@dataclass(frozen=True)
class Excerpt:
    """The text of one definition, dedented, and where it stands."""

    file: str
    line: int
    text: str


def upstream(tree: SourceTree, slot: Slot) -> tuple[Excerpt, ...]:
    """Every definition or import that binds a slot in a tree: usually one; none where the slot is absent."""
    try:
        source = read_module(tree, slot.module)
    except UnreadableSourceError:
        return ()
    module = parse(source) if source is not None else None
    holder = tree.holding(slot.module.partition(".")[0])
    if source is None or module is None or holder is None:
        return ()
    namespaces: list[ast.Module | ast.ClassDef] = [module]
    *owners, name = slot.qualname.split(".")
    for owner in owners:
        namespaces = [n for space in namespaces for n in _bound(space, owner) if isinstance(n, ast.ClassDef)]
    plain, package = module_file(slot.module)
    file = package if holder.read(plain) is None else plain
    lines = importlib.util.decode_source(source).splitlines()
    return tuple(_cut(node, lines, file) for space in namespaces for node in _bound(space, name))


def replacement(make: object) -> tuple[Excerpt, ...]:
    """What the `make` of a target returns, read from its own file: the inner functions it returns, else all of it."""
    function = _plain(make)
    found = tuple(dict.fromkeys(_returned(function, _DEPTH)))
    return found or (_excerpt(function, _node(function)),)


def _returned(function: FunctionType, depth: int) -> Iterator[Excerpt]:
    node = _node(function)
    own = {inner.name: inner for inner in _scope(node) if isinstance(inner, _Definition)}
    cells = zip(function.__code__.co_freevars, function.__closure__ or (), strict=False)
    known = {**vars(builtins), **function.__globals__, **{name: cell.cell_contents for name, cell in cells}}
    for value in _results(node):
        for name, called in _candidates(value):
            if name in own:
                yield _excerpt(function, own[name])
            elif isinstance(found := known.get(name), FunctionType) and depth:
                yield from _returned(found, depth - 1) if called else (_excerpt(found, _node(found)),)


def _results(node: ast.AST) -> Iterator[ast.expr]:
    if isinstance(node, ast.Lambda):
        yield node.body
    for inner in _scope(node):
        if isinstance(inner, ast.Return) and inner.value is not None:
            yield inner.value


def _candidates(value: ast.expr) -> Iterator[tuple[str, bool]]:
    """The names a returned expression may stand for, and whether it is their result that is returned."""
    if isinstance(value, ast.Name):
        yield value.id, False
    elif isinstance(value, ast.Call):
        if isinstance(value.func, ast.Name):
            yield value.func.id, True
        # staticmethod(f), functools.wraps(original)(f), types.FunctionType(...): what they are given is what matters.
        yield from ((argument.id, False) for argument in value.args if isinstance(argument, ast.Name))
    elif isinstance(value, ast.IfExp):
        yield from (*_candidates(value.body), *_candidates(value.orelse))


def _plain(make: object) -> FunctionType:
    while isinstance(make, functools.partial):
        make = make.func
    found = make if isinstance(make, FunctionType) else getattr(make, "__func__", type(make).__call__)
    assert isinstance(found, FunctionType)
    return found


@functools.cache
def _module(file: str) -> tuple[ast.Module, tuple[str, ...]]:
    source = Path(file).read_bytes()
    return ast.parse(source), tuple(importlib.util.decode_source(source).splitlines())


def _node(function: FunctionType) -> ast.AST:
    """The definition or the lambda that a function was compiled from."""
    tree, _ = _module(function.__code__.co_filename)
    line = function.__code__.co_firstlineno
    found = [n for n in ast.walk(tree) if isinstance(n, _Function | ast.Lambda) and _first_line(n) == line]
    return next((n for n in found if getattr(n, "name", "<lambda>") == function.__name__), found[0])


def _excerpt(function: FunctionType, node: ast.AST) -> Excerpt:
    file = Path(function.__code__.co_filename)
    shown = file.relative_to(_ROOT) if file.is_relative_to(_ROOT) else file
    return _cut(node, _module(str(file))[1], str(shown))


def _cut(node: ast.AST, lines: tuple[str, ...] | list[str], file: str) -> Excerpt:
    first = _first_line(node)
    end = getattr(node, "end_lineno", first)
    return Excerpt(file, first, textwrap.dedent("\n".join(lines[first - 1 : end])))


def _first_line(node: ast.AST) -> int:
    decorators: list[ast.expr] = getattr(node, "decorator_list", [])
    lines: list[int] = [getattr(node, "lineno", 0), *(decorator.lineno for decorator in decorators)]
    return min(lines)


def _scope(node: ast.AST) -> Iterator[ast.AST]:
    """Every node in the scope that `node` opens; definitions are named and not entered."""
    for child in ast.iter_child_nodes(node):
        yield child
        if not isinstance(child, _Definition | ast.Lambda):
            yield from _scope(child)


def _bound(space: ast.Module | ast.ClassDef, name: str) -> Iterator[ast.AST]:
    for node in _scope(space):
        if isinstance(node, _Definition) and node.name == name:
            yield node
        elif isinstance(node, ast.Import | ast.ImportFrom):
            names = {alias.asname or alias.name.partition(".")[0] for alias in node.names}
            if name in names:
                yield node
