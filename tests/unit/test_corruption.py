"""Real releases, damaged: planning never fails, and never plans a patch for code that is not the code it knows."""

from __future__ import annotations

import ast
import io
import itertools
import keyword
import random
import tokenize
from collections.abc import Callable
from dataclasses import replace
from functools import cache

import pytest
from packaging.version import Version

from matrix.scenarios import SCENARIOS, Scenario
from overlay.model import Decision, Patch, Slot, State
from overlay.plan import make_plan
from overlay.records import dataclass
from overlay.registry import Registry, builtin
from overlay.source import DirectoryTree, SourceTree, UnreadableSourceError, module_file
from tests.unit.engine_support import RELEASES

pytestmark = pytest.mark.skipif(not RELEASES, reason="no real sglang release is here: run `make releases`")

#: The configuration in which most patches are planned.
BUSIEST = next(scenario for scenario in SCENARIOS if scenario.name == "gfx942-streams")


@dataclass(frozen=True)
class Damaged(DirectoryTree):
    """A release with one file changed; `content` is None where it is deleted, an error where it cannot be read."""

    file: str
    content: bytes | UnreadableSourceError | None

    def read(self, relative: str) -> bytes | None:
        if relative != self.file:
            return super().read(relative)
        if isinstance(self.content, UnreadableSourceError):
            raise self.content
        return self.content


def _images(patch: Patch) -> set[Slot]:
    return {image.slot for variant in patch.variants for image in variant.images}


@cache
def _reading(module: str) -> Registry:
    """The patches that look at a module, and those that they require."""
    wanted: set[str] = set()
    for patch in reversed(list(builtin())):
        if patch.id in wanted or any(slot.module == module for slot in _images(patch)):
            wanted |= {patch.id, *patch.requires}
    return Registry([_alone(patch, wanted) for patch in builtin() if patch.id in wanted])


def _alone(patch: Patch, wanted: set[str]) -> Patch:
    return replace(patch, conflicts=tuple(one for one in patch.conflicts if one in wanted))


def decisions(registry: Registry, tree: SourceTree, scenario: Scenario = BUSIEST) -> dict[str, Decision]:
    environ = {**scenario.environ, "AMD_SGLANG_ENABLE": ",".join(p.id for p in registry if not p.default_on)}
    return {d.patch.id: d for d in make_plan(registry, tree, scenario.platform, environ).decisions}


def _file(release: str, module: str) -> str | None:
    return next((name for name in module_file(module) if (RELEASES[release] / name).is_file()), None)


@cache
def _definitions(source: bytes, qualname: str) -> list[str] | None:
    """What binds a name, by `ast` alone: every definition without its docstring, every import. None: not Python."""
    try:
        spaces: list[ast.AST] = [ast.parse(source)]
    except (SyntaxError, ValueError):
        return None
    *owners, name = qualname.split(".")
    for owner in owners:
        spaces = [n for space in spaces for n in ast.walk(space) if isinstance(n, ast.ClassDef) and n.name == owner]
    found = []
    for node in (node for space in spaces for node in ast.walk(space)):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef) and node.name == name:
            if ast.get_docstring(node, clean=False) is not None:
                node.body = node.body[1:]
            found.append(ast.dump(node))
        elif isinstance(node, ast.ImportFrom) and name in {a.asname or a.name for a in node.names}:
            found.append(ast.dump(node))
    return found


def _flip(rng: random.Random, data: bytes) -> bytes:
    at = rng.randrange(len(data))
    return data[:at] + bytes([data[at] ^ rng.randrange(1, 256)]) + data[at + 1 :]


def _insert(rng: random.Random, data: bytes) -> bytes:
    at = rng.randrange(len(data))
    return data[:at] + rng.choice([b"\x00", b"\xff\xfe", b"(", b"\n", b"_", b"7", b"\r", b"\t"]) + data[at:]


def _drop_line(rng: random.Random, data: bytes) -> bytes:
    lines = data.splitlines(keepends=True)
    del lines[rng.randrange(len(lines))]
    return b"".join(lines)


def _swap_lines(rng: random.Random, data: bytes) -> bytes:
    lines = data.splitlines(keepends=True)
    at = rng.randrange(len(lines) - 1)
    lines[at], lines[at + 1] = lines[at + 1], lines[at]
    return b"".join(lines)


def _truncate(rng: random.Random, data: bytes) -> bytes:
    return data[: rng.randrange(len(data))]


def _twice(_rng: random.Random, data: bytes) -> bytes:
    return data + b"\n" + data


def _encode(rng: random.Random, data: bytes) -> bytes:
    return data.decode().encode(rng.choice(["utf-16", "utf-32", "utf-7", "utf-8-sig"]))


def _declare(rng: random.Random, data: bytes) -> bytes:
    return rng.choice([b"# coding: cp037\n", b"# coding: no-such\n", b"# -*- coding: ascii -*-\n"]) + data


Corruption = Callable[[random.Random, bytes], bytes]
CORRUPTIONS: tuple[Corruption, ...] = (
    _flip, _insert, _drop_line, _swap_lines, _truncate, _twice, _encode, _declare,
)  # fmt: skip


def _near_slots(rng: random.Random, data: bytes, corrupt: Corruption, slots: list[Slot]) -> bytes:
    """The corruption, restricted to the lines of one of the definitions that a patch looks at, half of the time."""
    spans = [
        (node.lineno - 1, node.end_lineno or node.lineno)
        for node in ast.walk(ast.parse(data))
        if isinstance(node, ast.FunctionDef) and node.name in {slot.qualname.rpartition(".")[2] for slot in slots}
    ]
    if not spans or corrupt in (_twice, _encode, _declare) or rng.random() < 0.5:
        return corrupt(rng, data)
    first, last = rng.choice(spans)
    lines = data.splitlines(keepends=True)
    return b"".join([*lines[:first], corrupt(rng, b"".join(lines[first:last])), *lines[last:]])


MODULES = sorted({slot.module for patch in builtin() for slot in _images(patch) if slot.module.startswith("sglang.")})


@pytest.mark.parametrize("batch", range(10))
def test_no_corruption_breaks_the_plan_or_passes_for_known_code(batch: int) -> None:
    """200 in all. What still is planned has exactly the definitions that it had, by another reading than ours."""
    refused = kept = 0
    for seed in range(20 * batch, 20 * batch + 20):
        rng = random.Random(seed)
        release = rng.choice(sorted(RELEASES))
        module = rng.choice([module for module in MODULES if _file(release, module)])
        file = _file(release, module)
        assert file is not None
        original = (RELEASES[release] / file).read_bytes()
        registry = _reading(module)
        slots = [slot for patch in registry for slot in _images(patch) if slot.module == module]
        content: bytes | UnreadableSourceError | None
        if seed % 20 == 0:
            content = rng.choice([None, b"", UnreadableSourceError("Input/output error")])
        else:
            content = _near_slots(rng, original, rng.choice(CORRUPTIONS), slots)
        before = decisions(registry, DirectoryTree(RELEASES[release]))
        after = decisions(registry, Damaged(RELEASES[release], file, content))
        for patch_id, decision in after.items():
            if decision.state is State.PLANNED:
                assert decision.variant is not None
                for image in decision.variant.images:
                    if image.slot.module == module:
                        text = content if isinstance(content, bytes) else b""
                        now, then = (_definitions(each, image.slot.qualname) for each in (text, original))
                        assert now == then, f"seed {seed}: {patch_id} is planned on changed {image.slot} of {release}"
                        kept += 1
            elif before[patch_id].state is State.PLANNED:
                refused += 1
    assert refused, "nothing in this batch touched what a patch looks at"
    assert kept, "nothing in this batch left a patch planned"


def _planned(registry: Registry) -> dict[str, tuple[Scenario, Decision]]:
    """The oldest and the newest release here on which the only patch of a registry is planned, and where it is."""
    found = {}
    for order in (sorted(RELEASES, key=Version), sorted(RELEASES, key=Version, reverse=True)):
        for release, scenario in itertools.product(order, SCENARIOS):
            (decision,) = decisions(registry, DirectoryTree(RELEASES[release]), scenario).values()
            if decision.state is State.PLANNED:
                found[release] = (scenario, decision)
                break
    return found


def _one_token_changed(source: str, slot: Slot, rng: random.Random) -> str | None:
    """The module with one identifier inside one definition renamed; None where the slot is no function."""
    *owners, name = slot.qualname.split(".")
    spaces: list[ast.AST] = [ast.parse(source)]
    for owner in owners:
        spaces = [n for space in spaces for n in ast.walk(space) if isinstance(n, ast.ClassDef) and n.name == owner]
    nodes = [n for s in spaces for n in ast.walk(s) if isinstance(n, ast.FunctionDef) and n.name == name]
    if len(nodes) != 1:
        return None
    first, last = nodes[0].body[0].lineno, nodes[0].end_lineno or 0
    names = [
        token
        for token in tokenize.generate_tokens(io.StringIO(source).readline)
        if token.type == tokenize.NAME and first <= token.start[0] <= last and not keyword.iskeyword(token.string)
    ]
    token = rng.choice(names)
    lines = source.splitlines(keepends=True)
    row, column = token.end[0] - 1, token.end[1]
    lines[row] = f"{lines[row][:column]}_{lines[row][column:]}"
    return "".join(lines)


@pytest.mark.parametrize("patch_id", builtin().ids)
def test_one_identifier_changed_in_any_slot_is_a_mismatch(patch_id: str) -> None:
    registry = Registry([replace(builtin().get(patch_id, "here"), requires=(), conflicts=())])
    planned = _planned(registry)
    if not planned:
        pytest.skip(f"{patch_id} is planned on no release that is here")
    for release, (scenario, decision) in planned.items():
        changed = 0
        for report in decision.slots:
            file = _file(release, report.slot.module)
            if file is None:
                continue
            text = _one_token_changed((RELEASES[release] / file).read_text(), report.slot, random.Random(patch_id))
            if text is not None:
                mutated = decisions(registry, Damaged(RELEASES[release], file, text.encode()), scenario)[patch_id]
                assert mutated.state is State.SOURCE_MISMATCH, f"{release}, {report.slot}: {mutated.reason}"
                assert f"{report.slot} is unknown code" in mutated.reason
                changed += 1
        assert changed
