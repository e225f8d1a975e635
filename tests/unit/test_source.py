"""Where an sglang lies, and the difference between "not there" and "cannot be read"."""

from __future__ import annotations

import importlib
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from overlay.errors import SglangNotFoundError
from overlay.named_tree import open_tree
from overlay.source import (
    DirectoryTree,
    UnreadableSourceError,
    installed_tree,
    launch_search_path,
    read_module,
)
from tests.unit.engine_support import synthetic, write_tree

FILES = {
    "sglang/__init__.py": "",
    "sglang/srt/__init__.py": "",
    "sglang/srt/a.py": "a = 1\n",
    "sglang-0.5.9.dist-info/METADATA": "Name: sglang\nVersion: 0.5.9\n",
}


@pytest.fixture
def wheel(tmp_path: Path) -> Path:
    path = tmp_path / "sglang-0.5.9-py3-none-any.whl"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, text in FILES.items():
            archive.writestr(name, text * 200 if name.endswith("a.py") else text)
    return path


@pytest.mark.parametrize("below", ["", "sglang"])
def test_a_folder_that_holds_the_package_and_the_package_itself(tmp_path: Path, below: str) -> None:
    tree = open_tree(str(write_tree(tmp_path, FILES) / below))
    assert tree.path == str(tmp_path / "sglang")
    assert read_module(tree, "sglang.srt.a") == b"a = 1\n"
    assert read_module(tree, "sglang.srt") == b""
    assert read_module(tree, "sglang.srt.missing") is None
    assert b"0.5.9" in (tree.metadata() or b"")


@pytest.mark.parametrize("name", ["checkout", "sglang"])
def test_a_checkout(tmp_path: Path, name: str) -> None:
    write_tree(tmp_path / name / "python", FILES)
    assert open_tree(str(tmp_path / name)).path == str(tmp_path / name / "python" / "sglang")


def test_a_relative_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_tree(tmp_path, FILES)
    monkeypatch.chdir(tmp_path / "sglang")
    assert open_tree("..").read("sglang/srt/a.py") is not None
    assert open_tree(".").path == str(tmp_path / "sglang")


def test_a_wheel(wheel: Path) -> None:
    tree = open_tree(str(wheel))
    assert tree.path == str(wheel)
    assert str(read_module(tree, "sglang.srt.a")).count("a = 1") == 200
    assert read_module(tree, "sglang.srt.missing") is None
    assert b"0.5.9" in (tree.metadata() or b"")


def test_a_wheel_that_is_no_archive(wheel: Path) -> None:
    wheel.write_bytes(wheel.read_bytes()[:100])
    with pytest.raises(SglangNotFoundError, match="not a zip archive"):
        open_tree(str(wheel))


def test_a_wheel_of_something_else(tmp_path: Path) -> None:
    path = tmp_path / "other.whl"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("other/__init__.py", "")
    with pytest.raises(SglangNotFoundError, match="does not contain the package sglang"):
        open_tree(str(path))


def _damage(wheel: Path, offset: int) -> None:
    """Overwrite a few bytes of the compressed module."""
    with zipfile.ZipFile(wheel) as archive:
        start = archive.getinfo("sglang/srt/a.py").header_offset + 30 + len("sglang/srt/a.py")
    data = bytearray(wheel.read_bytes())
    data[start + offset : start + offset + 3] = b"\xff\xff\xff"
    wheel.write_bytes(bytes(data))


@pytest.mark.parametrize("offset", [0, 4, 8])
def test_a_wheel_with_a_damaged_member_is_unreadable_not_missing(wheel: Path, offset: int) -> None:
    tree = open_tree(str(wheel))
    _damage(wheel, offset)
    with pytest.raises(UnreadableSourceError, match=r"sglang/srt/a\.py"):
        tree.read("sglang/srt/a.py")


def test_a_wheel_that_vanishes_is_unreadable_in_every_part(wheel: Path) -> None:
    tree = open_tree(str(wheel))
    wheel.unlink()
    with pytest.raises(UnreadableSourceError):
        tree.read("sglang/srt/a.py")
    with pytest.raises(UnreadableSourceError):
        tree.metadata()


def test_a_file_that_cannot_be_read_is_not_missing(tmp_path: Path) -> None:
    (tmp_path / "sglang" / "a.py").mkdir(parents=True)
    with pytest.raises(UnreadableSourceError, match=r"sglang/a\.py: Is a directory"):
        DirectoryTree(tmp_path).read("sglang/a.py")
    assert DirectoryTree(tmp_path).read("sglang/a.py/b.py") is None
    assert DirectoryTree(tmp_path).metadata() is None


@pytest.mark.parametrize("path", ["missing", "missing.whl", "."])
def test_no_package_there_says_what_may_be_given(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, path: str) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SglangNotFoundError, match=rf"--sglang {path}: no package sglang there\. Give the folder"):
        open_tree(path)


def test_the_installed_package_is_found_without_importing_it(tmp_path: Path) -> None:
    tree = installed_tree([str(synthetic(tmp_path))])
    assert tree.path == str(tmp_path / "sglang")


def test_a_companion_lies_where_import_finds_it(tmp_path: Path) -> None:
    """Beside sglang or not: the first on the path, even where sglang's own folder holds another."""
    name = "companion_of_sglang"
    site = write_tree(synthetic(tmp_path / "site"), {f"{name}/__init__.py": "", f"{name}/ops.py": "stale = 1\n"})
    checkout = write_tree(tmp_path / "src", {f"{name}/__init__.py": "", f"{name}/ops.py": "live = 1\n"})
    assert read_module(installed_tree([str(site), str(checkout)]), f"{name}.ops") == b"stale = 1\n"
    tree = installed_tree([str(checkout), str(site)])
    assert read_module(tree, f"{name}.ops") == b"live = 1\n"
    assert read_module(tree, name) == b""
    assert read_module(tree, f"{name}.missing") is None
    assert read_module(tree, "sglang.srt.alpha") == (site / "sglang/srt/alpha.py").read_bytes()
    assert name not in sys.modules


def test_a_companion_that_is_not_there(tmp_path: Path) -> None:
    path = synthetic(tmp_path)
    write_tree(path, {"companion_of_sglang.py": ""})
    tree = installed_tree([str(path)])
    assert read_module(tree, "no_such_companion.ops") is None
    assert read_module(tree, "companion_of_sglang.ops") is None


def test_a_companion_that_is_imported_already(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    live = write_tree(tmp_path / "live", {"companion_of_sglang/__init__.py": "", "companion_of_sglang/ops.py": "1\n"})
    monkeypatch.syspath_prepend(str(live))
    importlib.import_module("companion_of_sglang")
    try:
        assert read_module(installed_tree([str(synthetic(tmp_path / "site"))]), "companion_of_sglang.ops") == b"1\n"
    finally:
        del sys.modules["companion_of_sglang"]


def test_a_tree_that_is_only_looked_at_has_what_lies_in_it(tmp_path: Path, wheel: Path) -> None:
    tree = open_tree(str(write_tree(tmp_path / "site", {**FILES, "aiter/__init__.py": "", "aiter/ops.py": "1\n"})))
    assert read_module(tree, "aiter.ops") == b"1\n"
    assert read_module(tree, "packaging") is None
    assert read_module(open_tree(str(wheel)), "packaging") is None


@pytest.mark.parametrize(
    ("files", "message"),
    [
        ({}, "sglang is not installed for .*Install it into this environment"),
        ({"sglang.py": ""}, r"finds a single file at .*sglang\.py, not the package\. Rename it"),
        ({"sglang/README": ""}, r"finds a folder without __init__\.py at .*sglang, not the package"),
        ({"sglang/__init__.py": ""}, "which has no `srt` inside: it hides the real package"),
    ],
    ids=["nothing", "single file", "namespace", "shadow"],
)
def test_what_is_not_the_package_is_named(tmp_path: Path, files: dict[str, str], message: str) -> None:
    write_tree(tmp_path, files)
    with pytest.raises(SglangNotFoundError, match=message):
        installed_tree([str(tmp_path)])


@pytest.mark.parametrize(
    ("arguments", "first"),
    [(["-m", "sglang.launch_server"], [""]), (["/where/a/script.py", "-m"], ["/where/a"]), (["script.py"], ["{cwd}"])],
)
def test_a_launch_looks_where_the_program_will(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, arguments: list[str], first: list[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("sys.path", ["/where/amd-sglang/lies", "/lib"])
    assert launch_search_path(arguments) == [*(entry.format(cwd=tmp_path) for entry in first), "/lib"]


def test_a_safe_path_has_no_working_directory() -> None:
    code = "import sys; from overlay.source import launch_search_path as f; print(f(['-m']) == sys.path)"
    done = subprocess.run([sys.executable, "-I", "-c", code], capture_output=True, text=True)
    assert done.stdout == "True\n", done.stderr
