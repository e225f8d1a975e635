"""The routes and the metrics in real HTTP servers: the two ends of the supported releases, which check API keys in
two different ways. 0.5.9 is served as a whole by `tests/engine/test_http.py`."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

import pytest

from overlay.observer import Observer
from overlay.source import DirectoryTree
from overlay.web import attach
from tests.releases import run_simulated
from tests.unit.engine_support import RELEASES

CHECK = Path(__file__).parent / "in_release" / "check_http_server.py"
SERVED = ("0.5.6.post2", "0.5.23")


@pytest.fixture(scope="module")
def outcomes(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[dict[str, Future[subprocess.CompletedProcess[str]]]]:
    wanted = [release for release in SERVED for item in request.session.items if item.name.endswith(f"[{release}]")]

    def run(release: str) -> subprocess.CompletedProcess[str]:
        folder = tmp_path_factory.mktemp("prometheus")
        # sglang sets it before it imports prometheus_client, which looks at it only then.
        folders = {"PROMETHEUS_MULTIPROC_DIR": str(folder), "AMD_SGLANG_RUN_DIR": str(folder / "runs")}
        return run_simulated(
            release, "-m", "pytest", "-q", "--disable-warnings", "-p", "no:cacheprovider", str(CHECK), **folders
        )

    with ThreadPoolExecutor(os.cpu_count()) as pool:
        yield {release: pool.submit(run, release) for release in wanted}


@pytest.mark.engine
@pytest.mark.parametrize("release", SERVED)
def test_every_check_passes(outcomes: dict[str, Future[subprocess.CompletedProcess[str]]], release: str) -> None:
    done = outcomes[release].result()
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]


@pytest.mark.parametrize("release", RELEASES)
def test_the_middleware_of_every_release_is_the_one_that_is_known(release: str) -> None:
    assert Observer(DirectoryTree(RELEASES[release])).observe(attach.MIDDLEWARE) == attach.MIDDLEWARE_DIGEST
