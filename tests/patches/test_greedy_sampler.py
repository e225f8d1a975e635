"""`greedy-sampler` and `fix-aiter-greedy-sample` on the real `Sampler`, each release in a process of its own."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from packaging.version import Version

from overlay.errors import MalformedSwitchError
from overlay.model import Decision, State
from overlay.plan import make_plan
from overlay.platform import Platform
from overlay.registry import Registry
from overlay.source import DirectoryTree
from patches import fix_aiter_greedy_sample, greedy_sampler
from tests.releases import run_simulated as run
from tests.unit.engine_support import RELEASES

IN_RELEASE = Path(__file__).parent / "in_release"
EARLY = ("0.5.6.post2", "0.5.7", "0.5.8", "0.5.8.post1", "0.5.9")
LATE = ("0.5.10", "0.5.10.post1", "0.5.11", "0.5.12", "0.5.12.post1")
CHECKS = {
    **dict.fromkeys((*EARLY, *LATE), "check_greedy_sampler.py"),
    **dict.fromkeys(("0.5.13", "0.5.23"), "check_fix_aiter_greedy_sample.py"),
}


@pytest.fixture(scope="module")
def outcomes(request: pytest.FixtureRequest) -> Iterator[dict[str, Future[subprocess.CompletedProcess[str]]]]:
    """The checks of every release that was selected, one process per core at a time: most of each is one import."""
    wanted = {release for release in CHECKS for item in request.session.items if item.name.endswith(f"[{release}]")}
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        yield {
            release: pool.submit(run, release, "-m", "pytest", "-q", "-p", "no:cacheprovider", str(IN_RELEASE / checks))
            for release, checks in CHECKS.items()
            if release in wanted
        }


@pytest.mark.engine
@pytest.mark.parametrize("release", CHECKS)
def test_every_check_passes(outcomes: dict[str, Future[subprocess.CompletedProcess[str]]], release: str) -> None:
    done = outcomes[release].result()
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]


def decisions(release: str, environ: dict[str, str], arch: str = "gfx942") -> dict[str, Decision]:
    registry = Registry((greedy_sampler.PATCH, fix_aiter_greedy_sample.PATCH))
    plan = make_plan(registry, DirectoryTree(RELEASES[release]), Platform("rocm", arch), environ)
    return {decision.patch.id: decision for decision in plan.decisions}


@pytest.mark.parametrize("release", RELEASES)
def test_one_of_the_two_is_planned(release: str) -> None:
    made = decisions(release, {"SGLANG_USE_AITER": "1"})
    planned = [name for name, decision in made.items() if decision.state is State.PLANNED]
    assert planned == ["fix-aiter-greedy-sample" if Version(release) >= Version("0.5.13") else "greedy-sampler"]
    assert all("fingerprint" not in made[name].reason for name in planned)


_ON = {"SGLANG_USE_AITER": "true"}


@pytest.mark.skipif(not {"0.5.13", "0.5.23"} <= set(RELEASES), reason="0.5.13 and 0.5.23 are not here")
@pytest.mark.parametrize(
    ("release", "arch", "environ", "why"),
    [
        ("0.5.13", "gfx942", {}, "SGLANG_USE_AITER is off"),
        ("0.5.23", "gfx942", {"SGLANG_USE_AITER": "yes"}, "SGLANG_USE_AITER is off"),
        ("0.5.23", "gfx942", {**_ON, "SGLANG_DISABLE_AITER_GREEDY_SAMPLE": "True"}, "SAMPLE is on"),
        ("0.5.23", "gfx942", {**_ON, "SGLANG_DISABLE_AITER_GREEDY_SAMPLE": "0"}, None),
        ("0.5.23", "gfx1250", _ON, "gfx1250"),
        ("0.5.13", "gfx1250", _ON, None),
    ],
)
def test_the_fix_is_planned_where_aiter_is_called(
    release: str, arch: str, environ: dict[str, str], why: str | None
) -> None:
    decision = decisions(release, environ, arch)["fix-aiter-greedy-sample"]
    assert decision.state is (State.PLANNED if why is None else State.CONTAINED)
    assert (why or "#27247") in decision.reason


class Recorder:
    """A sampler whose two methods leave what came by."""

    def _preprocess_logits(self, logits: torch.Tensor, _info: object) -> torch.Tensor:
        return logits * 2

    def _sync_token_ids_across_tp(self, ids: torch.Tensor, _info: object) -> None:
        self.synced = ids


def test_the_torch_backend_is_torch_argmax(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "patches.kernels.argmax", None)
    monkeypatch.setenv("AMD_SGLANG_GREEDY_SAMPLER_BACKEND", "triton")
    with pytest.raises(ImportError):
        greedy_sampler.make_forward(None)
    monkeypatch.setenv("AMD_SGLANG_GREEDY_SAMPLER_BACKEND", "torch")
    forward = greedy_sampler.make_forward(None)
    logits = torch.randn(3, 50)
    output, info = SimpleNamespace(next_token_logits=logits), SimpleNamespace(is_all_greedy=True)
    sampler = Recorder()
    ids = forward(sampler, output, info, False, [], [], torch.arange(3))
    assert ids is sampler.synced
    assert torch.equal(ids, torch.argmax(logits, -1))


def test_an_unknown_backend_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AMD_SGLANG_GREEDY_SAMPLER_BACKEND", "aiter")
    with pytest.raises(MalformedSwitchError, match="auto, triton, torch"):
        greedy_sampler.make_forward(None)
