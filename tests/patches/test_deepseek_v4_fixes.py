"""The fixes of DeepSeek-V4's ROCm path on the real modules, each release in a process of its own."""

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
from patches import (
    fix_freqs_cache,
    fix_mhc_env_read,
    fix_mhc_fn_transpose,
    fix_mhc_import_cache,
    fix_triton_cache_dir,
    fix_verify_page_table,
)
from tests.releases import run_simulated
from tests.unit.engine_support import RELEASES

IN_RELEASE = Path(__file__).parent / "in_release"
FIXES = Registry(
    (
        fix_mhc_import_cache.PATCH,
        fix_mhc_env_read.PATCH,
        fix_mhc_fn_transpose.PATCH,
        fix_freqs_cache.PATCH,
        fix_verify_page_table.PATCH,
        fix_triton_cache_dir.PATCH,
    )
)
#: The check of each fix and the releases it is for: from, up to and without.
CHECKS = {
    "fix_mhc_import_cache": ("0.5.13", "0.5.24"),
    "fix_mhc_boundary": ("0.5.19", "0.5.24"),
    "fix_freqs_cache": ("0.5.20", "0.5.24"),
    "fix_verify_page_table": ("0.5.13", "0.5.20"),
    "fix_triton_cache_dir": ("0.5.13", "0.5.14"),
}
#: The oldest and the newest, and between them the one whose decoder layers are where only 0.5.19 to 0.5.22 have them.
SERVED = ("0.5.13", "0.5.19", "0.5.23")
#: Both are off by default, and bring the code to life that two of the fixes are about.
SWITCHES = {"SGLANG_OPT_FP8_WO_A_FUSED_INVROPE": "1", "SGLANG_HACK_FLASHMLA_BACKEND": "triton"}


def checks(release: str) -> list[str]:
    version = Version(release)
    return [
        str(IN_RELEASE / f"check_{name}.py")
        for name, (since, until) in CHECKS.items()
        if Version(since) <= version < Version(until)
    ]


def run(release: str) -> subprocess.CompletedProcess[str]:
    pytest_ = ("-m", "pytest", "-q", "-p", "no:cacheprovider", *checks(release))
    return run_simulated(release, *pytest_, arch="gfx950", **SWITCHES)


@pytest.fixture(scope="module")
def outcomes(request: pytest.FixtureRequest) -> Iterator[dict[str, Future[subprocess.CompletedProcess[str]]]]:
    """The checks of every release that was selected, one process per core at a time: most of each is one import."""
    wanted = {release for release in SERVED for item in request.session.items if item.name.endswith(f"[{release}]")}
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        yield {release: pool.submit(run, release) for release in SERVED if release in wanted}


@pytest.mark.engine
@pytest.mark.parametrize("release", SERVED)
def test_every_check_passes(outcomes: dict[str, Future[subprocess.CompletedProcess[str]]], release: str) -> None:
    done = outcomes[release].result()
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]


def decisions(release: str, arch: str = "gfx950", **environ: str) -> dict[str, Decision]:
    plan = make_plan(FIXES, DirectoryTree(RELEASES[release]), Platform("rocm", arch), environ)
    return {decision.patch.id: decision for decision in plan.decisions}


@pytest.mark.parametrize("release", RELEASES)
def test_each_fix_is_planned_for_its_releases_and_no_other(release: str) -> None:
    made = decisions(release, SGLANG_USE_AITER="1", **SWITCHES)
    planned = {name for name, decision in made.items() if decision.state is State.PLANNED}
    wanted = {Path(check).stem.removeprefix("check_").replace("_", "-") for check in checks(release)}
    if "fix-mhc-boundary" in wanted:
        wanted = wanted - {"fix-mhc-boundary"} | {"fix-mhc-env-read", "fix-mhc-fn-transpose"}
    assert planned == wanted
    others = {decision.state for name, decision in made.items() if name not in planned}
    assert others <= {State.UNSUPPORTED_VERSION}
    assert all("fingerprint" not in decision.reason for decision in made.values())


_ON = {"SGLANG_USE_AITER": "true"}
_INVROPE = "SGLANG_OPT_FP8_WO_A_FUSED_INVROPE"


@pytest.mark.skipif(not {"0.5.13", "0.5.23"} <= set(RELEASES), reason="0.5.13 and 0.5.23 are not here")
@pytest.mark.parametrize(
    ("patch_id", "release", "arch", "environ", "state", "why"),
    [
        ("fix-mhc-import-cache", "0.5.13", "gfx950", {}, State.PLANNED, "only if its fused mHC is revived"),
        ("fix-mhc-import-cache", "0.5.23", "gfx950", {}, State.PLANNED, "twice a layer"),
        ("fix-mhc-import-cache", "0.5.23", "gfx942", _ON, State.UNSUPPORTED_PLATFORM, "gfx1250, gfx950 only"),
        ("fix-mhc-env-read", "0.5.23", "gfx942", _ON, State.PLANNED, "every mHC boundary"),
        ("fix-mhc-fn-transpose", "0.5.23", "gfx950", _ON, State.PLANNED, "HIP kernel is missing or has failed"),
        ("fix-mhc-fn-transpose", "0.5.23", "gfx950", {}, State.CONTAINED, "SGLANG_USE_AITER is off"),
        ("fix-mhc-fn-transpose", "0.5.23", "gfx1250", {}, State.PLANNED, "TileLang"),
        ("fix-mhc-fn-transpose", "0.5.23", "gfx942", _ON, State.UNSUPPORTED_PLATFORM, "the GPU is gfx942"),
        ("fix-freqs-cache", "0.5.23", "gfx950", {_INVROPE: "Yes"}, State.PLANNED, "may be gone"),
        ("fix-freqs-cache", "0.5.23", "gfx950", {}, State.CONTAINED, f"{_INVROPE}, which is off"),
        ("fix-freqs-cache", "0.5.23", "gfx942", {_INVROPE: "1"}, State.UNSUPPORTED_PLATFORM, "the GPU is gfx942"),
        ("fix-verify-page-table", "0.5.13", "gfx942", {}, State.PLANNED, "back-port of 0.5.20"),
        ("fix-triton-cache-dir", "0.5.13", "gfx942", {}, State.CONTAINED, "SGLANG_HACK_FLASHMLA_BACKEND=triton"),
    ],
)
def test_a_fix_is_planned_where_its_code_runs(
    patch_id: str, release: str, arch: str, environ: dict[str, str], state: State, why: str
) -> None:
    decision = decisions(release, arch, **environ)[patch_id]
    assert decision.state is state, decision.reason
    assert why in decision.reason


def test_a_kernel_that_is_found_is_remembered_too() -> None:
    answers = iter([(print, print)])
    lookup = fix_mhc_import_cache.make_get_ops(lambda: next(answers))
    assert lookup() == lookup() == (print, print)
