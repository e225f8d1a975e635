"""--trust-version and --allow-drift: each stands for one missing proof and for no other, and every place says so."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

from overlay import render
from overlay.errors import MalformedSwitchError, UnknownPatchError
from overlay.model import ABSENT, Decision, Image, Patch, Slot, State, Variant
from overlay.plan import Plan, make_plan
from overlay.render_status import status_table
from overlay.source import DirectoryTree
from tests.unit.engine_support import (
    ABSENT_IMAGE,
    ALPHA,
    ALPHA_IMAGE,
    ALPHA_TEXT,
    BETA,
    BETA_IMAGE,
    BETA_PATCH,
    BETA_TEXT,
    PATCH,
    ROCM,
    registry,
    synthetic,
    variant,
    write_tree,
)
from tests.unit.scenarios import ACTIVATE, SHOW, Scenario

EDITED = ALPHA_TEXT.replace('"upstream"', '"edited"')
DRIFT = {"AMD_SGLANG_ALLOW_DRIFT": "alpha"}
BOTH = replace(PATCH, variants=(variant(ALPHA_IMAGE, BETA_IMAGE),))


def trust(version: str) -> dict[str, str]:
    return {"AMD_SGLANG_TRUST_VERSION": version}


def plan(root: Path, *patches: Patch, **environ: str) -> Plan:
    return make_plan(registry(*patches), DirectoryTree(root), ROCM, environ)


def first(root: Path, *patches: Patch, **environ: str) -> Decision:
    return plan(root, *patches, **environ).decisions[0]


@pytest.mark.parametrize(
    ("version", "declared", "state"),
    [
        ("0.5.6", "0.5.9", State.PLANNED),
        ("0.0.0.dev0", "0.5.6", State.UNSUPPORTED_VERSION),
        ("0.5.9", "0.5.6", State.UNSUPPORTED_VERSION),
        ("0.5.12.dev20260525+g1a2b3c4", "0.5.9.post1", State.PLANNED),
        ("", "0.5.11", State.PLANNED),
    ],
)
def test_a_declared_release_is_what_ranges_are_judged_by(
    tmp_path: Path, version: str, declared: str, state: State
) -> None:
    decision = first(synthetic(tmp_path, version), **trust(declared))
    assert decision.state is state
    assert f"{declared} by --trust-version (it calls itself {version or 'nothing'})" in decision.reason
    assert ("decided by fingerprint" in decision.reason) is (state is State.PLANNED)


@pytest.mark.parametrize("version", ["0.0.0.dev0", "0.5.9", "0.5.9+rocm700"])
def test_a_declared_release_is_no_fingerprint(tmp_path: Path, version: str) -> None:
    assert first(synthetic(tmp_path, version, alpha=EDITED), **trust("0.5.9")).state is State.SOURCE_MISMATCH


def test_a_release_that_is_declared_out_of_range_leaves_strict_a_server_to_start(tmp_path: Path) -> None:
    root = synthetic(tmp_path, "0.0.0.dev0", alpha=EDITED)
    assert first(root).state is State.SOURCE_MISMATCH
    assert first(root, **trust("0.5.6")).state is State.UNSUPPORTED_VERSION
    assert first(root, **trust("0.5.13")).state is State.UNSUPPORTED_VERSION


@pytest.mark.parametrize("text", ["main", "0.0.0", "0.5.9rc1", "0.5.9.dev3", "0.5.9+rocm700", "<0.5.9"])
def test_only_a_published_release_can_be_declared(tmp_path: Path, text: str) -> None:
    with pytest.raises(MalformedSwitchError, match="expected the version of a published release"):
        plan(synthetic(tmp_path), **trust(text))


@pytest.mark.parametrize("version", ["0.5.9", "0.5.9+rocm700", "0.0.0.dev0", "main"])
def test_drift_that_is_allowed_is_planned_and_says_so(tmp_path: Path, version: str) -> None:
    decision = first(synthetic(tmp_path, version, alpha=EDITED), BOTH, **DRIFT)
    assert decision.state is State.PLANNED
    assert decision.targets == BOTH.variants[0].targets
    assert f"[DRIFT allowed by --allow-drift: {ALPHA} is unknown code " in decision.reason
    assert decision.reason.endswith("; nearest known source is 'only']")


def test_drift_is_allowed_by_name_only(tmp_path: Path) -> None:
    edited_beta = BETA_TEXT.replace("upstream", "edited")
    made = plan(synthetic(tmp_path, alpha=EDITED, beta=edited_beta), PATCH, BETA_PATCH, **DRIFT)
    assert [decision.state for decision in made.decisions] == [State.PLANNED, State.SOURCE_MISMATCH]


def test_drift_changes_nothing_where_the_source_is_known(tmp_path: Path) -> None:
    root = synthetic(tmp_path)
    assert first(root, **DRIFT) == first(root)
    assert render.warnings(plan(root, **DRIFT)) == [
        "WARNING: --allow-drift changes nothing for alpha, which is planned"
    ]


@pytest.mark.parametrize("version", ["0.5.12", "0.5.13.dev5+g1a2b3c4", "0.5.6.dev1"])
def test_drift_does_not_stand_for_a_version_out_of_range(tmp_path: Path, version: str) -> None:
    root = synthetic(tmp_path, version, alpha=EDITED)
    decision = first(root, **DRIFT)
    assert decision.state is State.UNSUPPORTED_VERSION
    assert "--trust-version says which release this is made from" in decision.reason
    assert first(root, **DRIFT, **trust("0.5.9")).state is State.PLANNED


@pytest.mark.parametrize(
    ("alpha", "why"),
    [
        ("class Alpha: pass\n", "Alpha.forward is absent, which"),
        ("", "Alpha.forward is absent (no such class), which"),
        (ALPHA_TEXT + ALPHA_TEXT, "Alpha.forward is bound more than once, which"),
        ("class Alpha(", "Alpha.forward is unreadable, which"),
        ("from vllm import Alpha\n", "Alpha.forward is bound more than once, which"),
        (EDITED + "    def added(self): pass\n", "Alpha.added is unknown code "),
    ],
)
def test_drift_needs_a_slot_of_the_same_kind(tmp_path: Path, alpha: str, why: str) -> None:
    patch = replace(PATCH, variants=(variant(ALPHA_IMAGE, ABSENT_IMAGE),))
    decision = first(synthetic(tmp_path, alpha=alpha), patch, **DRIFT)
    assert decision.state is State.SOURCE_MISMATCH
    assert f"--allow-drift cannot help: sglang.srt.alpha:{why}" in decision.reason


def _variants(*counts: tuple[int, bool]) -> tuple[Variant, ...]:
    """Variants with three images each, `known` of which the synthetic tree has."""
    slots = [ALPHA, BETA, Slot("sglang.srt.beta", "missing")]
    known = [ALPHA_IMAGE, BETA_IMAGE, Image.of(slots[2], ABSENT)]
    return tuple(
        replace(
            variant(*(known[i] if i < count else Image.of(slots[i], "0" * 16) for i in range(2)), known[2]),
            name=f"v{at}",
            need=variant(needed=needed).need,
        )
        for at, (count, needed) in enumerate(counts)
    )


def test_the_nearest_variant_is_the_one_that_matches_most(tmp_path: Path) -> None:
    root = synthetic(tmp_path)
    decision = first(root, replace(PATCH, variants=_variants((0, True), (1, True))), **DRIFT)
    assert decision.variant is not None
    assert (decision.state, decision.variant.name) == (State.PLANNED, "v1")
    even = first(root, replace(PATCH, variants=_variants((1, True), (1, True))), **DRIFT)
    assert even.state is State.SOURCE_MISMATCH
    assert even.reason.endswith("[--allow-drift cannot help: it is as near to 'v0' as to 'v1']")
    contained = first(root, replace(PATCH, variants=_variants((0, True), (1, False))), **DRIFT)
    assert contained.state is State.SOURCE_MISMATCH
    assert contained.reason.endswith("the nearest known source, 'v1', needs no patch]")


def test_an_unknown_id_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(UnknownPatchError, match="'gamma' in AMD_SGLANG_ALLOW_DRIFT: known ids are alpha"):
        plan(synthetic(tmp_path), AMD_SGLANG_ALLOW_DRIFT="gamma")


def test_the_plan_records_both(tmp_path: Path) -> None:
    root = synthetic(tmp_path, "0.0.0.dev0", alpha=EDITED)
    made = plan(root, **DRIFT, **trust("0.5.9"))
    document = made.to_json()
    assert document["overrides"] == {"trust_version": "0.5.9", "allow_drift": ["alpha"]}
    assert json.loads(json.dumps(document))["patches"][0]["drifted"] == [str(ALPHA)]
    assert document["sglang"] == {"version": "0.0.0.dev0", "kind": "declared", "path": str(root / "sglang")}
    said = "\n".join(render.warnings(made))
    assert said in render.summary(made)
    assert f"WARNING: --allow-drift puts alpha on source that nobody has read: {ALPHA}" in said
    assert "WARNING: version ranges are judged for 0.5.9 by --trust-version (it calls itself 0.0.0.dev0)" in said


def test_the_digest_follows_both(tmp_path: Path) -> None:
    root = synthetic(tmp_path)
    digests = {plan(root, **environ).digest for environ in ({}, DRIFT, trust("0.5.9"), trust("0.5.8"))}
    assert len(digests) == 4
    assert not render.warnings(plan(root))


_FOREIGN = "import sglang.srt.alpha as m\nm.Alpha.forward = lambda self: 'foreign'\n"


@pytest.mark.parametrize(
    ("before", "environ", "alpha", "state"),
    [
        ("", {}, "edited", "source-mismatch"),
        ("", DRIFT, "patched", "applied"),
        (_FOREIGN, DRIFT, "foreign", "conflict"),
    ],
    ids=["not allowed", "allowed", "allowed, and something else holds the slot"],
)
def test_the_proof_at_run_time_is_made_for_drifted_source_as_well(
    scenario: Scenario, before: str, environ: dict[str, str], alpha: str, state: str
) -> None:
    write_tree(scenario.tree, {"sglang/srt/alpha.py": EDITED})
    ended = scenario("alpha", before + ACTIVATE + SHOW, **environ)
    assert json.loads(ended.out) == [alpha, "upstream"]
    assert ended.states()["alpha"][0] == state
    assert ("DRIFT allowed" in ended.states()["alpha"][1]) is (state == "applied")
    assert ended.processes[0]["overrides"] == {"trust_version": None, "allow_drift": ["alpha"] if environ else []}


def test_a_status_table_names_both() -> None:
    row = {
        "run": "r", "pid": 1, "role": "scheduler", "ranks": {}, "ready": True, "alive": True, "overlay": "0",
        "plan": "0" * 16, "sglang": {"version": "0.0.0.dev0"}, "patches": [],
        "platform": {"kind": "rocm", "arch": "gfx942", "simulated": False},
        "overrides": {"trust_version": "0.5.9", "allow_drift": ["alpha"]},
    }  # fmt: skip
    assert "plan 0000000000000000 | --trust-version 0.5.9 --allow-drift alpha" in status_table([row])
