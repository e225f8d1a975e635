"""What a patch changes, shown without running any of it: both sides are the texts that would be in force."""

from __future__ import annotations

import ast
import json
import textwrap
from dataclasses import replace
from pathlib import Path

import pytest
from click.testing import CliRunner

from overlay import commands, excerpt, fingerprint, render
from overlay.diff import SlotDiff, diff_patch
from overlay.model import ABSENT, Method, Patch, Slot, Target
from overlay.registry import builtin
from overlay.source import DirectoryTree
from tests.unit import makes
from tests.unit.engine_support import (
    ABSENT_IMAGE,
    ALPHA,
    ALPHA_IMAGE,
    ALPHA_TEXT,
    BETA_IMAGE,
    PATCH,
    RELEASES,
    digest_of,
    synthetic,
    variant,
    write_tree,
)

EDITED = ALPHA_TEXT.replace('"upstream"', '"edited"')


def patch_with(*targets: Target, images: tuple[object, ...] = (ALPHA_IMAGE, ABSENT_IMAGE)) -> Patch:
    return replace(PATCH, variants=(variant(*images, targets=targets),))  # type: ignore[arg-type]


def only(root: Path, method: Method, slot: Slot = ALPHA, make: makes.Make = makes.inner) -> SlotDiff:
    (one,) = diff_patch(patch_with(Target(slot, method, make)), DirectoryTree(root)).slots
    return one


def test_a_replacement_is_the_whole_of_both(tmp_path: Path) -> None:
    one = only(synthetic(tmp_path), Method.REPLACE)
    line = makes.inner.__code__.co_firstlineno + 1
    assert one.how == "replaces it"
    assert one.unified == (
        f"--- sglang/srt/alpha.py:2\n+++ tests/unit/makes.py:{line}\n@@ -1,2 +1,2 @@\n"
        '-def forward(self):\n-    return "upstream"\n+def replacement(self: object) -> str:\n+    return "inner"\n'
    )


def test_a_wrapper_takes_nothing_away(tmp_path: Path) -> None:
    one = only(synthetic(tmp_path), Method.WRAP)
    assert one.how == "wraps it: the original runs inside"
    assert [part.text for part in one.original] == ['def forward(self):\n    return "upstream"']
    assert not [line for line in one.unified.splitlines()[2:] if line.startswith("-")]


def test_what_is_absent_is_added(tmp_path: Path) -> None:
    one = only(synthetic(tmp_path), Method.REPLACE, ABSENT_IMAGE.slot)
    assert (one.how, one.observed, one.original) == ("adds it", ABSENT, ())
    assert one.unified.startswith("--- /dev/null\n+++ tests/unit/makes.py:")


@pytest.mark.parametrize(
    ("make", "shown"),
    [
        (makes.inner, ['return "inner"']),
        (makes.either, ['return "absent"', 'return "present"']),
        (makes.through_helper, ["return word"]),
        (makes.decorated, ['return "decorated"']),
        (makes.static, ['return "static"']),
        (makes.of_module, ['return "module level"']),
        (makes.short, ['return "module level"']),
        (makes.configured("x"), ["return word"]),
        (makes.partial, ["return word"]),
        (makes.instance, ['return "callable"']),
        (makes.opaque, ['return type(original)("opaque")']),
        (makes.recursive, ["return recursive(original)"]),
    ],
)
def test_however_a_make_is_written_what_it_returns_is_shown(make: makes.Make, shown: list[str]) -> None:
    found = excerpt.replacement(make)
    assert [one.text.splitlines()[-1].strip() for one in found] == shown
    assert {one.file for one in found} == {"tests/unit/makes.py"}
    lines = Path(makes.__file__).read_text().splitlines()
    for one in found:
        assert lines[one.line - 1].strip() == one.text.splitlines()[0]
        ast.parse(one.text)


def test_a_decorator_belongs_to_its_function() -> None:
    assert excerpt.replacement(makes.decorated)[0].text.startswith("@functools.wraps(original)\ndef replacement")


@pytest.mark.parametrize(
    ("files", "qualname", "texts"),
    [
        ({"m.py": "if x:\n  def f(): 1\nelse:\n  def f(): 2\n"}, "f", ["def f(): 1", "def f(): 2"]),
        ({"m.py": "from aiter import g as f\n"}, "f", ["from aiter import g as f"]),
        ({"m.py": "class A:\n  class B:\n    @p\n    def f(self):\n      1\n"}, "A.B.f", ["@p\ndef f(self):\n  1"]),
        ({"m/__init__.py": "def f(): 1\n"}, "f", ["def f(): 1"]),
        ({"m.py": "# coding: latin-1\ndef f(): return 'é'\n".encode("latin-1")}, "f", ["def f(): return 'é'"]),
        ({"m.py": "def g():\n  def f(): 1\n"}, "f", []),
        ({"m.py": "def f(:\n"}, "f", []),
        ({"m.py/x": ""}, "f", []),
        ({}, "f", []),
    ],
)
def test_the_text_of_a_slot(tmp_path: Path, files: dict[str, str | bytes], qualname: str, texts: list[str]) -> None:
    write_tree(tmp_path, {f"sglang/{name}": text for name, text in files.items()})
    found = excerpt.upstream(DirectoryTree(tmp_path), Slot("sglang.m", qualname))
    assert [one.text for one in found] == texts
    assert {one.file for one in found} <= {"sglang/m.py", "sglang/m/__init__.py"}


def test_a_source_that_is_known_is_named(tmp_path: Path) -> None:
    shown = diff_patch(patch_with(Target(ALPHA, Method.REPLACE, makes.inner)), DirectoryTree(synthetic(tmp_path)))
    assert (shown.variant, shown.strange) == ("only", None)
    text = render.patch_diff(shown)
    assert "This source is known as 'only'.\n" in text
    assert f"{ALPHA} [{min(ALPHA_IMAGE.digests)}]: the patch replaces it.\n--- sglang/srt/alpha.py:2" in text


def test_a_source_that_needs_nothing_says_so(tmp_path: Path) -> None:
    shown = diff_patch(patch_with(), DirectoryTree(synthetic(tmp_path)))
    assert render.patch_diff(shown).endswith("This source is known as 'only'. It needs no patch.")


def test_a_source_that_is_unknown_is_shown_for_the_nearest_known_one(tmp_path: Path) -> None:
    root = synthetic(tmp_path, alpha=EDITED)
    shown = diff_patch(patch_with(Target(ALPHA, Method.REPLACE, makes.inner)), DirectoryTree(root))
    assert (shown.variant, shown.strange) == (
        "only",
        f"{ALPHA} is unknown code {digest_of(EDITED, 'Alpha.forward')}",
    )
    text = render.patch_diff(shown)
    assert "This source is none that is known, shown for the nearest known one, 'only': " in text
    assert '-    return "edited"\n+def replacement' in text


def test_where_no_variant_fits_there_is_nothing_to_show(tmp_path: Path) -> None:
    root = synthetic(tmp_path, alpha="class Alpha: pass\n")
    shown = diff_patch(patch_with(Target(ALPHA, Method.REPLACE, makes.inner)), DirectoryTree(root))
    assert (shown.variant, shown.slots) == (None, ())
    assert "there is nothing to show: " in render.patch_diff(shown)
    assert "Alpha.forward is absent, which no variant can be put on" in render.patch_diff(shown)


def test_the_json_form(tmp_path: Path) -> None:
    root = synthetic(tmp_path)
    shown = diff_patch(patch_with(Target(ALPHA, Method.REPLACE, makes.of_module)), DirectoryTree(root))
    (slot,) = shown.slots
    assert json.loads(json.dumps(shown.to_json())) == {
        "schema": 1,
        "id": "alpha",
        "sglang": {"version": "0.5.9", "kind": "release", "path": str(root / "sglang")},
        "variant": "only",
        "unknown": None,
        "targets": [
            {
                "slot": str(ALPHA),
                "observed": min(ALPHA_IMAGE.digests),
                "method": "replace",
                "original": [
                    {"file": "sglang/srt/alpha.py", "line": 2, "text": 'def forward(self):\n    return "upstream"'}
                ],
                "patched": [
                    {
                        "file": "tests/unit/makes.py",
                        "line": slot.patched[0].line,
                        "text": 'def at_module_level(self: object) -> str:\n    return "module level"',
                    }
                ],
                "diff": slot.unified,
            }
        ],
    }


@pytest.mark.skipif(not RELEASES, reason="no real sglang release is here: run `make releases`")
@pytest.mark.parametrize("release", list(RELEASES)[:: max(1, len(RELEASES) // 4)])
def test_both_sides_of_every_patch_on_real_releases_are_code(release: str) -> None:
    sides = 0
    tree_of_release = DirectoryTree(RELEASES[release])
    for shown in (diff_patch(patch, tree_of_release) for patch in builtin()):
        for slot in shown.slots:
            name = slot.slot.qualname.rpartition(".")[2]
            for part in slot.original:
                tree = fingerprint.parse(textwrap.dedent(part.text).encode())
                assert tree is not None
                assert fingerprint.observe(tree, name) in (slot.observed, ABSENT) or len(slot.original) > 1
            assert bool(slot.original) is (slot.observed != ABSENT), f"{shown.patch.id}: {slot.slot}"
            assert slot.patched
            for part in slot.patched:
                ast.parse(part.text)
                assert part.file.startswith("patches/")
            sides += 1
    assert sides


@pytest.mark.skipif(not RELEASES, reason="no real sglang release is here: run `make releases`")
def test_the_command_prints_one_and_json_the_same() -> None:
    arguments = ["patches", "diff", "gemma-rmsnorm", "--sglang", str(next(iter(RELEASES.values())))]
    text, document = (CliRunner().invoke(commands.main, [*arguments, *more]) for more in ([], ["--json"]))
    assert (text.exit_code, document.exit_code) == (0, 0), text.output + document.output
    for target in json.loads(document.output)["targets"]:
        assert target["diff"].rstrip() in text.output


def test_a_file_of_somebody_elses_is_named_by_its_whole_path(tmp_path: Path) -> None:
    (tmp_path / "pack.py").write_text("def make(original):\n    def f(self):\n        return 1\n    return f\n")
    namespace: dict[str, makes.Make] = {}
    exec(compile((tmp_path / "pack.py").read_text(), str(tmp_path / "pack.py"), "exec"), namespace)
    (found,) = excerpt.replacement(namespace["make"])
    assert (found.file, found.line, found.text) == (
        str(tmp_path / "pack.py"),
        2,
        "def f(self):\n    return 1",
    )


def test_slots_of_other_patches_are_not_shown(tmp_path: Path) -> None:
    patch = patch_with(Target(ALPHA, Method.REPLACE, makes.inner), images=(ALPHA_IMAGE, BETA_IMAGE))
    assert [one.slot for one in diff_patch(patch, DirectoryTree(synthetic(tmp_path))).slots] == [ALPHA]
