"""A run directory that cannot be written, or has no room, while a server runs: it serves on, says so once, and no file
claims what is past."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from overlay import counters, status
from overlay.model import State
from overlay.plan import make_plan
from overlay.report import ProcessReport
from overlay.source import DirectoryTree
from tests.unit.engine_support import PATCH, ROCM, registry, synthetic

PAGE = 4096


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Path]:
    """A real file system of 64 kB."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=64k,mode=0700", "amd-sglang-test", str(folder)]
    done = subprocess.run(mount, capture_output=True, text=True)
    if done.returncode:
        pytest.skip(f"no file system can be mounted here: {done.stderr.strip()}")
    yield folder
    subprocess.run(["umount", str(folder)], check=True)


def fill(disk: Path, leave: int = 0) -> Path:
    """Fill a file system but for so many pages."""
    junk = disk / "junk"
    free = shutil.disk_usage(disk).free - leave * PAGE
    junk.write_bytes(b"x" * free)
    assert shutil.disk_usage(disk).free == leave * PAGE
    return junk


def process(tmp_path: Path, run_dir: Path) -> ProcessReport:
    plan = make_plan(registry(PATCH), DirectoryTree(synthetic(tmp_path / "sglang")), ROCM, {})
    return ProcessReport(plan, run_dir, strict=False)


def told(run_dir: Path) -> list[tuple[str, str]]:
    """The role and the state that the files claim."""
    return [(str(row["role"]), row["patches"][0]["state"]) for row in status.read_run(run_dir)]  # type: ignore[index]


def test_on_a_full_disk_the_old_status_gives_its_room_to_the_new_one(disk: Path) -> None:
    status.write(disk, "1.json", {"n": 1})
    fill(disk)
    status.write(disk, "1.json", {"n": 2})
    assert json.loads((disk / "1.json").read_text()) == {"n": 2}
    assert sorted(path.name for path in disk.iterdir()) == ["1.json", "junk"]


def test_without_any_room_no_file_claims_what_is_past(disk: Path) -> None:
    status.write(disk, "1.json", {"n": 1})
    fill(disk)
    with pytest.raises(OSError, match="No space left"):
        status.write(disk, "1.json", {"n": "x" * 2 * PAGE})
    assert [path.name for path in disk.iterdir()] == ["junk"]


def test_a_process_says_once_that_the_disk_is_full_and_reports_when_it_is_not(
    disk: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    own = process(tmp_path, disk)
    junk = fill(disk)
    for at in range(5):
        own.record("alpha", State.CONFLICT, f"change {at}")
    assert capsys.readouterr().err.count("cannot write the status of pid") == 1
    assert told(disk) == []
    junk.unlink()
    own.identify("scheduler", {}, ready=True)
    assert told(disk) == [("scheduler", "conflict")]
    assert capsys.readouterr().err == ""


def test_counters_that_find_no_room_leave_nothing_behind(disk: Path) -> None:
    junk = fill(disk)
    with pytest.raises(OSError, match="No space left"):
        counters.in_file(counters.path_of(disk, 1), 100)
    assert list(disk.iterdir()) == [junk]


def test_a_run_directory_that_cannot_be_written_is_said_once(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """/proc/self refuses root too."""
    own = process(tmp_path, Path("/proc/self"))
    for at in range(5):
        own.record("alpha", State.CONFLICT, f"change {at}")
    assert own.state("alpha") == (State.CONFLICT, "change 4")
    assert capsys.readouterr().err.count(f"cannot write the status of pid {os.getpid()} to /proc/self") == 1


def test_a_run_directory_that_was_deleted_and_made_again_has_the_status_again(tmp_path: Path) -> None:
    run = status.make_run_dir(tmp_path / "runs")
    own = process(tmp_path, run)
    own.write()
    shutil.rmtree(run)
    own.record("alpha", State.CONFLICT, "unseen")
    assert not run.exists()
    run.mkdir()
    own.identify("scheduler", {}, ready=True)
    assert told(run) == [("scheduler", "conflict")]
