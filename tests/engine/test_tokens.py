"""The real engine of each release in the simulated ROCm: same tokens with and without the patch, same as transformers',
and proof of which code ran in the scheduler."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from overlay import status
from tests.engine.conftest import COUNT
from tests.engine.runs import SCRIPT, generate
from tests.releases import run_simulated

PATCH = "gemma-rmsnorm"
OURS, HIP, NATIVE = (
    "triton:patches.kernels.gemma_rmsnorm._gemma_rmsnorm_kernel",
    "op:GemmaRMSNorm.forward_hip",
    "op:GemmaRMSNorm.forward_native",
)


@pytest.mark.engine
@pytest.mark.parametrize(
    ("release", "upstream", "environ"),
    [
        ("0.5.9", NATIVE, {}),
        ("0.5.10.post1", HIP, {}),
        ("0.5.12.post1", HIP, {}),
        ("0.5.23", HIP, {"SGLANG_USE_AITER": "0"}),
    ],
    ids=["0.5.9", "0.5.10.post1", "0.5.12.post1", "0.5.23-without-aiter"],
)
def test_patched_and_unpatched_agree_with_transformers(
    release: str,
    upstream: str,
    environ: dict[str, str],
    checkpoint: Path,
    transformers_tokens: list[list[int]],
    tmp_path: Path,
) -> None:
    patched = generate(release, checkpoint, tmp_path / "on", COUNT, **environ)
    plain = generate(release, checkpoint, tmp_path / "off", COUNT, "--disable", PATCH, **environ)
    assert patched.tokens == plain.tokens == transformers_tokens
    assert (patched.states[PATCH], plain.states[PATCH]) == ("applied", "disabled")
    assert patched.calls[HIP] == patched.calls[OURS] > 0 and NATIVE not in patched.calls
    assert plain.calls[upstream] == patched.calls[HIP] and OURS not in plain.calls


@pytest.mark.engine
def test_newest_release_with_aiter_is_left_alone(
    checkpoint: Path, transformers_tokens: list[list[int]], tmp_path: Path
) -> None:
    run = generate("0.5.23", checkpoint, tmp_path, COUNT)
    assert run.tokens == transformers_tokens
    assert run.states[PATCH] == "contained" and OURS not in run.calls


@pytest.mark.engine
def test_strict_ends_the_engine_when_a_scheduler_cannot_apply(checkpoint: Path, tmp_path: Path) -> None:
    """The backend is refused only when the patch is applied, inside the scheduler process."""
    environ = {"AMD_SGLANG_RUN_DIR": str(tmp_path), "AMD_SGLANG_GEMMA_RMSNORM_BACKEND": "aiter"}
    done = run_simulated("0.5.9", "--strict", str(SCRIPT), str(checkpoint), "1", **environ)
    assert done.returncode != 0 and "TOKENS" not in done.stdout
    assert "--strict forbids to serve without it" in done.stderr
    assert not any(os.path.exists(f"/proc/{row['pid']}") for row in status.read_runs(tmp_path))
