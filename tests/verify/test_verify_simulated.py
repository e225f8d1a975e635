"""`amd-sglang verify` in the simulated ROCm: every kernel in the interpreter, and what comes of a wrong one."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from overlay import denylist
from overlay.verify.request import Request
from tests.releases import environment

RELEASE = "0.5.9"
CONFIG = {"model_type": "gemma2", "hidden_size": 64, "num_attention_heads": 2, "head_dim": 64, "vocab_size": 77}


def run(*command: str, **environ: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, *command],
        env={**environment(RELEASE), **environ},
        capture_output=True,
        text=True,
        timeout=300,
    )


def amd_sglang(*arguments: str, **environ: str) -> subprocess.CompletedProcess[str]:
    return run("-m", "launcher", *arguments, **environ)


@pytest.fixture
def environ(tmp_path: Path) -> dict[str, str]:
    return {"AMD_SGLANG_DENYLIST": str(tmp_path / "state" / "denylist.json"), "AMD_SGLANG_RUN_DIR": str(tmp_path)}


def plan_of(simulate: bool, **environ: str) -> dict[str, dict[str, Any]]:
    """The patches of `patches plan` for 0.5.9 on this GPU, by id."""
    how = {"AMD_SGLANG_SIMULATE": "gfx942"} if simulate else {}
    on = [] if simulate else ["--platform", "rocm", "--arch", "gfx942"]
    done = amd_sglang("patches", "plan", "--json", *on, **environ, **how)
    assert done.returncode == 0, done.stderr
    return {patch["id"]: patch for patch in json.loads(done.stdout)["patches"]}


def test_every_kernel_keeps_its_promise_in_the_interpreter(tmp_path: Path, environ: dict[str, str]) -> None:
    done = amd_sglang("verify", "--unplanned", "--simulate", "gfx950", "--json", **environ)
    assert done.returncode == 0, done.stderr + done.stdout
    document = json.loads(done.stdout)
    assert document["device"]["arch"] == "gfx950" and document["device"]["interpreted"]
    states = {patch["id"]: patch["state"] for patch in document["patches"]}
    assert states == dict.fromkeys(
        (
            *("gemma-rmsnorm", "qwen3-fused-attention", "greedy-sampler", "fix-aiter-greedy-sample"),
            *("dsv4-fused-mhc", "dsv4-nosplitk-decode"),
        ),
        "passed",
    )
    cases = [case for patch in document["patches"] for case in patch["cases"]]
    assert all(case["taken"] and case["kernel"] == "triton" for case in cases)
    assert {case["graph"] for case in cases} == {"not captured: no graphs"}
    assert {case["timing"] for case in cases} == {"not timed: interpreter"}
    assert not Path(environ["AMD_SGLANG_DENYLIST"]).exists()


def test_a_wrong_kernel_is_named_and_denied_until_it_is_cleared(tmp_path: Path, environ: dict[str, str]) -> None:
    ids = ("gemma-rmsnorm", "qwen3-fused-attention", "greedy-sampler")
    broken = Path(__file__).with_name("sabotaged.py")
    argument = Request(ids).arguments()[-1]
    failed = run("-m", "overlay", "--simulate", "gfx942", str(broken), argument, **environ)
    assert failed.returncode == 1, failed.stderr
    reasons = {entry.patch: entry.reason for entry in denylist.read(Path(environ["AMD_SGLANG_DENYLIST"]))}
    assert reasons.keys() == set(ids)
    assert "192 elements are NaN or were never written" in reasons["gemma-rmsnorm"]
    assert "a token is off by 1 (mismatches), bound 0" in reasons["greedy-sampler"]
    assert "RuntimeError: no kernel image is available" in reasons["qwen3-fused-attention"]
    for one in ids:
        assert f"{one} is denied on simulated gfx942 from now on" in failed.stdout

    # The next launch there goes without them, a launch on the real GPU does not know of them.
    dry = amd_sglang("launch", "--simulate", "gfx942", "--dry-run", **environ)
    assert dry.returncode == 0, dry.stderr
    assert dry.stderr.count("verify found its kernel wrong on simulated gfx942") == len(ids)
    assert "AMD_SGLANG_DENIED=" in dry.stdout
    simulated, real = plan_of(True, **environ), plan_of(False, **environ)
    assert {simulated[one]["state"] for one in ids} == {"disabled"}
    assert {real[one]["state"] for one in ids} == {"planned"}
    enabled = amd_sglang("launch", "--simulate", "gfx942", "--dry-run", "--enable", "greedy-sampler", **environ)
    assert enabled.returncode == 2
    assert "greedy-sampler is enabled by name, and denied: verify found its kernel wrong" in enabled.stderr

    # Verified again with what is right, over a model's own sizes: it passes, and that alone lifts nothing.
    (tmp_path / "config.json").write_text(json.dumps(CONFIG))
    sizes = ("--model-path", str(tmp_path))
    below_a_launch = {**environ, "AMD_SGLANG_DENIED": json.dumps({"gemma-rmsnorm": "handed over"})}
    again = amd_sglang("verify", "--simulate", "gfx942", *sizes, "gemma-rmsnorm", "greedy-sampler", **below_a_launch)
    assert again.returncode == 0, again.stderr + again.stdout
    assert "residual, 3 x 64 bfloat16" in again.stdout and "3 x 77 float32" in again.stdout
    assert "not timed: interpreter" in again.stdout and "not captured: no graphs" in again.stdout
    assert "gemma-rmsnorm has passed, and is still denied" in again.stdout
    assert amd_sglang("verify", "--clear", "gemma-rmsnorm", **environ).returncode == 0
    cleared = plan_of(True, **environ)
    assert [cleared[one]["state"] for one in ids] == ["planned", "disabled", "disabled"]
