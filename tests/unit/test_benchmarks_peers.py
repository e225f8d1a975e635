"""The peers of the benchmarks: what is unpacked of them, and what is said where one is missing."""

from __future__ import annotations

import hashlib
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from benchmarks.case import AbsentError
from benchmarks.peers import __main__ as command
from benchmarks.peers import load
from benchmarks.peers.fetch import FetchError, fetch
from benchmarks.peers.pins import PEERS, Commit, Peer, Wheel

FILES = {
    "source/pkg/__init__.py": "raise ImportError('all of it')",
    "source/pkg/ops/kernel.py": "ANSWER = 42",
    "source/pkg/ops/other.py": "",
    "source/pkg/configs/a.json": "{}",
    "elsewhere.py": "",
}
KEEP = ("source/pkg/ops/kernel.py", "source/pkg/configs/*.json")


@pytest.fixture
def repository(tmp_path: Path) -> tuple[Path, str]:
    """A git directory, and the commit in it."""
    tree = tmp_path / "tree"
    for path, text in FILES.items():
        (tree / path).parent.mkdir(parents=True, exist_ok=True)
        (tree / path).write_text(text)
    identity = ["-c", "user.name=a", "-c", "user.email=a@b"]
    for arguments in (["init", "-q"], ["add", "."], [*identity, "commit", "-qm", "one"]):
        subprocess.run(["git", *arguments], cwd=tree, check=True)
    done = subprocess.run(["git", "rev-parse", "HEAD"], cwd=tree, check=True, capture_output=True, text=True)
    return tree / ".git", done.stdout.strip()


@pytest.fixture
def wheel(tmp_path: Path) -> Path:
    path = tmp_path / "wheels" / "some_peer-1.0-py3-none-any.whl"
    path.parent.mkdir()
    with zipfile.ZipFile(path, "w") as archive:
        for name, text in FILES.items():
            archive.writestr(name.removeprefix("source/"), text)
    return path


def of_wheel(wheel: Path, digest: str) -> Peer:
    keep = ("pkg/ops/kernel.py", "pkg/configs/*.json")
    return Peer("some", "pkg", Wheel("some-peer==1.0", digest, keep), stubs={"pkg/srt/common.py": "STUB = True\n"})


def files_of(folder: Path) -> dict[str, str]:
    return {str(path.relative_to(folder)): path.read_text() for path in sorted(folder.rglob("*")) if path.is_file()}


def test_files_of_a_commit_come_below_empty_packages(repository: tuple[Path, str], tmp_path: Path) -> None:
    git_dir, revision = repository
    peer = Peer("some", "mine", Commit("a/b", revision, KEEP, strip="source/pkg/", prefix="mine/"))
    into = tmp_path / "peers"
    (into / "mine").mkdir(parents=True)
    (into / "mine" / "of_an_older_version.py").touch()
    assert fetch(peer, into, wheels=tmp_path, git_dirs={"a/b": git_dir}) == 2
    assert files_of(into) == {
        "mine/__init__.py": "",
        "mine/configs/a.json": "{}",
        "mine/ops/__init__.py": "",
        "mine/ops/kernel.py": "ANSWER = 42",
    }


def test_a_git_directory_without_the_commit_is_named(repository: tuple[Path, str], tmp_path: Path) -> None:
    peer = Peer("some", "mine", Commit("a/b", "0" * 40, KEEP, strip="source/"))
    with pytest.raises(FetchError, match=r"tree/\.git has no files of a/b at 0000000000"):
        fetch(peer, tmp_path / "peers", wheels=tmp_path, git_dirs={"a/b": repository[0]})


def test_files_of_a_wheel_come_with_what_stands_in_for_the_rest(wheel: Path, tmp_path: Path) -> None:
    digest = hashlib.sha256(wheel.read_bytes()).hexdigest()
    into = tmp_path / "peers"
    assert fetch(of_wheel(wheel, digest), into, wheels=wheel.parent, git_dirs={}) == 2
    assert files_of(into) == {
        "pkg/__init__.py": "",
        "pkg/configs/a.json": "{}",
        "pkg/ops/__init__.py": "",
        "pkg/ops/kernel.py": "ANSWER = 42",
        "pkg/srt/__init__.py": "",
        "pkg/srt/common.py": "STUB = True\n",
    }


def test_a_wheel_with_another_digest_is_refused(wheel: Path, tmp_path: Path) -> None:
    with pytest.raises(FetchError, match="has the digest abc"):
        fetch(of_wheel(wheel, "abc"), tmp_path / "peers", wheels=wheel.parent, git_dirs={})
    assert not (tmp_path / "peers").exists()


def test_a_version_that_has_lost_the_files_is_not_taken_for_the_peer(wheel: Path, tmp_path: Path) -> None:
    source = Wheel("some-peer==1.0", hashlib.sha256(wheel.read_bytes()).hexdigest(), ("pkg/gone.py",))
    with pytest.raises(FetchError, match=r"has none of pkg/gone\.py"):
        fetch(Peer("some", "pkg", source), tmp_path / "peers", wheels=wheel.parent, git_dirs={})


def test_a_peer_of_a_repository_is_left_out_with_a_word_unless_its_git_directory_is_named(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert command.main(["aiter", "--into", str(tmp_path)]) == 0
    assert capsys.readouterr().out == "aiter: left out, as it is in no wheel: name --git-dir ROCm/aiter=DIR\n"


@pytest.mark.parametrize(
    ("arguments", "said"),
    [(["nobody"], "no peer is called nobody"), (["--git-dir", "who/what=."], "give 1am9trash/sglang or ROCm/aiter")],
)
def test_wrong_arguments_are_named(arguments: list[str], said: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        command.main(arguments)
    assert said in capsys.readouterr().err


def test_a_missing_peer_says_how_it_is_fetched(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(load, "FOLDER", tmp_path)
    with pytest.raises(AbsentError) as caught:
        load.module("liger", "no_such_package.ops")
    said = "no_such_package.ops cannot be imported (ModuleNotFoundError: No module named 'no_such_package')"
    assert str(caught.value) == f"{said}; python -m benchmarks.peers liger fetches it"
    with pytest.raises(AbsentError) as caught:
        load.module("flashinfer", "no_such_package.ops")
    assert str(caught.value) == said


def test_a_peer_that_breaks_on_import_is_absent(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "peer_that_breaks.py").write_text("raise OSError('libcudart.so.12:\\n not found')\n")
    monkeypatch.setattr(sys, "path", list(sys.path))
    load.activate(tmp_path)
    with pytest.raises(AbsentError, match=r"\(OSError: libcudart\.so\.12: not found\)"):
        load.module("peer", "peer_that_breaks")


def test_every_peer_is_pinned_and_no_two_share_a_package() -> None:
    assert len({peer.package for peer in PEERS}) == len({peer.name for peer in PEERS}) == len(PEERS)
    for peer in PEERS:
        if isinstance(peer.source, Wheel):
            assert "==" in peer.source.requirement and len(peer.source.sha256) == 64
        else:
            assert len(peer.source.revision) == 40
