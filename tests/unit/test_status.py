"""Status files: private, whole or not there, and never mistaken for a process that is gone."""

from __future__ import annotations

import json
import os
import stat
import subprocess
import sys
from pathlib import Path

import pytest

from overlay import status
from overlay.errors import OverlayError

DOCUMENT: dict[str, object] = {
    "schema": 1,
    "pid": os.getpid(),
    "started": status.started(os.getpid()),
    "role": "scheduler",
    "ranks": {},
    "ready": True,
    "overlay": "0",
    "plan": "0",
    "sglang": {"version": "0.5.9"},
    "platform": {"kind": "rocm", "arch": "gfx942", "simulated": False},
    "patches": [],
}


def mode(path: Path) -> int:
    return stat.S_IMODE(path.lstat().st_mode)


@pytest.fixture(autouse=True)
def permissive() -> object:
    """A umask that would let everybody read: the modes must be asked for."""
    before = os.umask(0)
    yield
    os.umask(before)


def test_a_run_is_private(tmp_path: Path) -> None:
    run = status.make_run_dir(tmp_path / "root")
    status.write(run, "1.json", DOCUMENT)
    assert (mode(tmp_path / "root"), mode(run), mode(run / "1.json")) == (0o700, 0o700, 0o600)
    assert str(os.getpid()) in run.name


def test_a_run_root_given_relative_is_found_from_anywhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert status.make_run_dir(status.run_root({"AMD_SGLANG_RUN_DIR": "runs"})).is_absolute()


def test_two_runs_of_one_process_have_two_folders(tmp_path: Path) -> None:
    assert status.make_run_dir(tmp_path) != status.make_run_dir(tmp_path)


@pytest.mark.parametrize("kind", ["link", "file", "foreign", "no write"])
def test_a_root_that_cannot_be_trusted_is_refused(tmp_path: Path, kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    root = tmp_path / "root"
    if kind == "link":
        (tmp_path / "elsewhere").mkdir()
        root.symlink_to(tmp_path / "elsewhere")
    elif kind == "file":
        root.write_text("")
    elif kind == "foreign":
        root.mkdir()
        monkeypatch.setattr(os, "getuid", lambda: root.lstat().st_uid + 1)
    else:
        root = Path("/proc/amd-sglang")
    with pytest.raises(OverlayError, match=f"the run directory {root} .*Set AMD_SGLANG_RUN_DIR to a folder"):
        status.make_run_dir(root)
    assert not list(tmp_path.glob("elsewhere/*"))


@pytest.mark.parametrize(
    ("environ", "expected"),
    [
        ({"AMD_SGLANG_RUN_DIR": "/given", "XDG_RUNTIME_DIR": "/tmp"}, "/given"),
        ({"XDG_RUNTIME_DIR": "/given"}, "/tmp/amd-sglang-{uid}"),
        ({"TMPDIR": "/scratch"}, "/scratch/amd-sglang-{uid}"),
        ({"TMPDIR": ""}, "/tmp/amd-sglang-{uid}"),
    ],
)
def test_where_runs_are_kept(environ: dict[str, str], expected: str) -> None:
    assert str(status.run_root(environ)) == expected.format(uid=os.getuid())


def test_a_document_that_cannot_be_written_leaves_the_old_one_and_no_litter(tmp_path: Path) -> None:
    status.write(tmp_path, "1.json", {"n": 1})
    with pytest.raises(TypeError):
        status.write(tmp_path, "1.json", {"n": object()})
    assert json.loads((tmp_path / "1.json").read_text()) == {"n": 1}
    assert [path.name for path in tmp_path.iterdir()] == ["1.json"]


def test_a_reader_never_sees_half_a_document(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[list[str]] = []
    replace = os.replace

    def watched(source: str, target: str) -> None:
        seen.append(sorted(path.name for path in tmp_path.glob("*.json")))
        assert json.loads(Path(source).read_text()) == {"n": 2}
        replace(source, target)

    status.write(tmp_path, "1.json", {"n": 1})
    inode = (tmp_path / "1.json").stat().st_ino
    monkeypatch.setattr(os, "replace", watched)
    status.write(tmp_path, "1.json", {"n": 2})
    assert seen == [["1.json"]]
    assert (tmp_path / "1.json").stat().st_ino != inode


def test_started_names_one_life_of_a_pid() -> None:
    child = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
    try:
        first = status.started(child.pid)
        assert first is not None
        assert first >= (status.started(os.getpid()) or 0)
    finally:
        child.kill()
        os.waitid(os.P_PID, child.pid, os.WEXITED | os.WNOWAIT)
    assert status.started(child.pid) is None, "a zombie is no process"
    child.wait()
    child.stdin.close()  # type: ignore[union-attr]
    assert status.started(child.pid) is None


def rows(tmp_path: Path, *documents: object) -> list[dict[str, object]]:
    run = tmp_path / "run"
    run.mkdir()
    for number, document in enumerate(documents):
        text = document if isinstance(document, str) else json.dumps(document)
        (run / f"{number}.json").write_text(text)
    return status.read_runs(tmp_path)


def test_a_pid_that_was_reused_is_not_alive(tmp_path: Path) -> None:
    reused = {**DOCUMENT, "started": 1}
    gone = {**DOCUMENT, "pid": 2**22 + 1}
    never_known = {**gone, "started": None}
    silent = {key: value for key, value in gone.items() if key != "started"}
    assert [row["alive"] for row in rows(tmp_path, DOCUMENT, reused, gone, never_known, silent)] == [True] + [False] * 4


@pytest.mark.parametrize(
    "document",
    [
        "",
        "{",
        "[1]",
        "null",
        "\udcff",
        {"schema": 2, "pid": 1},
        {"schema": 1},
        {"schema": 1, "pid": "x"},
        "[" * 100_000,
    ],
)
def test_a_file_that_makes_no_sense_is_a_row_with_an_error(tmp_path: Path, document: object) -> None:
    (tmp_path / "run").mkdir()
    text = document if isinstance(document, str) else json.dumps(document)
    (tmp_path / "run" / "7.json").write_bytes(text.encode("utf-8", "surrogateescape"))
    (row,) = status.read_runs(tmp_path)
    assert str(row["error"]).startswith("unreadable status file: ")
    assert (row["run"], row["alive"], row["file"]) == ("run", False, str(tmp_path / "run" / "7.json"))


def test_every_run_under_a_root_and_the_run_itself_can_be_read(tmp_path: Path) -> None:
    for run in ("b", "a"):
        (tmp_path / run).mkdir()
        status.write(tmp_path / run, "1.json", DOCUMENT)
        status.write(tmp_path / run, f"{os.getpid()}.calls.json", {"calls": {"aiter.rms_norm": 3}})
    assert [row["run"] for row in status.read_runs(tmp_path)] == ["a", "b"]
    (row,) = status.read_runs(tmp_path / "a")
    assert (row["run"], row["calls"]) == ("a", {"aiter.rms_norm": 3})
    assert status.read_runs(tmp_path / "missing") == []
