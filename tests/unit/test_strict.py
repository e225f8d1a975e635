"""`--strict` at run time: a process that lacks a patch that was planned leaves with 3, and never serves."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.unit.engine_support import ALPHA_TEXT
from tests.unit.scenarios import ACTIVATE, ALPHA, SHOW, Scenario

TAKE = ALPHA + "sglang.srt.alpha.Alpha.forward = lambda self: 'theirs'\n"
SWALLOW = """
try:
    import sglang.srt.beta
    import sglang.srt.alpha
except Exception:
    print('swallowed')
"""


@pytest.mark.parametrize(
    ("patches", "code", "reason"),
    [
        ("raising", ACTIVATE + ALPHA + "import sglang.srt.beta\n", "failed and --strict forbids"),
        ("alpha", TAKE + ACTIVATE, "conflict and --strict forbids"),
        ("alpha", ACTIVATE + TAKE + "r.ready('scheduler', {})\n", "conflict and --strict forbids"),
        ("alpha", ACTIVATE + "import torch; torch.version.hip = None\n" + ALPHA, "unsupported-platform and --strict"),
        ("raising", ACTIVATE + SWALLOW, "failed and --strict forbids"),
    ],
    ids=["a make raises", "taken before", "taken afterwards", "not rocm", "inside try/except Exception"],
)
@pytest.mark.parametrize("strict", [True, False], ids=["strict", "lenient"])
def test_a_patch_that_cannot_be_applied_ends_a_strict_process(
    scenario: Scenario, patches: str, code: str, reason: str, strict: bool
) -> None:
    ended = scenario(patches, code + "print('serving')\n", AMD_SGLANG_STRICT="1" if strict else "0")
    assert ended.code == (3 if strict else 0), ended.err
    assert ended.out == ("" if strict else "serving\n")
    assert (f"alpha is {reason}" in ended.err) is strict
    assert ended.states()["alpha"][0] == reason.partition(" ")[0]


MANAGER = """
class Scheduler:
    def __init__(self):
        self.built = True
"""
STUBBORN = """
for attempt in range(3):
    try:
        import sglang.srt.beta, sglang.srt.alpha
    except BaseException as error:
        print(type(error).__name__)
from sglang.srt.managers.scheduler import Scheduler
Scheduler()
print('serving')
"""


def test_a_strict_exit_that_somebody_swallowed_comes_again_before_serving(scenario: Scenario) -> None:
    (scenario.tree / "sglang/srt/managers").mkdir()
    (scenario.tree / "sglang/srt/managers/scheduler.py").write_text(MANAGER)
    lenient = scenario("raising", ACTIVATE + STUBBORN)
    assert (lenient.code, lenient.out) == (0, "serving\n")
    ended = scenario("raising", ACTIVATE + STUBBORN, AMD_SGLANG_STRICT="1")
    assert (ended.code, ended.out) == (3, "SystemExit\n"), ended.err


def _edit(tree: Path) -> None:
    (tree / "sglang/srt/alpha.py").write_text(ALPHA_TEXT.replace('"upstream"', '"edited"'))


@pytest.mark.parametrize("strict", [True, False], ids=["strict", "lenient"])
def test_a_process_whose_own_plan_is_broken_does_not_serve_either(scenario: Scenario, strict: bool) -> None:
    _edit(scenario.tree)
    ended = scenario("alpha", ACTIVATE + SHOW, AMD_SGLANG_STRICT="1" if strict else "")
    assert (ended.code, "edited" in ended.out) == ((3, False) if strict else (0, True))
    assert "source-mismatch" in ended.err


@pytest.mark.parametrize("strict", [True, False], ids=["strict", "lenient"])
def test_a_process_with_another_plan_than_the_launcher_announced(scenario: Scenario, strict: bool) -> None:
    environ = {"AMD_SGLANG_PLAN": "0123456789abcdef", "AMD_SGLANG_STRICT": "1" if strict else ""}
    ended = scenario("alpha", ACTIVATE + SHOW, **environ)
    assert "the launcher announced 0123456789abcdef" in ended.err
    assert (ended.code, bool(ended.out)) == ((3, False) if strict else (0, True))


def test_a_strict_process_in_which_everything_is_applied_serves(scenario: Scenario) -> None:
    ended = scenario("alpha beta", ACTIVATE + SHOW + "r.ready('scheduler', {})\n", AMD_SGLANG_STRICT="1")
    assert (ended.code, ended.out) == (0, '["patched", "patched"]\n')
    assert {state for state, _ in ended.states().values()} == {"applied"}
