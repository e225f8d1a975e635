"""The workers that measure, from outside: with workers that tell what a real one would, and end in every way."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest

from overlay.errors import OverlayError
from overlay.verify.outcome import Device, Outcome, Result
from overlay.verify.request import Request
from overlay.verify.supervise import Supervisor
from tests.unit.engine_support import BETA_PATCH, PATCH, registry

BOTH = Request(("alpha", "beta"))
#: A worker of this file: what it does for each patch is written between the lines it tells.
_WORKER = """
import json, os, sys, time
ids = json.loads(sys.argv[1])["ids"]
def tell(what, **facts):
    sys.stdout.write(json.dumps({"what": what, **facts}) + "\\n")
    sys.stdout.flush()
DEVICE
for one in ids:
    tell("case", label="1 x 96", kernel="triton")
    ACTION
    tell("outcome", label="1 x 96", kernel="triton", share=0.5, graph="replayed")
    tell("done")
"""
_DEVICE = 'tell("device", sizes="a model", name="MI300X", arch="gfx942", interpreted=False, versions={})'
RIGHT = Outcome("1 x 96", "triton", share=0.5, graph="replayed")


def supervised(action: str, *, together: bool, device: str = _DEVICE, patience: float = 60) -> list[Result]:
    source = _WORKER.replace("DEVICE", device).replace("ACTION", action)
    supervisor = Supervisor(registry(PATCH, BETA_PATCH), (sys.executable, "-c", source), patience)
    results = list(supervisor.results(BOTH, together=together))
    assert supervisor.device == Device("MI300X", "gfx942", False, {})
    assert supervisor.sizes == "a model"
    return results


@pytest.mark.parametrize("together", [True, False])
def test_what_a_worker_tells_becomes_results(together: bool) -> None:
    assert supervised("pass", together=together) == [Result(PATCH, (RIGHT,)), Result(BETA_PATCH, (RIGHT,))]


@pytest.mark.parametrize(
    ("end", "why"),
    [
        ("os.abort()", "its process was ended by SIGABRT"),
        ("os._exit(7)", "its process ended with status 7"),
    ],
)
def test_a_kernel_that_ends_its_process_has_failed_and_no_other(end: str, why: str) -> None:
    """A memory fault on ROCm aborts."""
    alpha, beta = supervised(f"if one == 'alpha': {end}", together=False)
    assert alpha.outcomes == (Outcome("1 x 96", "triton", failure=why),)
    assert alpha.state == "failed"
    assert beta == Result(BETA_PATCH, (RIGHT,))


def test_in_one_process_the_rest_is_not_reached() -> None:
    alpha, beta = supervised("os._exit(7)", together=True)
    assert (alpha.state, beta.state) == ("failed", "not run")
    assert beta.problem == "not reached: its process ended with status 7"


def test_a_kernel_that_never_ends_has_failed() -> None:
    alpha, beta = supervised("if one == 'alpha': time.sleep(600)", together=False, patience=2)
    assert alpha.failures[0].failure == "nothing came of it in 2 s"
    assert beta.state == "passed"


def test_between_two_cases_no_kernel_is_blamed() -> None:
    ending = 'tell("outcome", label="1 x 96", kernel="triton"); os._exit(7)'
    (alpha, beta) = supervised(ending, together=False)
    assert (alpha.state, beta.state) == ("not run", "not run")
    assert alpha.problem == "its process ended with status 7"


def test_a_problem_is_passed_on() -> None:
    problem = 'tell("problem", why="no such op"); tell("done"); continue'
    assert [result.state for result in supervised(problem, together=False)] == ["not run", "not run"]


def test_an_error_of_the_users_is_raised() -> None:
    with pytest.raises(OverlayError, match="this torch sees no GPU"):
        supervised("pass", together=False, device='tell("error", why="this torch sees no GPU"); sys.exit()')


def test_a_worker_that_cannot_start_is_an_error() -> None:
    with pytest.raises(OverlayError, match="nothing could be measured: its process ended with status 3"):
        supervised("pass", together=False, device="sys.exit(3)")


def test_the_worker_is_asked_for_its_own_patches(tmp_path: Path) -> None:
    action = f"open({str(tmp_path / 'asked')!r}, 'a').write(sys.argv[1] + chr(10))"
    supervised(action, together=False)
    asked = [json.loads(line)["ids"] for line in (tmp_path / "asked").read_text().splitlines()]
    assert asked == [["alpha"], ["beta"]]
