"""`qwen3-fused-attention` on the real class of every release that needs it, each in a process of its own."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from packaging.version import Version

from overlay.model import State
from overlay.plan import make_plan
from overlay.registry import Registry
from overlay.source import DirectoryTree
from patches.qwen3_fused_attention import PATCH
from tests.releases import run_simulated as run
from tests.unit.engine_support import RELEASES, ROCM

CHECKS = Path(__file__).parent / "in_release" / "check_qwen3_fused_attention.py"
PYTEST = ("-m", "pytest", "-q", "-p", "no:cacheprovider", str(CHECKS))
BACKEND = "AMD_SGLANG_QWEN3_ATTENTION_BACKEND"
WITH_BODY = {BACKEND: "aiter", "AMD_SGLANG_SIMULATE_AITER": "v0.1.12"}


@pytest.mark.engine
@pytest.mark.parametrize("release", ["0.5.6.post2", "0.5.7", "0.5.8", "0.5.8.post1", "0.5.9"])
def test_every_check_passes(release: str) -> None:
    done = run(release, *PYTEST)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]


@pytest.mark.engine
def test_every_check_passes_with_an_aiter_that_is_the_one_we_know() -> None:
    done = run("0.5.9", *PYTEST, **WITH_BODY)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]


_REPORT = """
import json
from sglang.srt.models import qwen3
from overlay import runtime
from overlay.install import held
from overlay.model import Slot
from overlay.preimage import Proof
state, reason = runtime.current().state("qwen3-fused-attention")
slot = Slot(qwen3.__name__, "Qwen3Attention.forward")
print("REPORT " + json.dumps([state.value, reason, Proof(qwen3).foreign(slot, held(slot))]))
"""


_OTHER_AITER = """
import aiter
aiter.fused_qk_norm_mrope_3d_cache_pts_quant_shuffle = lambda qkv, out: None
"""


def report(tmp_path: Path, release: str, preamble: str = "", **environ: str) -> tuple[str, str, str | None]:
    script = tmp_path / "report.py"
    script.write_text(preamble + _REPORT)
    done = run(release, str(script), **environ)
    lines = [line for line in done.stdout.splitlines() if line.startswith("REPORT ")]
    assert lines, done.stdout + done.stderr
    state, reason, foreign = json.loads(lines[0].removeprefix("REPORT "))
    return state, reason, foreign


@pytest.mark.engine
def test_an_aiter_with_another_signature_is_refused(tmp_path: Path) -> None:
    state, reason, foreign = report(tmp_path, "0.5.9", _OTHER_AITER, **{BACKEND: "aiter"})
    assert state == "failed" and "takes other parameters: qkv, out" in reason and "Use auto" in reason
    assert foreign is None, "a failed patch left something behind"


@pytest.mark.engine
def test_an_aiter_whose_op_fails_ends_the_first_call() -> None:
    """This aiter has the signature, and no body in the simulation."""
    done = run("0.5.9", *PYTEST, "-k", "without_any_change", **{BACKEND: "aiter"})
    assert done.returncode == 1 and "UnsuitableAiterError" in done.stdout and "Use auto" in done.stdout


@pytest.mark.engine
def test_off_takes_the_original() -> None:
    done = run("0.5.9", *PYTEST, "-k", "without_any_change", **{BACKEND: "off"})
    assert done.returncode == 1 and "the original was taken" in done.stdout, done.stdout[-3000:]


@pytest.mark.skipif(not RELEASES, reason="no real sglang release is here: run `make releases`")
@pytest.mark.parametrize("release", RELEASES)
def test_needed_until_upstream_fuses(release: str) -> None:
    (decision,) = make_plan(Registry((PATCH,)), DirectoryTree(RELEASES[release]), ROCM, {}).decisions
    needed = Version(release) < Version("0.5.10")
    assert decision.state is (State.PLANNED if needed else State.CONTAINED), decision.reason
    assert "fingerprint" not in decision.reason
