"""Many who read while the processes write, and several servers below one root."""

from __future__ import annotations

import json
import os
import subprocess
import threading
import urllib.request
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from overlay import status
from tests.web.app import document, patch, serving, write


@pytest.fixture
def processes() -> Iterator[list[subprocess.Popen[bytes]]]:
    started = [subprocess.Popen(["sleep", "600"]) for _ in range(4)]
    yield started
    for process in started:
        process.kill()
        process.wait()


def get(url: str) -> Any:
    with urllib.request.urlopen(f"{url}/overlay/status", timeout=60) as answer:
        assert answer.status == 200
        return json.loads(answer.read())


def test_fifty_readers_at_once_see_every_process_whole_while_it_writes(
    tmp_path: Path, processes: list[subprocess.Popen[bytes]]
) -> None:
    done = threading.Event()
    written = 0

    def state(number: int, pid: int) -> dict[str, Any]:
        patches = [patch(name, reason=f"change {number}") for name in ("first", "last")]
        return document("scheduler", *patches, pid=pid)

    def keep_writing() -> None:
        nonlocal written
        while not done.is_set():
            written += 1
            for process in processes:
                write(tmp_path, state(written, process.pid))

    for process in processes:
        write(tmp_path, state(0, process.pid))
    writer = threading.Thread(target=keep_writing)
    with serving(tmp_path, document("http-server")) as url, ThreadPoolExecutor(50) as readers:
        writer.start()
        try:
            answers = list(readers.map(lambda _: get(url), range(500)))
        finally:
            done.set()
            writer.join()
    assert written > 1
    expected = {os.getpid(), *(process.pid for process in processes)}
    for answer in answers:
        assert (answer["healthy"], answer["reasons"]) == (True, [])
        assert {row["pid"] for row in answer["processes"]} == expected
        for row in answer["processes"]:
            assert len({one["reason"] for one in row["patches"]}) <= 1, "half of one change, half of another"


def test_servers_below_one_root_are_told_apart(tmp_path: Path, processes: list[subprocess.Popen[bytes]]) -> None:
    runs = [status.make_run_dir(tmp_path / "root") for _ in processes]
    for run, process in zip(runs, processes, strict=True):
        write(run, document("http-server", patch("p", reason=run.name), pid=process.pid))
    processes[0].kill()
    processes[0].wait()
    for run, process in zip(runs, processes, strict=True):
        (row,) = status.read_run(run)
        assert (row["pid"], row["run"]) == (process.pid, run.name)
    rows = status.read_runs(tmp_path / "root")
    assert {row["pid"]: row["alive"] for row in rows} == {p.pid: p is not processes[0] for p in processes}
    assert {row["run"] for row in rows} == {run.name for run in runs}
