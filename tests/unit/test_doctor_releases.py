"""The doctor's checks of streams on real releases with the built-in patches, decided as for an MI300X."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import pytest

from overlay.doctor import check_hazards, diagnose
from overlay.doctor.arguments import ServerArguments
from overlay.doctor.facts import Facts
from overlay.doctor.gathering import withheld
from overlay.doctor.installed import sglang
from overlay.doctor.streams_in_effect import PATCH_OF
from overlay.model import State
from overlay.plan import make_plan
from overlay.registry import builtin
from overlay.source import DirectoryTree
from tests.unit.engine_support import RELEASES, ROCM, python

ALT = {"SGLANG_ALT_STREAM": "1", "SGLANG_USE_AITER": "1"}
GDN = {**ALT, "SGLANG_GDN_QKVZ_BA_ALT_STREAM": "1"}
QK = {**ALT, "SGLANG_QK_NORM_ALT_STREAM": "1"}
MULTI = {"SGLANG_ROCM_USE_MULTI_STREAM": "1", "SGLANG_USE_AITER": "1"}
MORI = ("--moe-a2a-backend", "mori")
PLAIN = ("--disable-shared-experts-fusion",)


def path_of(release: str) -> Path:
    if release not in RELEASES:
        pytest.skip(f"sglang {release} is not here: run `make releases`")
    return RELEASES[release]


def facts_of(release: str, environ: Mapping[str, str], arguments: tuple[str, ...] = PLAIN) -> Facts:
    tree = DirectoryTree(path_of(release))
    return Facts(
        environ=environ,
        arguments=ServerArguments.of(arguments),
        platform=ROCM,
        sglang=sglang(tree, []),
        plan=make_plan(builtin(), tree, ROCM, environ),
        withheld=withheld(builtin(), tree, ROCM, environ),
    )


#: The findings that are about streams and depend on the release.
ABOUT_STREAMS = frozenset(
    {
        "stream-without-effect",
        "gdn-stream",
        "qk-norm-stream",
        "shared-expert-fusion",
        "all-to-all",
        "wrong-numbers",
        "event-waits",
        "mori",
    }
)


@pytest.mark.parametrize(
    ("release", "environ", "arguments", "checks"),
    [
        ("0.5.8.post1", ALT, PLAIN, {"stream-without-effect"}),
        ("0.5.8.post1", MULTI, PLAIN, {"stream-without-effect"}),
        ("0.5.9", ALT, PLAIN, set()),
        ("0.5.9", ALT, (), set()),
        ("0.5.9", GDN, PLAIN, {"gdn-stream"}),
        ("0.5.9", QK, PLAIN, set()),
        ("0.5.9", MULTI, (*PLAIN, *MORI), {"event-waits", "mori"}),
        ("0.5.10.post1", GDN, PLAIN, set()),
        ("0.5.10.post1", MULTI, (*PLAIN, *MORI, "--deepep-mode=low_latency"), {"event-waits"}),
        ("0.5.11", ALT, (), {"shared-expert-fusion"}),
        ("0.5.11", ALT, (*PLAIN, *MORI), {"all-to-all"}),
        ("0.5.11", QK, PLAIN, {"qk-norm-stream"}),
        ("0.5.12.post1", ALT, PLAIN, set()),
        ("0.5.12.post1", MULTI, (), {"shared-expert-fusion"}),
        ("0.5.12.post1", MULTI, PLAIN, set()),
        ("0.5.13", {**ALT, "SGLANG_USE_AITER": "0"}, (), {"shared-expert-fusion"}),
        ("0.5.13", {**QK, **GDN, **MULTI}, PLAIN, {"qk-norm-stream"}),
        ("0.5.23", {**ALT, **MULTI}, PLAIN, set()),
    ],
)
def test_what_is_said_about_streams_follows_the_release(
    release: str, environ: dict[str, str], arguments: tuple[str, ...], checks: set[str]
) -> None:
    found = {finding.check for finding in diagnose(facts_of(release, environ, arguments)).findings}
    assert found & ABOUT_STREAMS == checks


@pytest.mark.parametrize(
    ("release", "environ", "patch", "check"),
    [
        ("0.5.9", ALT, "qwen3_5-alt-stream", "stream-without-effect"),
        ("0.5.11", MULTI, "deepseek-dual-stream", "stream-without-effect"),
        ("0.5.11", MULTI, "fix-dual-stream-scaling", "stream-without-effect"),
        ("0.5.12.post1", MULTI, "fix-dual-stream-scaling", "wrong-numbers"),
        ("0.5.13", ALT, "fix-dual-stream-inplace", "wrong-numbers"),
        ("0.5.23", MULTI, "fix-dual-stream-scaling", None),
    ],
)
def test_switching_a_patch_off_costs_its_stream_or_its_numbers(
    release: str, environ: dict[str, str], patch: str, check: str | None
) -> None:
    report = diagnose(facts_of(release, {**environ, "AMD_SGLANG_DISABLE": patch}))
    found = {one.check: one for one in report.findings if one.check in ABOUT_STREAMS}
    assert set(found) == ({check} if check else set())
    assert all(patch in finding.message for finding in found.values())


def test_the_patches_and_switches_that_the_checks_name_exist() -> None:
    registry = builtin()
    assert {*PATCH_OF.values(), check_hazards.SEMAPHORE_FIX, *check_hazards.NUMBERS} <= set(registry.ids)
    assert check_hazards.CAPTURE_ONLY in {gate.name for gate in registry.gates}


def test_a_planned_patch_without_which_a_stream_is_idle_is_planned_here() -> None:
    facts = facts_of("0.5.9", {**ALT, **MULTI})
    assert facts.plan is not None
    states = {decision.patch.id: decision.state for decision in facts.plan.decisions}
    assert {states[patch] for patch in PATCH_OF.values()} == {State.PLANNED}


@pytest.mark.parametrize("disabled", [(), ("--disable", "fix-dual-stream-scaling")])
def test_a_launch_says_that_its_stream_would_compute_wrongly(disabled: tuple[str, ...]) -> None:
    """It starts all the same: the fix was switched off by name."""
    launch = ("-m", "launcher", "launch", "--dry-run", "--simulate", "gfx942", *disabled)
    ended = python(*launch, path=(path_of("0.5.12.post1"),), environ=MULTI)
    assert ended.code == 0, ended.err
    assert ("routed experts are scaled twice. Unset SGLANG_ROCM_USE_MULTI_STREAM" in ended.err) == bool(disabled)
