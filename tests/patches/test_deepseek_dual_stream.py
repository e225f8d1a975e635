"""`deepseek-dual-stream`, `fix-dual-stream-scaling` and `mori-async-warning`: when they are planned, and what they do
to the real DeepSeek model and the real dispatcher, each release in a process of its own."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

import pytest
from packaging.version import Version

from overlay.errors import MalformedSwitchError
from overlay.gates import Gate
from overlay.model import Decision, State
from overlay.plan import make_plan
from overlay.platform import Platform
from overlay.registry import Registry
from overlay.source import DirectoryTree
from patches import deepseek_dual_stream, fix_dual_stream_inplace, fix_dual_stream_scaling, mori_async_warning
from tests.releases import run_simulated as run
from tests.unit.engine_support import RELEASES

IN_RELEASE = Path(__file__).parent / "in_release"
MODEL, MORI = "check_deepseek_dual_stream.py", "check_mori_async_warning.py"
CHECKS = {
    **dict.fromkeys(("0.5.9", "0.5.10.post1", "0.5.11"), (MORI, MODEL)),
    **dict.fromkeys(("0.5.12.post1", "0.5.13"), (MODEL,)),
}
OURS = ("fix-dual-stream-scaling", "deepseek-dual-stream", "mori-async-warning")


@pytest.fixture(scope="module")
def outcomes(request: pytest.FixtureRequest) -> Iterator[dict[str, Future[subprocess.CompletedProcess[str]]]]:
    """The checks of every release that was selected, one process per core at a time: most of each is one import."""
    wanted = {release for release in CHECKS for item in request.session.items if item.name.endswith(f"[{release}]")}
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        yield {release: pool.submit(_check, release, checks) for release, checks in CHECKS.items() if release in wanted}


def _check(release: str, checks: tuple[str, ...]) -> subprocess.CompletedProcess[str]:
    command = ("-m", "pytest", "-q", "-p", "no:cacheprovider", *(str(IN_RELEASE / name) for name in checks))
    return run(release, *command, SGLANG_USE_AITER="1")


@pytest.mark.engine
@pytest.mark.parametrize("release", CHECKS)
def test_every_check_passes(outcomes: dict[str, Future[subprocess.CompletedProcess[str]]], release: str) -> None:
    done = outcomes[release].result()
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]


def decisions(release: str, environ: dict[str, str], kind: str = "rocm") -> dict[str, Decision]:
    patches = (fix_dual_stream_inplace, fix_dual_stream_scaling, deepseek_dual_stream, mori_async_warning)
    registry = Registry(module.PATCH for module in patches)
    plan = make_plan(registry, DirectoryTree(RELEASES[release]), Platform(kind, "gfx942"), environ)
    return {decision.patch.id: decision for decision in plan.decisions}


@pytest.mark.parametrize("release", RELEASES)
def test_where_each_is_planned(release: str) -> None:
    """Whatever the variables say: a stream may be asked for after this was decided."""
    version = Version(release)
    for environ in ({}, {"SGLANG_ROCM_USE_MULTI_STREAM": "1", "SGLANG_USE_AITER": "1"}):
        made = decisions(release, environ)
        assert all("fingerprint" not in decision.reason for decision in made.values())
        states = [made[patch].state for patch in OURS]
        if version < Version("0.5.9"):
            assert states == [State.UNSUPPORTED_VERSION, State.DISABLED, State.DISABLED]
        elif version < Version("0.5.12"):
            assert states == [State.PLANNED] * 3
        elif version < Version("0.5.13"):
            assert states == [State.PLANNED, State.CONTAINED, State.CONTAINED]
        else:
            assert states == [State.CONTAINED] * 3


@pytest.mark.parametrize("fix", ["fix-dual-stream-inplace", "fix-dual-stream-scaling"])
def test_no_stream_without_its_fixes(fix: str) -> None:
    made = decisions("0.5.9", {"AMD_SGLANG_DISABLE": fix, "SGLANG_ROCM_USE_MULTI_STREAM": "1"})
    assert made["deepseek-dual-stream"].state is State.DISABLED
    assert made["deepseek-dual-stream"].reason == f"requires {fix}, which is disabled"
    assert made["mori-async-warning"].state is State.DISABLED


@pytest.mark.parametrize("kind", ["cuda", "cpu", "none"])
def test_the_variables_change_nothing_on_another_platform(kind: str) -> None:
    made = decisions("0.5.9", {"SGLANG_ROCM_USE_MULTI_STREAM": "1", "SGLANG_USE_AITER": "1"}, kind)
    assert made["fix-dual-stream-scaling"].state is State.UNSUPPORTED_PLATFORM
    assert "for rocm only" in made["fix-dual-stream-scaling"].reason
    assert all(not decision.targets for decision in made.values())


@pytest.mark.parametrize("gate", deepseek_dual_stream.PATCH.gates, ids=lambda gate: gate.name)
def test_a_switch_that_is_neither_on_nor_off_is_an_error(gate: Gate[object]) -> None:
    with pytest.raises(MalformedSwitchError, match=rf"{gate.name}='maybe' is not valid: expected 1, 0, true or false"):
        decisions("0.5.9", {gate.name: "maybe"})
