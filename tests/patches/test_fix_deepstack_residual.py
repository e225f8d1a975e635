"""`fix-deepstack-residual`: when it is planned, and the real norm or communicator of the releases that need it."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import torch
from packaging.version import Version

from overlay.model import Decision, State
from overlay.plan import make_plan
from overlay.platform import Platform
from overlay.registry import Registry
from overlay.source import DirectoryTree
from patches.fix_deepstack_residual import PATCH, make_prepare_attn
from tests.releases import run_simulated as run
from tests.unit.engine_support import RELEASES

CHECKS = Path(__file__).parent / "in_release" / "check_fix_deepstack_residual.py"
CHECKED = ("0.5.8", "0.5.8.post1", "0.5.10", "0.5.11", "0.5.13")


@pytest.fixture(scope="module")
def outcomes(request: pytest.FixtureRequest) -> Iterator[dict[str, Future[subprocess.CompletedProcess[str]]]]:
    """The checks of every release that was selected, one process per core at a time: most of each is one import."""
    wanted = [release for release in CHECKED if any(i.name.endswith(f"[{release}]") for i in request.session.items)]
    command = ("-m", "pytest", "-q", "-p", "no:cacheprovider", str(CHECKS))
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        yield {release: pool.submit(run, release, *command) for release in wanted}


@pytest.mark.engine
@pytest.mark.parametrize("release", CHECKED)
def test_every_check_passes(outcomes: dict[str, Future[subprocess.CompletedProcess[str]]], release: str) -> None:
    done = outcomes[release].result()
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]


def decision(release: str, environ: dict[str, str]) -> Decision:
    tree = DirectoryTree(RELEASES[release])
    return make_plan(Registry((PATCH,)), tree, Platform("rocm", "gfx942"), environ).decisions[0]


@pytest.mark.parametrize("release", RELEASES)
@pytest.mark.parametrize("aiter", ["0", "1"])
def test_it_is_planned_where_the_features_are_lost(release: str, aiter: str) -> None:
    made = decision(release, {"SGLANG_USE_AITER": aiter})
    version = Version(release)
    if version < Version("0.5.8"):
        assert made.state is State.UNSUPPORTED_VERSION
    elif version < Version("0.5.9") or (aiter == "1" and Version("0.5.10") <= version < Version("0.5.21")):
        assert made.state is State.PLANNED
    else:
        assert made.state is State.CONTAINED and "RMSNorm adds it" in made.reason


def prepared(rows: int, *, owes_its_sum: bool) -> tuple[torch.Tensor, torch.Tensor | None]:
    """Residual and addition as the release's `prepare_attn` receives them, for features of 4 rows, all ones."""
    prepare_attn: Any = make_prepare_attn(lambda _self, _hidden, residual, *rest: (residual, *rest))
    hidden: Any = torch.zeros(rows, 8)
    if owes_its_sum:
        hidden._sglang_needs_allreduce_fusion = True
    residual, batch, quant_format, post = prepare_attn(
        None, hidden, torch.zeros(rows, 8), "batch", "fp8", torch.ones(4, 8)
    )
    assert (batch, quant_format) == ("batch", "fp8")
    return residual, post


def test_only_a_layer_that_owes_its_sum_has_the_features_added_here() -> None:
    residual, post = prepared(4, owes_its_sum=True)
    assert residual.eq(1).all() and post is None
    residual, post = prepared(4, owes_its_sum=False)
    assert residual.eq(0).all() and post is not None


def test_a_shard_of_the_residual_is_left_to_the_release() -> None:
    """Sequence parallelism of 0.5.19: the features have more rows than this rank's residual."""
    residual, post = prepared(2, owes_its_sum=True)
    assert residual.eq(0).all() and post is not None
