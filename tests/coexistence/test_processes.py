"""The real releases, with all built-in patches applied and somebody else's code around every slot they fill."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from overlay.witness import SEAMS
from tests.releases import run_simulated

SCRIPT = Path(__file__).with_name("real_processes.py")


@pytest.mark.engine
@pytest.mark.parametrize("release", ["0.5.9", "0.5.23"])
def test_process_targets_are_pickled_and_hooked_patches_stay_applied(release: str) -> None:
    done = run_simulated(release, str(SCRIPT))
    lines = [line for line in done.stdout.splitlines() if line.startswith("FOUND ")]
    assert lines, done.stdout[-2000:] + done.stderr[-3000:]
    facts = json.loads(lines[0].removeprefix("FOUND "))
    assert facts["lost"] == []
    assert facts["patches"] and set(facts["patches"].values()) == {"applied"}, facts["patches"]
    assert facts["hooked"] == facts["slots"] >= len(facts["patches"])
    assert facts["watched"] == [str(seam.slot) for seam in SEAMS]
