"""`<pid>.calls.json`, in processes that end the way sglang's do."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from overlay.simulate import environment
from tests.simulate.conftest import ROOT, Python

_COUNT = "from overlay.simulate.counters import count; count('probe')\n"


def _reports(folder: Path) -> dict[int, Any]:
    return {int(path.name.partition(".")[0]): json.loads(path.read_text()) for path in folder.glob("*.calls.json")}


def test_the_report_outlives_sigkill(site: Path, plain_environment: Mapping[str, str], tmp_path: Path) -> None:
    environ = environment(
        "gfx942",
        {
            **plain_environment,
            "PYTHONPATH": f"{site}{os.pathsep}{ROOT}",
            "AMD_SGLANG_SIMULATE_AITER": "v0.1.13",
            "AMD_SGLANG_RUN_DIR": str(tmp_path),
        },
    )
    # The second count comes after the first report was written: the report is kept up to date.
    wait = f"while not os.listdir({str(tmp_path)!r}): time.sleep(0.01)"
    program = f"import os, time\n{_COUNT}\n{wait}\n{_COUNT}\ntime.sleep(60)"
    with subprocess.Popen([sys.executable, "-c", program], env=environ) as process:
        try:
            wanted = {"schema": 1, "pid": process.pid, "calls": {"probe": 2}}
            wanted["simulated"] = {"arch": "gfx942", "aiter": "v0.1.13"}
            deadline = time.monotonic() + 30
            while _reports(tmp_path).get(process.pid) != wanted and time.monotonic() < deadline:
                time.sleep(0.05)
        finally:
            process.send_signal(signal.SIGKILL)
    assert process.returncode == -signal.SIGKILL
    assert _reports(tmp_path) == {process.pid: wanted}
    assert os.listdir(tmp_path) == [f"{process.pid}.calls.json"]


def test_a_process_that_counts_nothing_writes_nothing(python: Python, tmp_path: Path) -> None:
    python("import logging; logging.warning('x')", AMD_SGLANG_RUN_DIR=str(tmp_path))
    assert os.listdir(tmp_path) == []


def test_a_short_process_reports_at_exit(python: Python, tmp_path: Path) -> None:
    python(f"import os\n{_COUNT}print(os.getpid())", AMD_SGLANG_RUN_DIR=str(tmp_path))
    assert [report["calls"] for report in _reports(tmp_path).values()] == [{"probe": 1}]


def test_a_forked_child_reports_its_own_calls_under_its_own_pid(python: Python, tmp_path: Path) -> None:
    program = f"""
import os, time
{_COUNT}
child = os.fork()
if child == 0:
    for _ in range(3): count('child')
    time.sleep(60)
path = {str(tmp_path)!r} + f'/{{child}}.calls.json'
while not os.path.exists(path): time.sleep(0.01)
os.kill(child, 9); os.waitpid(child, 0)
print(os.getpid(), child)
"""
    parent, child = map(int, python(program, AMD_SGLANG_RUN_DIR=str(tmp_path)).stdout.split())
    reports = _reports(tmp_path)
    assert reports[parent]["calls"] == {"probe": 1}
    assert reports[child]["pid"] == child
    assert reports[child]["calls"] in ({"child": 1}, {"child": 2}, {"child": 3})


def test_a_vanished_run_directory_disturbs_nobody(python: Python, tmp_path: Path) -> None:
    done = python(_COUNT, AMD_SGLANG_RUN_DIR=str(tmp_path / "gone"))
    assert done.stderr == ""
