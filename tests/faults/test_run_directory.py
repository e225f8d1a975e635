"""What others may have put into a run directory, and what may have become of it: read without a crash, a hang, or
trust in what is not this user's."""

from __future__ import annotations

import json
import os
import random
import socket
import threading
from collections.abc import Callable
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import pytest
from prometheus_client import CollectorRegistry, generate_latest

from overlay import counters, private_file, report, status
from overlay.errors import OverlayError
from overlay.render_status import status_table
from overlay.web.document import served
from overlay.web.metrics import Families
from tests.web.app import document, patch, write

SECRET = "root:x:0:0"


def symlink(path: Path) -> None:
    outside = path.parent.parent / "outside"
    outside.write_text(json.dumps(document(SECRET)))
    path.symlink_to(outside)


def dangling(path: Path) -> None:
    path.symlink_to("nowhere")


def loop(path: Path) -> None:
    path.symlink_to(path)


def unix_socket(path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as made:
        made.bind(str(path))


def huge(path: Path) -> None:
    with path.open("wb") as stream:
        stream.truncate(1 << 40)  # takes no room, and would take all memory


def foreign(path: Path) -> None:
    if os.getuid() != 0:
        pytest.skip("only root can give a file away")
    path.write_text(json.dumps(document("scheduler")))
    os.chown(path, 54321, -1)


def endless(path: Path) -> None:
    path.symlink_to("/dev/zero")


PLANTED: dict[Callable[[Path], None], str] = {
    symlink: "it is a symbolic link",
    dangling: "it is a symbolic link",
    loop: "it is a symbolic link",
    endless: "it is a symbolic link",
    os.mkfifo: "it is no regular file",
    unix_socket: "No such device or address",
    Path.mkdir: "Is a directory",
    huge: f"it holds more than {private_file.MOST_BYTES} bytes",
    foreign: "it belongs to another user (uid 54321)",
}


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """A run with one process, which is this one."""
    folder = tmp_path / "run"
    folder.mkdir()
    write(folder, document("scheduler", patch("p")))
    return folder


def read(run_dir: Path) -> list[dict[str, Any]]:
    """A run as everybody reads it, through everything that shows it. Fails where that takes too long."""
    found: list[list[dict[str, Any]]] = []

    def look() -> None:
        rows: list[dict[str, Any]] = status.read_run(run_dir)
        status_table(rows)
        json.dumps(served(rows, host="h", nodes=1), allow_nan=False)
        registry = CollectorRegistry()
        registry.register(Families(rows))
        generate_latest(registry)
        found.append(rows)

    reader = threading.Thread(target=look, daemon=True)
    reader.start()
    reader.join(20)
    assert not reader.is_alive(), "reading hangs"
    assert found, "reading failed"
    return found[0]


@pytest.mark.parametrize("plant", PLANTED)
def test_what_is_no_file_of_ours_is_named_and_never_opened_further(run: Path, plant: Callable[[Path], None]) -> None:
    plant(run / "999.json")
    good, bad = sorted(read(run), key=lambda row: "error" in row)
    assert (good["role"], good["alive"]) == ("scheduler", True)
    assert PLANTED[plant] in bad["error"] and (bad["alive"], bad["patches"]) == (False, [])
    assert SECRET not in json.dumps(bad)


@pytest.mark.parametrize("plant", PLANTED)
def test_what_lies_beside_a_status_is_no_more_trusted(run: Path, plant: Callable[[Path], None]) -> None:
    write(run, document("scheduler", patch("p"), guarded=["p"]))
    plant(counters.path_of(run, os.getpid()))
    plant(run / f"{os.getpid()}.calls.json")
    (row,) = read(run)
    assert row["alive"] is True and "calls" not in row and "counters" not in row["patches"][0]


def test_a_file_that_was_replaced_by_a_link_is_put_back_and_its_target_left(run: Path, tmp_path: Path) -> None:
    victim = tmp_path / "victim"
    victim.write_text("precious")
    path = run / f"{os.getpid()}.json"
    path.unlink()
    path.symlink_to(victim)
    write(run, document("detokenizer"))
    assert victim.read_text() == "precious" and not path.is_symlink()
    assert [row["role"] for row in read(run)] == ["detokenizer"]


@pytest.mark.parametrize("kind", ["link", "foreign"])
def test_a_root_of_runs_that_somebody_else_made_is_refused(tmp_path: Path, run: Path, kind: str) -> None:
    root = tmp_path / "root"
    if kind == "link":
        root.symlink_to(tmp_path)
    else:
        root.mkdir()
        foreign_root(root)
    with pytest.raises(OverlayError, match=f"the run directory {root} is a link or belongs to another user"):
        status.read_runs(root)


def foreign_root(root: Path) -> None:
    if os.getuid() != 0:
        pytest.skip("only root can give a folder away")
    os.chown(root, 54321, -1)


def test_a_corrupt_file_is_a_row_whatever_was_done_to_it(run: Path) -> None:
    """1000 corruptions of one real document: bytes flipped, dropped, doubled, cut off."""
    path = run / f"{os.getpid()}.json"
    whole = json.dumps(
        document("scheduler", patch("p", counters={"calls": 1}, worst_error=0.5), ranks={"tp": 0})
    ).encode()
    unreadable = 0
    for seed in range(1000):
        rng = random.Random(seed)
        at = rng.randrange(len(whole))
        damaged = rng.choice(
            [
                whole[:at] + bytes([rng.randrange(256)]) + whole[at + 1 :],
                whole[:at] + whole[at + rng.randrange(1, 30) :],
                whole[: at + 9] + whole[at:],
                whole[:at],
            ]
        )
        path.write_bytes(damaged)
        (row,) = status.read_run(run)
        status_table([row])
        json.dumps(served([row], host="h", nodes=1), allow_nan=False)
        list(Families([row]).collect())
        unreadable += "error" in row
    assert 500 < unreadable < 1000


def test_more_files_than_any_server_has_processes_are_counted_and_not_read(
    run: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(status, "MOST_FILES", 3)
    for number in range(5):
        write(run, document("forked", pid=10**7 + number, started=1))
    *rows, rest = read(run)
    assert len(rows) == 3 and rest["error"] == "3 more files are not read"
    assert [row["role"] for row in rows if row["alive"]] == ["scheduler"]


def test_a_process_of_another_machine_or_boot_is_not_the_one_of_that_number_here(run: Path) -> None:
    write(run, document("scheduler", patch("p"), boot="another"))
    assert [row["alive"] for row in read(run)] == [False]


def test_a_host_that_is_renamed_loses_no_process(run: Path) -> None:
    write(run, document("scheduler", patch("p"), host="as it was called"))
    assert [row["alive"] for row in read(run)] == [True]


@pytest.mark.parametrize("year", [1971, 2999])
def test_a_clock_that_jumps_changes_no_life(run: Path, year: int, monkeypatch: pytest.MonkeyPatch) -> None:
    jumped = datetime(year, 1, 1, tzinfo=timezone.utc)

    class Clock(datetime):
        @classmethod
        def now(cls, tz: Any = None) -> Any:
            return jumped.astimezone(tz)

    monkeypatch.setattr("time.time", jumped.timestamp)
    monkeypatch.setattr(report, "datetime", Clock)
    monkeypatch.setattr(status, "datetime", Clock)
    for path in run.iterdir():
        os.utime(path, (jumped.timestamp(), jumped.timestamp()))
    gone = document("detokenizer", pid=2**22 + 1, started=1)
    write(run, gone)
    assert {row["role"]: row["alive"] for row in read(run)} == {"scheduler": True, "detokenizer": False}
    first, second = (status.make_run_dir(run.parent / "runs") for _ in range(2))
    assert first != second and first.name.startswith(str(year))
