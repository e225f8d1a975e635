"""The table of behaviour: what it may hold, what the documents say of it, and the process that fills it."""

from __future__ import annotations

import ast
import xml.etree.ElementTree as ElementTree
from dataclasses import replace
from pathlib import Path

import pytest

from demo.steps import ProvisionError
from matrix import behaviour, behaviour_pages, behaviour_run, expected
from matrix.__main__ import main
from matrix.behaviour import Cell, Seen, dumps, loads, merged, planned, rows
from matrix.behaviour_run import Verdict
from overlay.model import Image, Slot
from overlay.registry import Registry, builtin
from tests.patches.checks import AITER, CHECKS, DEEPSEEK_V4, IN_RELEASE, Setting, checks_for
from tests.releases import environment
from tests.unit.engine_support import PATCH, python, synthetic, variant, write_tree

DONE = Cell(Seen.YES, Seen.YES, Seen.YES)
FAILED = Cell(Seen.YES, Seen.NO, Seen.YES, "check: 1 of 3 failed")
WANTED = {"alpha": ("0.5.8", "0.5.9", "0.5.10"), "beta": ("0.5.10",)}


class TestTheCommittedTable:
    def test_names_only_what_is_planned(self) -> None:
        registry, expectation = builtin(), expected.read()
        table = behaviour.read(registry, expectation)
        assert table and behaviour.FILE.read_text() == dumps(table), "written by hand: run `make behaviour`"

    def test_every_patch_on_every_release_has_a_check_of_its_behaviour(self) -> None:
        wanted = planned(builtin(), expected.read())
        without = {
            f"{patch_id} on {release}"
            for patch_id, releases in wanted.items()
            for release in releases
            if not any(patch_id in check.patches for check in checks_for(release))
        }
        assert not without, "add a row to tests/patches/checks.py"

    def test_every_check_is_there_and_is_for_a_patch_of_ours(self) -> None:
        assert {check.file for check in CHECKS} <= {path.name for path in IN_RELEASE.glob("check_*.py")}
        assert {patch_id for check in CHECKS for patch_id in check.patches} <= set(builtin().ids)


class TestTheFile:
    def test_holds_what_was_written(self) -> None:
        table = {"alpha": {"0.5.8": DONE, "0.5.9": replace(FAILED, note='a "quoted" | note')}, "beta": {"0.5.10": DONE}}
        assert loads(dumps(table), WANTED) == table

    @pytest.mark.parametrize(("patch_id", "release"), [("gone", "0.5.9"), ("alpha", "0.5.99"), ("beta", "0.5.9")])
    def test_nothing_stale(self, patch_id: str, release: str) -> None:
        with pytest.raises(ProvisionError, match=f"{patch_id} on {release}, where no such patch is planned: delete"):
            loads(dumps({patch_id: {release: DONE}}), WANTED)

    @pytest.mark.parametrize(
        ("row", "why"),
        [
            ('installs = "maybe"', "'maybe' is not a valid Seen"),
            ('instals = "yes"', "unexpected keyword argument 'instals'"),
            ('installs = "yes", behaves = "no", uninstalls = "yes"', "no `note` says why"),
            ('installs = "yes", behaves = "yes"', "no `note` says why"),
        ],
    )
    def test_nothing_malformed(self, row: str, why: str) -> None:
        with pytest.raises(ProvisionError, match=f"alpha on 0.5.9.*{why}"):
            loads(f'[alpha]\n"0.5.9" = {{ {row} }}\n', WANTED)

    def test_what_was_run_again_replaces_what_was_seen_before(self) -> None:
        before = {"alpha": {"0.5.10": FAILED, "0.5.9": DONE}, "gone": {"0.5.9": DONE}}
        now = merged(before, {"alpha": {"0.5.8": DONE, "0.5.10": DONE}}, WANTED)
        assert list(now["alpha"].items()) == [("0.5.8", DONE), ("0.5.9", DONE), ("0.5.10", DONE)]
        assert list(now) == ["alpha"]


class TestThePages:
    def test_what_was_not_run_is_never_a_pass(self) -> None:
        table = {"alpha": {"0.5.8": DONE, "0.5.9": FAILED}}
        page = behaviour_pages.overview(table, {**WANTED, "gamma": ()}, ("0.5.7", "0.5.8", "0.5.9", "0.5.10"))
        assert "| [alpha](#alpha) |  | Y | N | ? |" in page
        assert "| [beta](#beta) |  |  |  | ? |" in page
        assert "gamma" not in page
        assert "2 of 4 were run, 1 are as they have to be." in page

    @pytest.mark.parametrize(
        ("cell", "letter"),
        [
            (DONE, "Y"),
            (FAILED, "N"),
            (Cell(), "?"),
            (Cell(Seen.YES, Seen.YES, Seen.NO_IMPORT), "x"),
            (Cell(Seen.YES, Seen.NOT_RUN, Seen.YES), "?"),
            (Cell(Seen.NO_IMPORT, Seen.NO, Seen.NOT_RUN), "N"),
        ],
    )
    def test_a_letter_is_the_worst_of_three_steps(self, cell: Cell, letter: str) -> None:
        assert behaviour_pages.letter(cell) == letter

    def test_neighbours_that_saw_the_same_share_a_row(self) -> None:
        seen = {"0.5.8": DONE, "0.5.9": DONE}
        assert list(rows(seen, WANTED["alpha"])) == [("0.5.8 to 0.5.9", DONE), ("0.5.10", Cell())]

    def test_a_patch_of_another_distribution_has_no_releases(self) -> None:
        elsewhere = replace(PATCH, variants=(variant(Image.of(Slot("aiter.ops.gemm", "f"), "0" * 16)),))
        assert planned(Registry([elsewhere]), expected.read()) == {}


_JUNIT = """<testsuites><testsuite>
<testcase classname="tests.patches.in_release.check_a.TestOne" name="good"/>
<testcase classname="tests.patches.in_release.check_a" name="bad">
  <failure message="AssertionError: 1 != 2">x</failure></testcase>
<testcase classname="tests.patches.in_release.check_a" name="broken"><error message="no model">x</error></testcase>
<testcase classname="tests.patches.in_release.check_b" name="good"/>
<testcase classname="tests.patches.in_release.check_c" name="left out"><skipped/></testcase>
<testcase classname="" name="in_release.check_d"><error message="gone">x</error></testcase>
</testsuite></testsuites>"""


@pytest.mark.parametrize(
    ("file", "behaves", "note"),
    [
        ("check_a.py", Seen.NO, "1 of 3 checks failed, such as bad: AssertionError: 1 != 2"),
        ("check_b.py", Seen.YES, ""),
        ("check_c.py", Seen.NOT_RUN, "no check ran: killed"),
        (
            "check_d.py",
            Seen.NOT_RUN,
            "1 of 1 checks could not be set up, such as in_release.check_d: gone",
        ),
        ("check_never_reached.py", Seen.NOT_RUN, "no check ran: killed"),
    ],
)
def test_a_check_passes_only_if_its_own_tests_ran_and_passed(file: str, behaves: Seen, note: str) -> None:
    cases = [case for case in ElementTree.fromstring(_JUNIT).iter("testcase") if behaviour_run.file_of(case) == file]
    assert behaviour_run.verdict(cases, "killed") == Verdict(behaves, note)


@pytest.mark.engine
@pytest.mark.parametrize(("release", "setting"), [("0.5.9", AITER), ("0.5.23", DEEPSEEK_V4)])
def test_what_is_installed_is_taken_out_again(release: str, setting: Setting) -> None:
    wanted = planned(builtin(), expected.read())
    ids = {one for check in checks_for(release) if check.setting == setting for one in check.patches}
    here = sorted(one for one in ids if release in wanted[one])
    assert len(here) >= 4
    seen = behaviour_run.take_out(environment(release)["PYTHONPATH"], setting, [*here, "fix-aiter-semaphore"])
    elsewhere = seen.pop("fix-aiter-semaphore")
    assert elsewhere.installs is Seen.NO and elsewhere.note.startswith("contained: ")
    assert seen == dict.fromkeys(here, Cell(installs=Seen.YES, uninstalls=Seen.YES))


_LEFT_BEHIND = """
from tests.patches.in_release import take_out
from tests.unit.process_support import activate
overlay = activate()
{break_it}
print(take_out.take_out(overlay, ["alpha", "beta"]))
"""


@pytest.mark.parametrize(
    ("break_it", "alpha"),
    [
        ("", {"installs": True, "uninstalls": True, "reason": ""}),
        (
            "overlay.ledger.uninstall = lambda key: None",
            {"installs": True, "uninstalls": False, "reason": "sglang.srt.alpha:Alpha.forward holds"},
        ),
        (
            "import sys; sys.modules['sglang.srt.alpha'] = None",
            {"installs": None, "uninstalls": None, "reason": "sglang.srt.alpha: ModuleNotFoundError"},
        ),
        (
            "import sglang.srt.alpha as a; overlay.uninstall('alpha')",
            {"installs": False, "uninstalls": None, "reason": "rolled-back: uninstalled"},
        ),
    ],
    ids=["clean", "left behind", "not importable", "not applied"],
)
def test_what_taking_out_tells(tmp_path: Path, break_it: str, alpha: dict[str, object]) -> None:
    tree = write_tree(synthetic(tmp_path), {"torch/__init__.py": "from torch import version\nTensor = object\n"})
    ended = python("-c", _LEFT_BEHIND.format(break_it=break_it), path=(tree,), environ={"PATCHES": "alpha beta"})
    assert ended.code == 0, ended.err
    rows = ast.literal_eval(ended.out)
    assert str(rows["alpha"].pop("reason")).startswith(str(alpha.pop("reason")))
    assert rows["alpha"] == alpha
    if alpha["uninstalls"]:
        assert rows["beta"] == rows["alpha"] | {"reason": ""}


PASSED, MISSED = Verdict(Seen.YES), Verdict(Seen.NO, "1 of 2 checks failed")


@pytest.mark.parametrize(
    ("taken", "checked", "steps"),
    [
        (Cell(Seen.YES, uninstalls=Seen.YES), PASSED, "yes yes yes"),
        (Cell(Seen.YES, uninstalls=Seen.YES), MISSED, "yes no yes"),
        (Cell(Seen.YES, uninstalls=Seen.YES), Verdict(Seen.NOT_RUN, "no check ran"), "yes not run yes"),
        (Cell(Seen.NO, uninstalls=Seen.NOT_RUN, note="why"), PASSED, "no yes not run"),
        (Cell(Seen.NO_IMPORT, uninstalls=Seen.NO_IMPORT, note="why"), PASSED, "yes yes cannot be imported here"),
        (Cell(note="it could not be tried"), PASSED, "yes yes not run"),
        (Cell(note="it could not be tried"), MISSED, "not run no not run"),
    ],
)
def test_a_check_that_passes_has_seen_its_patch_applied(taken: Cell, checked: Verdict, steps: str) -> None:
    cell = behaviour_run.joined(taken, checked)
    assert " ".join(step.value for step in cell.steps) == steps
    assert cell.passed or cell.note


def test_a_release_that_cannot_be_imported_is_no_failure_of_the_patch() -> None:
    taken = Cell(Seen.NO_IMPORT, uninstalls=Seen.NO_IMPORT, note="sglang.srt.x: ImportError: flash_mla")
    assert set(behaviour_run.joined(taken, MISSED).steps) == {Seen.NO_IMPORT}


@pytest.mark.parametrize(
    ("options", "why"),
    [
        (["--release", "0.4.9"], "--release 0.4.9 is not one of 0.5.6.post2"),
        (["--patch", "gemma"], "--patch gemma is not one of gemma-rmsnorm"),
    ],
)
def test_what_nobody_planned_cannot_be_run(capsys: pytest.CaptureFixture[str], options: list[str], why: str) -> None:
    assert main(["behaviour", *options]) == 2
    assert why in capsys.readouterr().err


def test_a_selection_goes_with_behaviour_only(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["check", "--release", "0.5.9"])
    assert "go with behaviour" in capsys.readouterr().err
