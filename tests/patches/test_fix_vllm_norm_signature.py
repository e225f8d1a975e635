"""`fix-vllm-norm-signature`: when it is planned, which functions it adapts, and the real norms of the releases."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor

import pytest
import torch
from torch import Tensor

from overlay.errors import InstallError
from overlay.model import Decision, State
from overlay.plan import make_plan
from overlay.platform import Platform
from overlay.registry import Registry, builtin
from overlay.source import DirectoryTree
from patches.fix_vllm_norm_signature import PATCH, make_fused_add_rms_norm
from tests.patches.checks import VLLM_NORMS, run
from tests.patches.in_release import vllm_placeholder
from tests.unit.engine_support import RELEASES

#: Every shape of the two `forward_hip` and of the import, as far as releases are provisioned.
CHECKED = ("0.5.6.post2", "0.5.8.post1", "0.5.9", "0.5.10.post1", "0.5.13", "0.5.23")


@pytest.fixture(scope="module")
def outcomes(request: pytest.FixtureRequest) -> Iterator[dict[str, Future[subprocess.CompletedProcess[str]]]]:
    """The checks of every release that was selected, one process per core at a time: most of each is one import."""
    wanted = [release for release in CHECKED if any(i.name.endswith(f"[{release}]") for i in request.session.items)]
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        yield {r: pool.submit(run, r, VLLM_NORMS, "check_fix_vllm_norm_signature.py") for r in wanted}


@pytest.mark.engine
@pytest.mark.parametrize("release", CHECKED)
def test_every_check_passes(outcomes: dict[str, Future[subprocess.CompletedProcess[str]]], release: str) -> None:
    done = outcomes[release].result()
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]


def decision(release: str, environ: dict[str, str], vllm: str | None = "0.9.2") -> Decision:
    plan = make_plan(
        Registry((PATCH,)), DirectoryTree(RELEASES[release]), Platform("rocm", "gfx942", vllm=vllm), environ
    )
    return plan.decisions[0]


@pytest.mark.parametrize("release", RELEASES)
@pytest.mark.parametrize(
    ("environ", "vllm", "state", "why"),
    [
        ({}, "0.9.2", State.PLANNED, "the norms call vLLM 0.9.2 with six arguments"),
        ({"SGLANG_USE_AITER": "0"}, "0.9.2", State.PLANNED, "six arguments"),
        ({"SGLANG_USE_AITER": "1"}, "0.9.2", State.CONTAINED, "SGLANG_USE_AITER is on"),
        ({}, None, State.CONTAINED, "vLLM is not installed"),
    ],
)
def test_it_is_planned_where_vllm_is_called(
    release: str, environ: dict[str, str], vllm: str | None, state: State, why: str
) -> None:
    made = decision(release, environ, vllm)
    assert made.state is state
    assert why in made.reason and "fingerprint" not in made.reason


def test_no_patch_before_it_fills_what_it_reads() -> None:
    """Its images are proved when it is applied: a method that another patch had filled by then would be a conflict."""
    read = {image.slot for variant in PATCH.variants for image in variant.images}
    patches = list(builtin())
    earlier = patches[: next(i for i, patch in enumerate(patches) if patch.id == PATCH.id)]
    filled = {target.slot for patch in earlier for variant in patch.variants for target in variant.targets}
    assert not read & filled


def test_the_adapter_is_out_of_place_where_vllm_is_in_place() -> None:
    adapted = make_fused_add_rms_norm(vllm_placeholder.fused_add_rms_norm)
    x, residual, weight = torch.randn(3, 4, 8).unbind(0)
    kept = x.clone(), residual.clone()
    out, total = torch.empty(4, 8), torch.empty(4, 8)
    adapted(out, x, total, residual, weight[0], 1e-6)
    assert torch.equal(x, kept[0]) and torch.equal(residual, kept[1])
    torch.testing.assert_close(total, x + residual)
    torch.testing.assert_close(out, torch.nn.functional.rms_norm(x + residual, (8,), weight[0], 1e-6))


def test_a_function_that_takes_six_arguments_is_kept() -> None:
    """ROCm/vllm 355_wip."""

    def fused_add_rms_norm(
        out: Tensor, input: Tensor, residual_out: Tensor, residual: Tensor, weight: Tensor, epsilon: float
    ) -> None: ...

    assert make_fused_add_rms_norm(fused_add_rms_norm) is fused_add_rms_norm


def _aiters(out: Tensor, input: Tensor, residual: Tensor, residual_out: Tensor, weight: Tensor, epsilon: float) -> None:
    """aiter's order: the two residuals the other way round."""


def _swapped(residual: Tensor, input: Tensor, weight: Tensor, epsilon: float) -> None:
    """Four parameters that mean something else."""


@pytest.mark.parametrize("function", [_aiters, _swapped])
def test_any_other_signature_is_refused(function: object) -> None:
    with pytest.raises(InstallError, match=r"takes \(.*\): neither \(input, residual, weight, epsilon\)"):
        make_fused_add_rms_norm(function)
