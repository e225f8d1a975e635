"""`gemma-rmsnorm` on the real class of the releases in which its source differs, each in a process of its own."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.patches import checks
from tests.releases import run_simulated as run

CHECKS = "check_gemma_rmsnorm.py"


@pytest.mark.engine
@pytest.mark.parametrize("release", ["0.5.6.post2", "0.5.8", "0.5.9", "0.5.10.post1", "0.5.12.post1", "0.5.13"])
def test_every_check_passes(release: str) -> None:
    done = checks.run(release, checks.AITER, CHECKS)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]


@pytest.mark.engine
def test_every_check_passes_where_upstream_wants_aiter_for_its_kernel() -> None:
    done = checks.run("0.5.23", checks.WITHOUT_AITER, CHECKS)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]


_REPORT = """
import json
from sglang.srt.layers import layernorm
from overlay import runtime
from overlay.install import held
from overlay.preimage import Proof
overlay = runtime.current()
decision = overlay.plan.decisions[0]
state, reason = overlay.state("gemma-rmsnorm")
proof = Proof(layernorm)
from overlay.model import Slot
slots = [Slot(layernorm.__name__, "GemmaRMSNorm." + n) for n in ("__init__", "forward_hip", "forward_native")]
print("REPORT " + json.dumps([state.value, reason, [proof.foreign(slot, held(slot)) for slot in slots]]))
"""


def report(tmp_path: Path, release: str, *options: str, **environ: str) -> tuple[str, str, list[str | None]]:
    script = tmp_path / "report.py"
    script.write_text(_REPORT)
    done = run(release, *options, str(script), **environ)
    lines = [line for line in done.stdout.splitlines() if line.startswith("REPORT ")]
    assert lines, done.stdout + done.stderr
    state, reason, foreign = json.loads(lines[0].removeprefix("REPORT "))
    return state, reason, foreign


@pytest.mark.engine
def test_switched_off_the_class_is_upstreams(tmp_path: Path) -> None:
    state, _, foreign = report(tmp_path, "0.5.9", "--disable", "gemma-rmsnorm")
    assert (state, foreign) == ("disabled", [None, None, None])


@pytest.mark.engine
def test_an_aiter_that_would_round_the_weight_is_refused(tmp_path: Path) -> None:
    state, reason, foreign = report(tmp_path, "0.5.9", AMD_SGLANG_GEMMA_RMSNORM_BACKEND="aiter")
    assert state == "failed" and "rms_norm_opus" in reason and "Use auto" in reason
    assert foreign == [None, None, None], "a failed patch left something behind"


_STORAGE = """
import torch
from sglang.srt.layers.layernorm import GemmaRMSNorm
x, residual = torch.randn(2, 3, 64).bfloat16().unbind(0)
y, total = GemmaRMSNorm(64).bfloat16()(x, residual)
print("REPORT", y is x, total is residual)
"""


@pytest.mark.engine
def test_triton_by_name_is_never_in_place(tmp_path: Path) -> None:
    script = tmp_path / "storage.py"
    script.write_text(_STORAGE)
    done = run("0.5.9", str(script), AMD_SGLANG_GEMMA_RMSNORM_BACKEND="triton")
    assert "REPORT False False" in done.stdout, done.stdout + done.stderr


@pytest.mark.engine
def test_with_aiter_on_the_newest_release_keeps_its_own_kernel(tmp_path: Path) -> None:
    state, reason, foreign = report(tmp_path, "0.5.23")
    assert state == "contained" and "SGLANG_USE_AITER is on" in reason
    assert foreign == [None, None, None]
