"""The denylist: what is written, what is read, and what every process makes of it."""

from __future__ import annotations

import json
import os
from dataclasses import asdict, replace
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from overlay import commands, denylist
from overlay.denylist import Entry
from overlay.errors import OverlayError
from overlay.model import State
from overlay.plan import Plan, make_plan
from overlay.platform import Platform
from overlay.source import DirectoryTree
from tests.unit.engine_support import BETA_PATCH, PATCH, ROCM, python, registry, synthetic, variant

ALPHA = Entry(
    "alpha", "gfx942", False, "3 x 96: y is off by inf (ulps), bound 1", "2026-11-22T21:00:00+00:00", {"torch": "2.9"}
)
BETA = replace(ALPHA, patch="beta")


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "state" / "amd-sglang" / "denylist.json"


def plan(root: Path, path: Path, platform: Platform = ROCM, **environ: str) -> Plan:
    """As the launcher makes it, and then every process that inherits its environment."""
    environ = denylist.handing_over({"AMD_SGLANG_DENYLIST": str(path), **environ}, platform)
    return make_plan(registry(PATCH, BETA_PATCH), DirectoryTree(synthetic(root)), platform, environ)


def states(made: Plan) -> list[State]:
    return [decision.state for decision in made.decisions]


def test_what_is_denied_is_not_planned_and_the_plan_says_why(tmp_path: Path, path: Path) -> None:
    before = plan(tmp_path, path)
    denylist.deny(path, (ALPHA,))
    after = plan(tmp_path, path)
    assert states(before) == [State.PLANNED, State.PLANNED]
    assert states(after) == [State.DISABLED, State.PLANNED]
    assert after.decisions[0].reason == (
        "verify found its kernel wrong on gfx942 on 2026-11-22: 3 x 96: y is off by inf (ulps), bound 1; "
        "`amd-sglang verify --clear alpha` lifts it"
    )
    assert after.digest != before.digest


def test_a_cleared_patch_is_planned_again(tmp_path: Path, path: Path) -> None:
    denylist.deny(path, (ALPHA, BETA))
    assert denylist.clear(path, ("alpha",)) == (ALPHA,)
    assert states(plan(tmp_path, path)) == [State.PLANNED, State.DISABLED]
    assert denylist.clear(path, ("alpha",)) == ()


@pytest.mark.parametrize(
    ("entry", "platform", "concerned"),
    [
        (ALPHA, ROCM, True),
        (ALPHA, Platform("rocm", "gfx950"), False),
        # Without /sys nobody knows which GPU this is: better without the patch than with a wrong answer.
        (ALPHA, Platform("rocm", None), True),
        (ALPHA, replace(ROCM, simulated=True), False),
        (replace(ALPHA, simulated=True), ROCM, False),
        (replace(ALPHA, simulated=True), replace(ROCM, simulated=True), True),
        (ALPHA, Platform("cuda", None), False),
    ],
)
def test_an_entry_concerns_the_gpu_it_was_found_on(
    path: Path, entry: Entry, platform: Platform, concerned: bool
) -> None:
    denylist.deny(path, (entry,))
    assert bool(denylist.on({"AMD_SGLANG_DENYLIST": str(path)}, platform)) is concerned


def test_a_patch_that_would_not_be_applied_keeps_its_own_reason(tmp_path: Path, path: Path) -> None:
    denylist.deny(path, (ALPHA,))
    has_it = replace(PATCH, variants=(variant(*PATCH.variants[0].images, needed=False),))
    environ = denylist.handing_over({"AMD_SGLANG_DENYLIST": str(path)}, ROCM)
    tree = DirectoryTree(synthetic(tmp_path))
    assert states(make_plan(registry(has_it), tree, ROCM, environ)) == [State.CONTAINED]
    environ["AMD_SGLANG_DISABLE"] = "alpha"
    assert "switched off by --disable" in make_plan(registry(PATCH), tree, ROCM, environ).decisions[0].reason


def test_what_requires_a_denied_patch_goes_with_it(tmp_path: Path, path: Path) -> None:
    denylist.deny(path, (ALPHA,))
    environ = denylist.handing_over({"AMD_SGLANG_DENYLIST": str(path)}, ROCM)
    needs = replace(BETA_PATCH, requires=("alpha",))
    made = make_plan(registry(PATCH, needs), DirectoryTree(synthetic(tmp_path)), ROCM, environ)
    assert made.decisions[1].reason == "requires alpha, which is disabled"


def test_a_denied_patch_cannot_be_enabled_by_name(tmp_path: Path, path: Path) -> None:
    denylist.deny(path, (ALPHA,))
    with pytest.raises(OverlayError, match=r"alpha is enabled by name, and denied: .*--clear alpha"):
        plan(tmp_path, path, AMD_SGLANG_ENABLE="alpha")


def test_nothing_is_handed_over_that_the_file_does_not_hold(path: Path) -> None:
    """A launch below a launched process reads the file anew."""
    denylist.deny(path, (ALPHA,))
    first = denylist.handing_over({"AMD_SGLANG_DENYLIST": str(path)}, ROCM)
    assert list(denylist.handed_over(first)) == ["alpha"]
    denylist.clear(path, ("alpha",))
    assert denylist.handing_over(first, ROCM) == {"AMD_SGLANG_DENYLIST": str(path)}


@pytest.mark.parametrize("text", ["1", "alpha", '{"alpha": 1}', '["alpha"]'])
def test_what_no_launcher_wrote_is_an_error(text: str) -> None:
    with pytest.raises(OverlayError, match=r"AMD_SGLANG_DENIED=.* is not valid"):
        denylist.handed_over({"AMD_SGLANG_DENIED": text})


def test_an_older_entry_of_the_same_gpu_is_replaced(path: Path) -> None:
    other = replace(ALPHA, arch="gfx950")
    denylist.deny(path, (ALPHA, other))
    newer = replace(ALPHA, found="2026-12-01T00:00:00+00:00")
    denylist.deny(path, (newer,))
    assert denylist.read(path) == (other, newer)


def test_the_file_and_its_folder_are_the_users_alone(path: Path) -> None:
    denylist.deny(path, (ALPHA,))
    assert path.stat().st_mode & 0o777 == 0o600
    assert path.parent.stat().st_mode & 0o777 == 0o700
    assert [one.name for one in path.parent.iterdir()] == [path.name]


@pytest.mark.parametrize(
    ("environ", "expected"),
    [
        ({"AMD_SGLANG_DENYLIST": "/a/b.json", "XDG_STATE_HOME": "/state"}, "/a/b.json"),
        ({"XDG_STATE_HOME": "/state"}, "/state/amd-sglang/denylist.json"),
        ({"XDG_STATE_HOME": "relative"}, "~/.local/state/amd-sglang/denylist.json"),
        ({}, "~/.local/state/amd-sglang/denylist.json"),
    ],
)
def test_where_the_file_is(environ: dict[str, str], expected: str) -> None:
    assert str(denylist.path_of(environ)) == os.path.expanduser(expected)


ENTRY = asdict(ALPHA)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ('{"schema": 1,\n "denied": [\n  oops]}', ", line 3: Expecting value"),
        ("[]", ": it is no denylist of schema 1"),
        (json.dumps({"schema": 2, "denied": []}), ": it is no denylist of schema 1"),
        (json.dumps({"schema": 1}), ": 'denied' is missing or no list"),
        (json.dumps({"schema": 1, "denied": [ENTRY, "x"]}), ": entry 2 has not exactly the keys patch, arch,"),
        (json.dumps({"schema": 1, "denied": [{**ENTRY, "more": 1}]}), ": entry 1 has not exactly the keys"),
        (json.dumps({"schema": 1, "denied": [{**ENTRY, "arch": 942}]}), ": 'arch' of entry 1 is 942: expected str"),
        ("[" * 100_000, ": "),
    ],
)
def test_a_malformed_file_stops_a_launch_and_says_where_it_is_wrong(path: Path, text: str, said: str) -> None:
    path.parent.mkdir(parents=True)
    path.write_text(text)
    with pytest.raises(OverlayError) as caught:
        denylist.handing_over({"AMD_SGLANG_DENYLIST": str(path)}, ROCM)
    assert f"the denylist {path}{said}" in str(caught.value)
    assert "`amd-sglang verify --clear`" in str(caught.value)


def test_a_link_is_not_followed(path: Path, tmp_path: Path) -> None:
    path.parent.mkdir(parents=True)
    path.symlink_to(tmp_path / "elsewhere.json")
    with pytest.raises(OverlayError, match=r"cannot be trusted: it is a symbolic link. Remove it"):
        denylist.read(path)


@pytest.mark.parametrize(
    "change", [lambda path: denylist.deny(path, (ALPHA,)), lambda path: denylist.clear(path, ("alpha",))]
)
def test_a_file_that_cannot_be_written_is_an_error(path: Path, change: object) -> None:
    """Its folder is a file: also root cannot write there."""
    path.parent.parent.mkdir(parents=True)
    path.parent.write_text("")
    assert callable(change)
    with pytest.raises(OverlayError, match=r"denylist .*(cannot be written|cannot be trusted).*AMD_SGLANG_DENYLIST"):
        change(path)


NORM = replace(ALPHA, patch="gemma-rmsnorm", simulated=True)


def invoke(*arguments: str, path: Path, simulate: str | None = None) -> Result:
    environ = {"AMD_SGLANG_DENYLIST": str(path), "AMD_SGLANG_SIMULATE": simulate}
    return CliRunner().invoke(commands.main, arguments, env=environ)


def test_the_list_of_patches_says_which_are_denied(path: Path) -> None:
    denylist.deny(path, (NORM,))
    for simulate, said in (("gfx942", str(NORM)), ("gfx950", None)):
        listed = json.loads(invoke("patches", "list", "--json", path=path, simulate=simulate).output)["patches"]
        denied = {patch["id"]: patch["denied"] for patch in listed}
        assert denied.pop("gemma-rmsnorm") == said
        assert set(denied.values()) == {None}
    text = " ".join(invoke("patches", "list", path=path, simulate="gfx942").output.split())
    assert "gemma-rmsnorm denied" in text
    assert str(NORM) in text


def test_the_doctor_says_what_is_denied_and_what_stands_in_the_way(path: Path, tmp_path: Path) -> None:
    denylist.deny(path, (NORM,))
    environ = {"AMD_SGLANG_DENYLIST": str(path), "AMD_SGLANG_SIMULATE": "gfx942"}
    tree = synthetic(tmp_path / "tree")
    found = []
    for _ in range(2):
        ended = python("-m", "launcher", "doctor", "--json", path=(tree,), environ=environ)
        found += [f for f in json.loads(ended.out)["findings"] if f["id"] == "denylist"]
        path.write_text("{")
    assert [finding["level"] for finding in found] == ["warning", "error"]
    assert str(NORM) in found[0]["message"]
    assert f"{path}, line 1" in found[1]["message"]


def test_a_launch_says_which_entries_it_does_not_know(path: Path, tmp_path: Path) -> None:
    denylist.deny(path, (NORM, replace(NORM, patch="from-a-pack")))
    tree = synthetic(tmp_path / "tree")
    launch = ("-m", "launcher", "launch", "--dry-run")
    environ = {"AMD_SGLANG_DENYLIST": str(path), "AMD_SGLANG_SIMULATE": "gfx942", "AMD_SGLANG_DENIED": "stale"}
    ended = python(*launch, path=(tree,), environ=environ)
    assert ended.code == 0, ended.err
    assert f"the denylist {path} names from-a-pack, which is no patch here: ignored" in ended.err
    path.write_text("{")
    refused = python(*launch, path=(tree,), environ=environ)
    assert refused.code == 2
    assert f"the denylist {path}, line 1" in refused.err


def test_clearing_by_name_and_altogether(path: Path) -> None:
    denylist.deny(path, (replace(ALPHA, patch="gemma-rmsnorm"), replace(ALPHA, patch="from-a-pack"), BETA))
    one = invoke("verify", "--clear", "gemma-rmsnorm", "from-a-pack", "greedy-sampler", path=path)
    assert one.exit_code == 0
    assert one.output.splitlines() == [
        "gemma-rmsnorm is no longer denied on gfx942",
        "from-a-pack is no longer denied on gfx942",
        "greedy-sampler was not denied",
    ]
    assert denylist.read(path) == (BETA,)
    unknown = invoke("verify", "--clear", "gemma-norm", path=path)
    assert unknown.exit_code == 2
    assert "unknown patch id 'gemma-norm'" in unknown.output
    path.write_text("no JSON")
    assert invoke("verify", "--clear", path=path).exit_code == 0
    assert denylist.read(path) == ()
