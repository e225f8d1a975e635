"""What the kernels take for granted of sglang's own code, read in the source of every release on this machine.

In place: who calls a norm with a residual reads neither argument again, and does not stand in a branch of ROCm's alone,
so that what CUDA's in-place op may do to its callers' tensors, a kernel on ROCm may do as well.
Warm-up: every graph runner runs what it captures before, so that no kernel is first compiled inside a capture.
"""

from __future__ import annotations

import ast
import textwrap
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.unit.engine_support import RELEASES

_NORMS = ("norm", "layernorm", "norm_cls")
_ROCM = ("_is_hip", "_use_aiter", "is_hip", "_use_aiter_gfx95")

Function = ast.FunctionDef | ast.AsyncFunctionDef


def _functions(path: Path) -> Iterator[Function]:
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            yield node


def _callers(release: str) -> Iterator[Path]:
    """Modules that build a GemmaRMSNorm, and those that are handed one."""
    package = RELEASES[release] / "sglang/srt"
    yield from (path for path in sorted(package.glob("models/*.py")) if "GemmaRMSNorm" in path.read_text())
    yield from sorted(package.glob("layers/communicator*.py"))
    yield from sorted(package.glob("layers/layer_boundary/**/*.py"))


def _is_norm_of_a_sum(node: ast.AST) -> bool:
    """A call `NORM(x, residual, ...)` of a module: by its name, and by a second argument that is called a residual."""
    if not isinstance(node, ast.Call) or len(node.args) < 2:
        return False
    name = ast.unparse(node.func).rpartition(".")[2]
    return name.endswith(_NORMS) and "residual" in ast.unparse(node.args[1])


def _sites(function: Function) -> Iterator[tuple[ast.stmt, ast.Call, list[ast.If]]]:
    """Each such call with its statement and the `if`s whose body (not whose else) it is in."""

    def visit(body: list[ast.stmt], inside: list[ast.If]) -> Iterator[tuple[ast.stmt, ast.Call, list[ast.If]]]:
        for statement in body:
            for call in _own_calls(statement):
                yield statement, call, inside
            for field in ("body", "orelse", "finalbody"):
                nested = getattr(statement, field, [])
                if not isinstance(statement, ast.FunctionDef | ast.ClassDef):
                    entered = isinstance(statement, ast.If) and field == "body"
                    yield from visit(nested, [*inside, statement] if entered else inside)  # type: ignore[list-item]

    yield from visit(function.body, [])


def _own_calls(statement: ast.stmt) -> Iterator[ast.Call]:
    if isinstance(statement, ast.Assign | ast.Return | ast.Expr | ast.AnnAssign) and statement.value is not None:
        yield from (node for node in ast.walk(statement.value) if _is_norm_of_a_sum(node))  # type: ignore[misc]


def _objections(function: Function) -> Iterator[str]:
    for statement, call, inside in _sites(function):
        where = f"{function.name}:{statement.lineno} {ast.unparse(statement)}"
        for branch in inside:
            test = ast.unparse(branch.test)
            if any(name in test for name in _ROCM) and "not " not in test:
                yield f"only on ROCm: {where}"
        if isinstance(statement, ast.Return):
            continue
        targets = getattr(statement, "targets", [])
        rebound = {ast.unparse(one) for target in targets for one in getattr(target, "elts", [target])}
        for given in (ast.unparse(argument) for argument in call.args[:2]):
            if given not in rebound and _is_read_after(function, given, statement):
                yield f"{given} is read afterwards: {where}"


def _is_read_after(function: Function, name: str, statement: ast.stmt) -> bool:
    end = statement.end_lineno or statement.lineno
    return any(
        isinstance(node, ast.Name | ast.Attribute)
        and isinstance(node.ctx, ast.Load)
        and node.lineno > end
        and ast.unparse(node) == name
        for node in ast.walk(function)
    )


@pytest.mark.parametrize("release", RELEASES)
def test_no_caller_of_a_norm_reads_what_it_gave_away(release: str) -> None:
    functions = [function for path in _callers(release) for function in _functions(path)]
    assert sum(1 for function in functions for _ in _sites(function)) >= 8
    assert not [objection for function in functions for objection in _objections(function)]


def _runners(release: str) -> list[Path]:
    package = RELEASES[release] / "sglang/srt"
    found = [*package.glob("model_executor/**/*graph*.py"), *package.glob("speculative/*graph_runner.py")]
    return [path for path in found if "cpu" not in path.name]


def _calls(function: Function, names: set[str]) -> list[int]:
    """Lines at which the function calls one of these, as its own or as a method."""
    calls = (node for node in ast.walk(function) if isinstance(node, ast.Call))
    return [call.lineno for call in calls if ast.unparse(call.func).rpartition(".")[2] in names]


def _warm_ups(function: Function) -> list[int]:
    """Lines of a `for _ in range(N)`, N at least 2, that runs what is to be captured."""
    loops = (node for node in ast.walk(function) if isinstance(node, ast.For))
    repeated = [loop for loop in loops if ast.unparse(loop.iter) in ("range(2)", "range(3)")]
    forwards = ("run_once", "run_once_fn", "forward_fn", "forward")
    return [loop.lineno for loop in repeated if any(f"{name}(" in ast.unparse(loop) for name in forwards)]


def _unwarmed(path: Path) -> Iterator[tuple[str, bool]]:
    """Functions of a module that capture a graph, and whether one does so without having run its content."""
    functions = list(_functions(path))
    warming = {function.name for function in functions if _warm_ups(function)}
    for function in functions:
        captures = _calls(function, {"_capture_graph", "graph_ctx"})
        if function.name.startswith("capture_one") and captures:
            before = [*_warm_ups(function), *_calls(function, warming - {function.name})]
            yield f"{path.name}:{function.name}", not before or min(before) > min(captures)


@pytest.mark.parametrize("release", RELEASES)
def test_what_is_captured_has_run_before(release: str) -> None:
    captured = [found for path in _runners(release) for found in _unwarmed(path)]
    assert captured
    assert not [name for name, unwarmed in captured if unwarmed]


@pytest.mark.parametrize(
    ("body", "objection"),
    [
        ("x, residual = self.norm(x, residual)\nreturn x, residual", None),
        ("x, _ = self.norm(x, residual)\nreturn x", None),
        ("out, residual = self.norm(x, residual)\nreturn out, residual", None),
        ("return self.norm(x, residual)", None),
        ("x, _ = self.norm(x, residual)\nreturn x + residual", "residual is read"),
        ("out, residual = self.norm(x, residual)\nreturn out + x", "x is read"),
        ("if _use_aiter and fast:\n    x, residual = self.norm(x, residual)\nreturn x", "only on ROCm"),
        ("if _use_aiter:\n    pass\nelse:\n    x, residual = self.norm(x, residual)\nreturn x", None),
    ],
)
def test_what_a_caller_may_not_do(body: str, objection: str | None) -> None:
    function = ast.parse("def forward(self, x, residual):\n" + textwrap.indent(body, "    ")).body[0]
    assert isinstance(function, ast.FunctionDef) and list(_sites(function))
    found = list(_objections(function))
    assert bool(found) == (objection is not None)
    assert objection is None or objection in found[0]


@pytest.mark.parametrize(
    ("warm_up", "unwarmed"), [("for _ in range(2):\n    run_once()\n", False), ("for _ in range(2):\n    pass\n", True)]
)
def test_what_a_graph_runner_must_do(warm_up: str, unwarmed: bool, tmp_path: Path) -> None:
    body = f"{warm_up}self._capture_graph(run_once)"
    path = tmp_path / "runner.py"
    path.write_text("def capture_one_batch_size(self, run_once):\n" + textwrap.indent(body, "    "))
    assert list(_unwarmed(path)) == [("runner.py:capture_one_batch_size", unwarmed)]
