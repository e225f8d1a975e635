"""One reading for all who ask, and never a process that has ended among those that live."""

from __future__ import annotations

import asyncio
import json
import os
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from overlay import status
from overlay.web import snapshot
from overlay.web.snapshot import Snapshot
from tests.web.app import document, patch, write

OWN = document("http-server", patch("p"))


def make(run_dir: Path | None, own: dict[str, Any] = OWN) -> Snapshot:
    return Snapshot(run_dir, lambda: own, lambda: 1)


def view(of: Snapshot) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(asyncio.run(of.view()).body)
    return found


@pytest.fixture
def scheduler(tmp_path: Path) -> Iterator[subprocess.Popen[bytes]]:
    """A process that is a scheduler by its status file."""
    with subprocess.Popen(["sleep", "600"]) as process:
        write(tmp_path, document("scheduler", patch("p"), pid=process.pid))
        yield process
        process.kill()


@pytest.fixture
def readings(monkeypatch: pytest.MonkeyPatch) -> list[Path]:
    """Every reading of the folder."""
    seen: list[Path] = []
    read: Callable[[Path], list[dict[str, object]]] = status.read_run

    def watched(run_dir: Path) -> list[dict[str, object]]:
        seen.append(run_dir)
        return read(run_dir)

    monkeypatch.setattr(status, "read_run", watched)
    return seen


def test_fifty_who_ask_at_once_cause_one_reading(tmp_path: Path, readings: list[Path]) -> None:
    made = make(tmp_path)

    async def ask() -> list[snapshot.View]:
        return await asyncio.gather(*(made.view() for _ in range(50)))

    assert len({id(one) for one in asyncio.run(ask())}) == 1
    assert readings == [tmp_path]


def test_the_files_are_read_again_after_half_a_second(
    tmp_path: Path, readings: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    now = 100.0
    monkeypatch.setattr("time.monotonic", lambda: now)
    made = make(tmp_path)
    view(made)
    now += 0.49
    view(made)
    assert len(readings) == 1
    now += 0.02
    view(made)
    assert len(readings) == 2


def test_a_process_that_was_killed_has_ended_at_once(
    tmp_path: Path, scheduler: subprocess.Popen[bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("time.monotonic", lambda: 100.0)  # no reading grows old
    made = make(tmp_path)
    assert view(made)["healthy"] is True
    scheduler.kill()
    scheduler.wait()
    after = view(made)
    assert (after["healthy"], after["reasons"]) == (False, [f"scheduler (pid {scheduler.pid}) has ended"])
    assert [row["alive"] for row in after["processes"] if row["role"] == "scheduler"] == [False]


@pytest.mark.parametrize("run_dir", [None, Path("/nonexistent/run")])
def test_without_a_file_this_process_shows_itself(run_dir: Path | None) -> None:
    (process,) = view(make(run_dir))["processes"]
    assert (process["pid"], process["alive"], process["patches"]) == (os.getpid(), True, OWN["patches"])


def test_what_this_process_knows_of_itself_is_newer_than_its_file(tmp_path: Path) -> None:
    filed = document("starting", patch("p", "planned", "early", counters={"calls": 3}), patch("q"), ready=False)
    write(tmp_path, filed)
    (process,) = view(make(tmp_path))["processes"]
    assert (process["role"], process["ready"]) == ("http-server", True)
    assert process["patches"] == [{**patch("p"), "counters": {"calls": 3}}]


def test_a_process_elsewhere_with_the_same_pid_is_another_one(tmp_path: Path) -> None:
    write(tmp_path, document("scheduler", boot="elsewhere"))
    roles = {row["role"]: row["alive"] for row in view(make(tmp_path))["processes"]}
    assert roles == {"scheduler": False, "http-server": True}


def test_runs_below_this_one_are_other_servers(tmp_path: Path, scheduler: subprocess.Popen[bytes]) -> None:
    (tmp_path / "below").mkdir()
    write(tmp_path / "below", document("detokenizer"))
    assert {row["role"] for row in view(make(tmp_path))["processes"]} == {"scheduler", "http-server"}
