"""A digest of one function's syntax tree, taken from text.

It ignores what cannot change behaviour (comments, formatting, docstrings, line numbers) and nothing else, and is the
same under every Python that can parse the text: the tree is serialised here rather than with `ast.dump`, whose output
changed in 3.12 (type_params) and 3.13 (empty lists).
"""

from __future__ import annotations

import ast
import hashlib
from collections.abc import Iterator

from overlay.model import ABSENT

#: Observations that are not digests. None ever equals an image, so none is ever patched.
NO_MODULE = "no-module"
NO_OWNER = "no-owner"
AMBIGUOUS = "ambiguous"
UNREADABLE = "unreadable"
#: Begins the observation of a name that is only imported; CANDIDATES separates the places it may come from.
IMPORT = "import "
CANDIDATES = "|"

Definition = ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef
#: `type_comment` is a comment; `ctx` follows from position; `kind` is the u of u"".
_IRRELEVANT = frozenset({"type_comment", "ctx", "kind", "type_ignores"})


def parse(source: bytes) -> ast.Module | None:
    """The tree of a module, or None if the text is not Python (bad encoding, bad syntax, null bytes, too deep)."""
    try:
        return ast.parse(source)
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return None


def observe(tree: ast.Module, qualname: str) -> str:
    """The digest of the function or class at `qualname`, or ABSENT, NO_OWNER or AMBIGUOUS.

    A name that only `from module import name` binds gives `import module.name`. Where several of them do (one per
    platform, layernorm.py:66-72 of 0.5.7), it gives every place, in alphabetical order: `import a.name|b.name`. Which
    of them ran is proved at run time, by `overlay.preimage`.

    AMBIGUOUS means that the text does not tell which binding is live: two definitions, or a definition and a plain
    assignment. A conditional import of the same name beside one definition is not ambiguous (0.5.7 layernorm.py:481
    takes vLLM's class on other platforms): which of the two is live is proved at run time, by `overlay.preimage`.
    """
    try:
        return _observe(tree, qualname)
    except RecursionError:
        return UNREADABLE


def decorators(tree: ast.Module, qualname: str) -> tuple[str, ...]:
    """What decorates the one definition at `qualname`, outermost first, without arguments: `functools.lru_cache`."""
    found = definition(tree, qualname)
    if found is None:
        return ()
    called = (node.func if isinstance(node, ast.Call) else node for node in found.decorator_list)
    return tuple(ast.unparse(node) for node in called)


def definition(tree: ast.Module, qualname: str) -> Definition | None:
    """The one definition at `qualname`, or None if there is none."""
    found = _resolve(tree, qualname)
    return found if isinstance(found, Definition) else None


def _observe(tree: ast.Module, qualname: str) -> str:
    found = _resolve(tree, qualname)
    if found is None:
        return ABSENT
    return found if isinstance(found, str) else digest(found)


def _resolve(tree: ast.Module, qualname: str) -> ast.AST | str | None:
    """The one definition at `qualname`, what `_find` or a missing owner gives in its place, or None."""
    namespace: ast.Module | ast.ClassDef = tree
    *owners, name = qualname.split(".")
    for owner in owners:
        found = _find(namespace, owner)
        if isinstance(found, str):
            return AMBIGUOUS
        if not isinstance(found, ast.ClassDef):
            return NO_OWNER
        namespace = found
    return _find(namespace, name)


def digest(node: ast.AST) -> str:
    """16 hexadecimal digits over the canonical form of a node."""
    return hashlib.sha256("".join(_canonical(node)).encode("utf-8", "surrogatepass")).hexdigest()[:16]


def _find(namespace: ast.Module | ast.ClassDef, name: str) -> ast.AST | str | None:
    """The one definition of a name, an IMPORT, AMBIGUOUS, or None if nothing binds it."""
    bindings = list(_bindings(namespace, name))
    if not bindings:
        return None
    imports = [node for node in bindings if isinstance(node, ast.ImportFrom) and not node.level]
    if len(imports) == len(bindings):
        return IMPORT + CANDIDATES.join(sorted({_imported(node, name) for node in imports}))
    definitions = [node for node in bindings if isinstance(node, Definition)]
    others = [node for node in bindings if not isinstance(node, Definition)]
    conditional = all(isinstance(node, ast.Import | ast.ImportFrom) and node not in namespace.body for node in others)
    return definitions[0] if len(definitions) == 1 and conditional else AMBIGUOUS


def _imported(node: ast.ImportFrom, name: str) -> str:
    """What `from module import original as name` binds to the name: `module.original`."""
    original = [alias.name for alias in node.names if (alias.asname or alias.name) == name][-1]
    return f"{node.module}.{original}"


def imported_from(observed: str) -> tuple[tuple[str, str], ...]:
    """The places an observation says a name is imported from, as pairs of module and attribute. Empty for any other."""
    if not observed.startswith(IMPORT):
        return ()
    places = [place.rpartition(".") for place in observed.removeprefix(IMPORT).split(CANDIDATES)]
    return tuple((module, attribute) for module, _, attribute in places)


def _bindings(node: ast.AST, name: str) -> Iterator[ast.AST]:
    """Every node below `node` that binds or deletes `name` in its namespace. Looks into compound statements, not into
    the namespaces that functions and classes open."""
    for child in ast.iter_child_nodes(node):
        if isinstance(child, Definition):
            if child.name == name:
                yield child
        elif not isinstance(child, ast.Lambda):
            if _binds(child, name):
                yield child
            yield from _bindings(child, name)


def _binds(node: ast.AST, name: str) -> bool:
    if isinstance(node, ast.Import | ast.ImportFrom):
        return any((alias.asname or alias.name.partition(".")[0]) == name for alias in node.names)
    if isinstance(node, ast.ExceptHandler | ast.MatchAs | ast.MatchStar):
        return node.name == name
    if isinstance(node, ast.MatchMapping):
        return node.rest == name
    return isinstance(node, ast.Name) and node.id == name and not isinstance(node.ctx, ast.Load)


def _canonical(value: object) -> Iterator[str]:
    if isinstance(value, ast.AST):
        yield f"({type(value).__name__}"
        for field, child in ast.iter_fields(value):
            if field in _IRRELEVANT or child is None or child == []:
                continue
            if field == "body" and isinstance(value, Definition):
                child = _without_docstring(child)
            yield f" {field}="
            yield from _canonical(child)
        yield ")"
    elif isinstance(value, list):
        yield "["
        for item in value:
            yield from _canonical(item)
            yield ","
        yield "]"
    else:
        yield f"{type(value).__name__}:{value!r}"


def _without_docstring(body: list[ast.stmt]) -> list[ast.stmt]:
    first = body[0]
    if isinstance(first, ast.Expr) and isinstance(first.value, ast.Constant) and isinstance(first.value.value, str):
        return body[1:]
    return body
