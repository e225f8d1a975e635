"""The second stream of Qwen3.5, and the races of two streams, on the real classes of each release."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

import pytest
from packaging.version import Version

from overlay.model import Decision, State
from overlay.plan import make_plan
from overlay.platform import Platform
from overlay.registry import Registry
from overlay.source import DirectoryTree
from patches import fix_dual_stream_inplace, qwen3_5_alt_stream
from tests.releases import run_simulated as run
from tests.unit.engine_support import RELEASES, ROCM

IN_RELEASE = Path(__file__).parent / "in_release"
QWEN, RACES = "check_qwen3_5_alt_stream.py", "check_dual_stream_races.py"
CHECKS = {
    **dict.fromkeys(("0.5.9", "0.5.10.post1", "0.5.11", "0.5.12.post1", "0.5.13"), (QWEN, RACES)),
    "0.5.23": (RACES,),
}


@pytest.fixture(scope="module")
def outcomes(request: pytest.FixtureRequest) -> Iterator[dict[str, Future[subprocess.CompletedProcess[str]]]]:
    """The checks of every release that was selected, one process per core at a time: most of each is one import."""
    wanted = {release for release in CHECKS for item in request.session.items if item.name.endswith(f"[{release}]")}
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        yield {release: pool.submit(checked, release) for release in wanted}


def checked(release: str) -> subprocess.CompletedProcess[str]:
    files = [str(IN_RELEASE / name) for name in CHECKS[release]]
    return run(release, "-m", "pytest", "-q", "-p", "no:cacheprovider", *files, SGLANG_ALT_STREAM="1")


@pytest.mark.engine
@pytest.mark.parametrize("release", CHECKS)
def test_every_check_passes(outcomes: dict[str, Future[subprocess.CompletedProcess[str]]], release: str) -> None:
    done = outcomes[release].result()
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]


def decisions(release: str, platform: Platform = ROCM, **environ: str) -> tuple[Decision, Decision]:
    registry = Registry((fix_dual_stream_inplace.PATCH, qwen3_5_alt_stream.PATCH))
    fix, stream = make_plan(registry, DirectoryTree(RELEASES[release]), platform, environ).decisions
    return fix, stream


@pytest.mark.parametrize("release", RELEASES)
def test_the_fix_is_planned_wherever_a_release_races(release: str) -> None:
    fix, _ = decisions(release)
    if Version(release) < Version("0.5.9"):
        assert fix.state is State.UNSUPPORTED_VERSION
        return
    assert fix.state is State.PLANNED and "fingerprint" not in fix.reason, fix.reason
    filled = {target.slot.qualname.partition(".")[0] for target in fix.targets}
    assert filled == {"DeepseekV2MoE"} | ({"Qwen2MoeSparseMoeBlock"} if Version(release) < Version("0.5.14") else set())


@pytest.mark.parametrize("release", RELEASES)
def test_the_stream_is_planned_where_it_is_asked_for_and_upstream_has_none(release: str) -> None:
    _, stream = decisions(release, SGLANG_ALT_STREAM="TRUE")
    _, off = decisions(release)
    if Version(release) < Version("0.5.9"):
        assert stream.state is off.state is State.DISABLED
    elif Version(release) < Version("0.5.13"):
        assert stream.state is State.PLANNED and "fingerprint" not in stream.reason
        assert off.state is State.DISABLED and off.reason.startswith("off: set SGLANG_ALT_STREAM=1")
    else:
        assert stream.state is off.state is State.CONTAINED and "upstream" in stream.reason


needs_0_5_12 = pytest.mark.skipif("0.5.12" not in RELEASES, reason="0.5.12 is not here: run `make releases`")


@needs_0_5_12
def test_no_stream_without_the_fix() -> None:
    fix, stream = decisions("0.5.12", SGLANG_ALT_STREAM="1", AMD_SGLANG_DISABLE="fix-dual-stream-inplace")
    assert fix.state is stream.state is State.DISABLED and "requires fix-dual-stream-inplace" in stream.reason


@needs_0_5_12
@pytest.mark.parametrize("kind", ["cuda", "cpu", "none"])
def test_the_variables_do_nothing_elsewhere(kind: str) -> None:
    fix, stream = decisions("0.5.12", Platform(kind), SGLANG_ALT_STREAM="1", SGLANG_QK_NORM_ALT_STREAM="1")
    assert fix.state is State.UNSUPPORTED_PLATFORM and stream.state in (fix.state, State.DISABLED)
