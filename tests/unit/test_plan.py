"""The decision: every state with its reason, from small trees. Pure, and the same wherever it is made."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

from overlay.errors import MalformedSwitchError, OverlayError, UnknownPatchError
from overlay.gates import Gate, OneOf
from overlay.model import Decision, Image, Need, Patch, State
from overlay.plan import Plan, make_plan
from overlay.platform import Platform
from overlay.source import DirectoryTree
from tests.unit.engine_support import (
    ABSENT_IMAGE,
    ALPHA,
    ALPHA_IMAGE,
    ALPHA_TEXT,
    BETA_IMAGE,
    BETA_PATCH,
    PATCH,
    ROCM,
    digest_of,
    registry,
    synthetic,
    variant,
    write_tree,
)

EDITED = ALPHA_TEXT.replace('"upstream"', '"edited"')


def plan(root: Path, *patches: Patch, platform: Platform = ROCM, environ: dict[str, str] | None = None) -> Plan:
    return make_plan(registry(*patches), DirectoryTree(root), platform, environ or {})


def last(root: Path, *patches: Patch, platform: Platform = ROCM, environ: dict[str, str] | None = None) -> Decision:
    return plan(root, *patches, platform=platform, environ=environ).decisions[-1]


def test_a_known_source_in_range_is_planned(tmp_path: Path) -> None:
    decision = last(synthetic(tmp_path))
    assert (decision.state, decision.reason) == (State.PLANNED, "needed here")
    assert decision.targets == PATCH.variants[0].targets
    assert [(r.slot, r.observed in ALPHA_IMAGE.digests) for r in decision.slots] == [(ALPHA, True)]


def test_a_known_source_that_has_it_is_contained(tmp_path: Path) -> None:
    patch = replace(PATCH, variants=(variant(ALPHA_IMAGE, needed=False),))
    assert (last(synthetic(tmp_path), patch).state) is State.CONTAINED


def test_a_variant_is_recognised_only_if_all_its_images_match(tmp_path: Path) -> None:
    partly = variant(ALPHA_IMAGE, replace(BETA_IMAGE, digests=frozenset({"0" * 16})), name="partly")
    wholly = variant(ALPHA_IMAGE, BETA_IMAGE, ABSENT_IMAGE, name="wholly")
    decision = last(synthetic(tmp_path), replace(PATCH, variants=(partly, wholly)))
    assert decision.variant is wholly


@pytest.mark.parametrize(
    ("patch", "environ", "reason"),
    [
        (PATCH, {"AMD_SGLANG_DISABLE": "alpha"}, "switched off by --disable or AMD_SGLANG_DISABLE"),
        (replace(PATCH, default_on=False), {}, "off by default: switch it on with --enable alpha"),
    ],
)
def test_disabled(tmp_path: Path, patch: Patch, environ: dict[str, str], reason: str) -> None:
    decision = last(synthetic(tmp_path), patch, environ=environ)
    assert decision.state is State.DISABLED
    assert decision.reason.startswith(reason)


def test_enabled_and_disabled_at_once_is_an_error(tmp_path: Path) -> None:
    both = {"AMD_SGLANG_DISABLE": "alpha", "AMD_SGLANG_ENABLE": "alpha"}
    with pytest.raises(OverlayError, match="alpha is both enabled and disabled"):
        last(synthetic(tmp_path), PATCH, environ=both)


def test_enabled_by_name(tmp_path: Path) -> None:
    off = replace(PATCH, default_on=False)
    assert last(synthetic(tmp_path), off, environ={"AMD_SGLANG_ENABLE": "alpha"}).state is State.PLANNED


def test_a_requirement_that_is_not_met_disables(tmp_path: Path) -> None:
    needs = replace(BETA_PATCH, requires=("alpha",))
    root = synthetic(tmp_path)
    assert last(root, PATCH, needs).state is State.PLANNED
    has_it = replace(PATCH, variants=(variant(ALPHA_IMAGE, needed=False),))
    assert last(root, has_it, needs).state is State.PLANNED
    decision = last(root, PATCH, needs, environ={"AMD_SGLANG_DISABLE": "alpha"})
    assert (decision.state, decision.reason) == (State.DISABLED, "requires alpha, which is disabled")


@pytest.mark.parametrize("declared_by_the_first", [True, False])
def test_the_second_of_two_that_exclude_each_other_is_a_conflict(tmp_path: Path, declared_by_the_first: bool) -> None:
    first = replace(PATCH, conflicts=("beta",) if declared_by_the_first else ())
    second = replace(BETA_PATCH, conflicts=() if declared_by_the_first else ("alpha",))
    root = synthetic(tmp_path)
    decision = last(root, first, second)
    assert (decision.state, decision.reason) == (State.CONFLICT, "excludes alpha, which is planned")
    assert last(root, first, second, environ={"AMD_SGLANG_DISABLE": "alpha"}).state is State.PLANNED


@pytest.mark.parametrize(
    ("platform", "archs", "reason"),
    [
        (Platform("none"), None, "for rocm only: no torch was found"),
        (Platform("cuda", "sm90"), None, "for rocm only: this torch is built for cuda"),
        (Platform("cpu"), None, "for rocm only: this torch is built for cpu"),
        (ROCM, frozenset({"gfx950"}), "for gfx950 only: the GPU is gfx942"),
        (Platform("rocm"), frozenset({"gfx950", "gfx942"}), "for gfx942, gfx950 only: the GPU is unknown"),
    ],
)
def test_unsupported_platform(tmp_path: Path, platform: Platform, archs: frozenset[str] | None, reason: str) -> None:
    decision = last(synthetic(tmp_path), replace(PATCH, archs=archs), platform=platform)
    assert (decision.state, decision.reason) == (State.UNSUPPORTED_PLATFORM, reason)


def test_an_older_release_is_unsupported_even_if_the_source_is_known(tmp_path: Path) -> None:
    decision = last(synthetic(tmp_path, "0.5.6"))
    assert (decision.state, decision.reason) == (State.UNSUPPORTED_VERSION, "for sglang >=0.5.7,<0.5.12: this is 0.5.6")


def test_a_newer_release_with_other_source_is_unsupported(tmp_path: Path) -> None:
    decision = last(synthetic(tmp_path, "0.5.12", alpha=EDITED))
    assert decision.state is State.UNSUPPORTED_VERSION
    assert decision.reason.startswith(f"for sglang >=0.5.7,<0.5.12: this is 0.5.12, where {ALPHA} differs")


@pytest.mark.parametrize(
    ("version", "reason"),
    [
        ("0.5.12", "0.5.12 is newer than the releases this patch was read against"),
        ("0.5.10.dev3", "version '0.5.10.dev3' is of kind dev"),
        ("0.5.12.dev20260525+g1a2b3c4", "version '0.5.12.dev20260525+g1a2b3c4' is of kind dev"),
        ("0.5.9+rocm700", "version '0.5.9+rocm700' is of kind local"),
        ("0.0.0.dev0", "version '0.0.0.dev0' is of kind unknown"),
        ("0.5.2rc1", "version '0.5.2rc1' is of kind pre"),
        ("main", "version 'main' is of kind unknown"),
        ("", "the version is unreadable"),
    ],
)
def test_a_version_that_proves_nothing_leaves_it_to_the_source(tmp_path: Path, version: str, reason: str) -> None:
    known, edited = synthetic(tmp_path / "known", version), synthetic(tmp_path / "edited", version, alpha=EDITED)
    decision = last(known)
    assert (decision.state, decision.reason) == (State.PLANNED, f"needed here [{reason}: decided by fingerprint]")
    assert last(edited).state in (State.SOURCE_MISMATCH, State.UNSUPPORTED_VERSION)


@pytest.mark.parametrize(
    ("version", "state"),
    [
        ("0.5.12.dev20260525+g1a2b3c4", State.UNSUPPORTED_VERSION),
        ("0.5.11.dev20260525+g1a2b3c4", State.SOURCE_MISMATCH),
        ("0.5.6+rocm700", State.UNSUPPORTED_VERSION),
        ("0.0.0.dev0", State.SOURCE_MISMATCH),
        ("main", State.SOURCE_MISMATCH),
    ],
)
def test_where_version_and_source_both_say_no_nothing_is_broken(tmp_path: Path, version: str, state: State) -> None:
    decision = last(synthetic(tmp_path, version, alpha=EDITED))
    assert decision.state is state
    says = f"for sglang >=0.5.7,<0.5.12: this calls itself {version}, and {ALPHA} is unknown code "
    assert decision.reason.startswith(says) is (state is State.UNSUPPORTED_VERSION)


@pytest.mark.parametrize("otherwise", [State.CONTAINED, State.DISABLED, State.UNSUPPORTED_VERSION])
def test_a_variant_names_the_state_of_what_it_does_not_need(tmp_path: Path, otherwise: State) -> None:
    known = replace(PATCH.variants[0], need=lambda _facts: Need(False, "not here", otherwise))
    decision = last(synthetic(tmp_path), replace(PATCH, variants=(known,)))
    assert (decision.state, decision.reason) == (otherwise, "not here")


def test_a_checkout_is_decided_by_its_source(tmp_path: Path) -> None:
    root = write_tree(synthetic(tmp_path, "0.5.6"), {".git/HEAD": ""})
    decision = last(root)
    assert decision.state is State.PLANNED
    assert decision.reason == "needed here [a git checkout, which calls itself 0.5.6: decided by fingerprint]"
    assert last(root, environ={"AMD_SGLANG_TRUST_VERSION": "0.5.6"}).state is State.UNSUPPORTED_VERSION


def test_the_last_release_of_a_closed_range_is_not_called_newer(tmp_path: Path) -> None:
    root = synthetic(tmp_path, "0.5.9", alpha=EDITED)
    assert last(root, replace(PATCH, versions="<=0.5.9")).state is State.SOURCE_MISMATCH


_MODULE = "sglang/srt/alpha.py"


@pytest.mark.parametrize(
    ("source", "seen"),
    [
        (EDITED, "Alpha.forward is unknown code "),
        ("class Alpha: pass\n", "Alpha.forward is absent"),
        ("", "Alpha.forward is absent (no such class)"),
        (ALPHA_TEXT + "\n" + ALPHA_TEXT, "Alpha.forward is bound more than once"),
        ("class Alpha(", "Alpha.forward is unreadable"),
        (b"\xff\xfe\x00", "Alpha.forward is unreadable"),
    ],
)
def test_source_that_is_not_known_is_a_mismatch_that_says_what_was_seen(
    tmp_path: Path, source: str | bytes, seen: str
) -> None:
    decision = last(synthetic(tmp_path, alpha=source))
    assert decision.state is State.SOURCE_MISMATCH
    assert decision.reason.startswith(f"the source is none that is known: sglang.srt.alpha:{seen}")
    assert decision.targets == ()


def test_a_module_that_is_missing_or_cannot_be_read_is_a_mismatch(tmp_path: Path) -> None:
    root = synthetic(tmp_path)
    (root / _MODULE).unlink()
    assert "absent (no such module)" in last(root).reason
    (root / _MODULE).mkdir()
    assert last(root).reason.endswith("Alpha.forward is unreadable")


def test_a_module_may_be_a_package(tmp_path: Path) -> None:
    root = synthetic(tmp_path)
    (root / _MODULE).unlink()
    assert last(write_tree(root, {"sglang/srt/alpha/__init__.py": ALPHA_TEXT})).state is State.PLANNED


@pytest.mark.parametrize("gate", ["AMD_SGLANG_ENABLE", "AMD_SGLANG_DISABLE"])
def test_an_unknown_id_in_the_environment_is_an_error(tmp_path: Path, gate: str) -> None:
    with pytest.raises(UnknownPatchError, match=rf"'gamma' in {gate}: known ids are alpha"):
        plan(synthetic(tmp_path), environ={gate: "gamma"})


@pytest.mark.parametrize("disabled", ["", "alpha"])
def test_a_malformed_switch_of_a_patch_is_an_error_even_where_it_is_off(tmp_path: Path, disabled: str) -> None:
    patch = replace(PATCH, gates=(Gate("AMD_SGLANG_WORD", "", "auto", OneOf(("auto",))),))
    with pytest.raises(MalformedSwitchError, match="AMD_SGLANG_WORD='x'"):
        plan(synthetic(tmp_path), patch, environ={"AMD_SGLANG_WORD": "x", "AMD_SGLANG_DISABLE": disabled})


def test_the_json_form(tmp_path: Path) -> None:
    root = synthetic(tmp_path)
    made = plan(root, PATCH)
    assert json.loads(json.dumps(made.to_json())) == {
        "schema": 1,
        "sglang": {"version": "0.5.9", "kind": "release", "path": str(root / "sglang")},
        "platform": {"kind": "rocm", "arch": "gfx942", "aiter": None, "vllm": None, "simulated": False},
        "overrides": {"trust_version": None, "allow_drift": []},
        "packs": [],
        "digest": made.digest,
        "patches": [
            {
                "id": "alpha",
                "pack": None,
                "state": "planned",
                "reason": "needed here",
                "variant": "only",
                "upstream": ["#1"],
                "targets": [{"slot": str(ALPHA), "observed": min(ALPHA_IMAGE.digests), "method": "replace"}],
                "drifted": [],
            }
        ],
    }


def test_the_digest_follows_the_decision_and_not_the_place(tmp_path: Path) -> None:
    here, there = synthetic(tmp_path / "here"), synthetic(tmp_path / "there")
    digest = plan(here, PATCH, BETA_PATCH).digest
    assert plan(there, PATCH, BETA_PATCH, environ={"UNRELATED": "1"}).digest == digest
    image = Image(ALPHA, ALPHA_IMAGE.digests | {"0" * 16})
    assert plan(here, replace(PATCH, variants=(variant(image),)), BETA_PATCH).digest == digest
    both = Image(ALPHA, ALPHA_IMAGE.digests | {digest_of(EDITED, "Alpha.forward")})
    either = replace(PATCH, variants=(variant(both),))
    assert plan(here, either, BETA_PATCH).digest == digest
    assert plan(synthetic(tmp_path / "known", alpha=EDITED), either, BETA_PATCH).digest != digest
    others = {
        plan(here, PATCH, BETA_PATCH, environ={"AMD_SGLANG_DISABLE": "beta"}).digest,
        plan(here, PATCH).digest,
        plan(synthetic(tmp_path / "edited", alpha=EDITED), PATCH, BETA_PATCH).digest,
        plan(synthetic(tmp_path / "post", "0.5.9.post1"), PATCH, BETA_PATCH).digest,
        plan(here, replace(PATCH, variants=(variant(ALPHA_IMAGE, name="renamed"),)), BETA_PATCH).digest,
    }
    assert len(others | {digest}) == 6


def test_planning_changes_nothing_it_is_given(tmp_path: Path) -> None:
    root = synthetic(tmp_path)
    before = {path: path.stat().st_mtime_ns for path in root.rglob("*")}
    environ = {"AMD_SGLANG_ENABLE": "alpha"}
    first = make_plan(registry(PATCH), DirectoryTree(root), ROCM, environ)
    second = make_plan(registry(PATCH), DirectoryTree(root), ROCM, environ)
    assert first == second
    assert environ == {"AMD_SGLANG_ENABLE": "alpha"}
    assert {path: path.stat().st_mtime_ns for path in root.rglob("*")} == before
