"""The real engine whose schedulers are actors of a Ray cluster that was up before and knows nothing of the overlay.

Ray is no requirement of the tests: `pip install ray` (70 MB) into the environment makes this one run.
"""

from __future__ import annotations

import os
import re
import secrets
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from demo.processes import in_session, kill
from demo.server import free_port
from tests.engine.runs import SCRIPT, schedulers
from tests.releases import environment, run_simulated

ray = pytest.importorskip("ray", reason="Ray is not installed")
pytestmark = pytest.mark.engine

RELEASE = "0.5.23"
#: Two ranks, without the all-reduce kernels of a GPU.
ARGUMENTS = '{"use_ray": true, "tp_size": 2, "disable_custom_all_reduce": true}'


@pytest.fixture
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, str]]:
    """A head node with two devices, started from an environment in which nothing of ours is set; what a driver needs to
    find it."""
    folder = tmp_path_factory.mktemp("ray")
    path = environment(RELEASE)["PYTHONPATH"] + os.pathsep + str(Path(ray.__file__).parents[1])
    port = free_port()
    token = {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": secrets.token_hex(32), "PYTHONPATH": path}
    options = ("--head", f"--port={port}", "--num-cpus=4", "--num-gpus=2", "--include-dashboard=false", "--block")
    head = subprocess.Popen(
        [sys.executable, "-m", "ray.scripts.scripts", "start", *options, "--disable-usage-stats"],
        env={"HOME": os.environ["HOME"], "PATH": os.environ["PATH"], "RAY_TMPDIR": str(folder), **token},
        stdout=(folder / "log").open("wb"),
        stderr=subprocess.STDOUT,
        start_new_session=True,
    )
    try:
        deadline = time.monotonic() + 90
        while "Ray runtime started" not in (said := (folder / "log").read_text()) and time.monotonic() < deadline:
            assert head.poll() is None, said
            time.sleep(0.2)
        (address,) = set(re.findall(r"--address='([\d.]+:\d+)'", said))
        yield {**token, "RAY_ADDRESS": address}
    finally:
        while left := in_session(head.pid):
            for process in left:
                kill(process.pid, signal.SIGKILL)
            head.poll()
            time.sleep(0.1)
        head.wait()


def test_actors_of_a_cluster_that_was_up_before_are_patched_and_agree(
    cluster: dict[str, str], checkpoint: Path, tmp_path: Path
) -> None:
    command = (str(SCRIPT), str(checkpoint), "2", ARGUMENTS)
    done = run_simulated(RELEASE, *command, AMD_SGLANG_RUN_DIR=str(tmp_path), **cluster)
    said = done.stdout + done.stderr
    assert done.returncode == 0 and "TOKENS" in done.stdout, said[-6000:]
    actors = schedulers(tmp_path)
    assert [row["ready"] for row in actors] == [True, True]
    (plan,) = {row["plan"] for row in actors}
    assert f"[amd-sglang] 2 ranks agree on plan {plan}" in said
    assert "run without the overlay" not in said
