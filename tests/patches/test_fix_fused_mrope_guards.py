"""`fix-fused-mrope-guards` on the real class of every source shape, each in a process of its own."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

import pytest
from packaging.version import Version

from overlay.model import State
from overlay.plan import make_plan
from overlay.registry import Registry
from overlay.simulate.settings import AITER_HEAD
from overlay.source import DirectoryTree
from patches import fix_fused_mrope_guards, qwen3_fused_attention
from tests.releases import run_simulated
from tests.unit.engine_support import RELEASES, ROCM

CHECKS = Path(__file__).parent / "in_release" / "check_fix_fused_mrope_guards.py"

#: A release and the aiter it is run with. The head of aiter takes strides from the cache and checks no dtype.
CASES = {
    "0.5.10.post1": ("0.5.10.post1", "auto"),
    "0.5.12.post1-aiter-head": ("0.5.12.post1", AITER_HEAD),
    "0.5.13": ("0.5.13", "auto"),
    "0.5.13-aiter-head": ("0.5.13", AITER_HEAD),
    "0.5.23": ("0.5.23", "auto"),
}


def check(release: str, aiter: str) -> subprocess.CompletedProcess[str]:
    environ = {"SGLANG_USE_AITER": "1", "AMD_SGLANG_SIMULATE_AITER": aiter}
    return run_simulated(release, "-m", "pytest", "-q", "-p", "no:cacheprovider", str(CHECKS), **environ)


@pytest.fixture(scope="module")
def outcomes(request: pytest.FixtureRequest) -> Iterator[dict[str, Future[subprocess.CompletedProcess[str]]]]:
    """The checks of every case that was selected, one process per core at a time: most of each is one import."""
    wanted = {name for name in CASES for item in request.session.items if item.name.endswith(f"[{name}]")}
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        yield {name: pool.submit(check, *case) for name, case in CASES.items() if name in wanted}


@pytest.mark.engine
@pytest.mark.parametrize("name", CASES)
def test_every_check_passes(outcomes: dict[str, Future[subprocess.CompletedProcess[str]]], name: str) -> None:
    done = outcomes[name].result()
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]


@pytest.mark.skipif(not RELEASES, reason="no real sglang release is here: run `make releases`")
@pytest.mark.parametrize("release", RELEASES)
@pytest.mark.parametrize(("switch", "wanted"), [("1", State.PLANNED), ("0", State.CONTAINED)])
def test_needed_where_aiter_is_called(release: str, switch: str, wanted: State) -> None:
    registry = Registry((qwen3_fused_attention.PATCH, fix_fused_mrope_guards.PATCH))
    tree = DirectoryTree(RELEASES[release])
    _, decision = make_plan(registry, tree, ROCM, {"SGLANG_USE_AITER": switch}).decisions
    if Version(release) < Version("0.5.10"):
        wanted = State.UNSUPPORTED_VERSION
    assert decision.state is wanted, decision.reason
    assert "fingerprint" not in decision.reason
    if wanted is State.CONTAINED:
        assert "SGLANG_USE_AITER is off" in decision.reason
