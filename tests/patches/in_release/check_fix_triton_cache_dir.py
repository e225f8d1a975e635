"""What `fix-triton-cache-dir` does to the real decode entry point of 0.5.13, and what the release does without it.

Not collected by name: `test_deepseek_v4_fixes.py` runs this file under the overlay, in the simulated gfx950. Whoever
runs the tests may be root, whom no permission stops: the refusal of a read-only file system is made at `os.mkdir`.
"""

from __future__ import annotations

import errno
import importlib.util
import os
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from overlay import runtime
from overlay.install import MARK
from overlay.model import State
from patches import fix_triton_cache_dir

ID = "fix-triton-cache-dir"
KERNELS = "sglang.srt.layers.attention.nsa.triton_decode"


@pytest.fixture
def folder(monkeypatch: pytest.MonkeyPatch) -> str:
    """Where the kernels want their cache; they have not been imported and nobody has chosen another place."""
    spec = importlib.util.find_spec(KERNELS)
    assert spec is not None and spec.origin is not None
    for name in [name for name in sys.modules if name.startswith(KERNELS)]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setenv("SGLANG_HACK_FLASHMLA_BACKEND", "triton")
    monkeypatch.setenv("TRITON_CACHE_DIR", "taken back after the test")
    monkeypatch.delenv("TRITON_CACHE_DIR")
    return str(Path(spec.origin).parent / ".triton_cache")


@pytest.fixture
def read_only(folder: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The package is on a file system that refuses to be written, and came without the folder."""
    mkdir, isdir = os.mkdir, os.path.isdir

    def refuse(path: Any, mode: int = 0o777, **options: Any) -> None:
        if os.fspath(path) == folder:
            raise OSError(errno.EROFS, os.strerror(errno.EROFS), folder)
        mkdir(path, mode, **options)

    monkeypatch.setattr(os, "mkdir", refuse)
    monkeypatch.setattr(os.path, "isdir", lambda path: os.fspath(path) != folder and isdir(path))


@pytest.fixture
def not_writable(folder: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The folder came with the image, and belongs to somebody else."""
    access = os.access
    monkeypatch.setattr(os, "mkdir", lambda *_, **__: (_ for _ in ()).throw(FileExistsError(folder)))
    monkeypatch.setattr(os.path, "isdir", lambda path: True)
    monkeypatch.setattr(os, "access", lambda path, mode: os.fspath(path) != folder and access(path, mode))


def decode(entry: Any) -> None:
    """A decode whose heads have a width that the Triton kernels refuse, which proves that they were reached."""
    q = torch.zeros(1, 1, 1, 64)
    with pytest.raises(ValueError, match="Unsupported d_qk: 64"):
        entry(backend="kernel", q=q, k_cache=q, head_dim_v=512, softmax_scale=1.0, indices=None)


def entrypoint() -> Any:
    from sglang.srt.layers.attention import hip_flash_mla

    return hip_flash_mla.flash_mla_with_kvcache_entrypoint


def test_it_is_imported_from_a_read_only_install(read_only: None, capfd: pytest.CaptureFixture[str]) -> None:
    entry = entrypoint()
    overlay = runtime.current()
    assert overlay is not None
    assert overlay.state(ID)[0] is State.APPLIED, overlay.state(ID)
    assert getattr(entry, MARK) == ID
    makedirs = os.makedirs
    decode(entry)
    assert "TRITON_CACHE_DIR" not in os.environ, "Triton keeps its own"
    assert os.makedirs is makedirs
    said = capfd.readouterr().err
    assert ".triton_cache cannot be written" in said
    decode(entry)
    assert capfd.readouterr().err == ""


def test_without_the_patch_that_import_fails(read_only: None) -> None:
    overlay = runtime.current()
    assert overlay is not None
    overlay.uninstall(ID)
    with pytest.raises(OSError, match="Read-only file system"):
        decode(entrypoint())


@pytest.fixture
def entry() -> Any:
    """The patched entry point of a process that has not decoded yet."""
    return fix_triton_cache_dir.make_entrypoint(entrypoint())


def test_a_folder_that_came_with_the_image_is_not_taken_for_the_cache(
    not_writable: None, entry: Any, folder: str
) -> None:
    decode(entry)
    assert "TRITON_CACHE_DIR" not in os.environ


def test_without_the_patch_it_is(not_writable: None, folder: str) -> None:
    decode(entrypoint())
    assert os.environ["TRITON_CACHE_DIR"] == folder


def test_the_users_cache_is_kept(
    read_only: None, entry: Any, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("TRITON_CACHE_DIR", "/somewhere")
    decode(entry)
    assert os.environ["TRITON_CACHE_DIR"] == "/somewhere"
    assert "cannot be written" not in capfd.readouterr().err


def test_nothing_changes_where_the_package_can_be_written(
    entry: Any, folder: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """The install is spared: the folder is made elsewhere."""
    made: list[str] = []
    makedirs = os.makedirs

    def elsewhere(name: Any, mode: int = 0o777, exist_ok: bool = False) -> None:
        made.append(os.fspath(name))
        makedirs(tmp_path / "cache" if os.fspath(name) == folder else name, mode, exist_ok)

    monkeypatch.setattr(os, "makedirs", elsewhere)
    monkeypatch.setattr(os, "access", lambda path, mode: True)
    decode(entry)
    assert made.count(folder) == 2, "asked whether it can be made, and made by the import"
    assert os.environ["TRITON_CACHE_DIR"] == folder


def test_other_backends_import_nothing(read_only: None, entry: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SGLANG_HACK_FLASHMLA_BACKEND", "unheard-of")
    with pytest.raises(NotImplementedError, match="unheard-of"):
        entry(backend="kernel")
    assert KERNELS not in sys.modules


def test_meanwhile_other_folders_can_be_made(tmp_path: Path) -> None:
    passed_over, other = tmp_path / "passed over", tmp_path / "a" / "b"
    with fix_triton_cache_dir._makedirs_passes_over(str(passed_over)):
        os.makedirs(passed_over)
        os.makedirs(other)
        with pytest.raises(FileExistsError):
            os.makedirs(other)
        os.makedirs(other, exist_ok=True)
    assert other.is_dir()
    assert not passed_over.exists()
