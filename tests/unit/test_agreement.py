"""What ranks make of each other's accounts: nothing where they are alike, else who differs in what, and why."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest

from overlay import agreement
from overlay.agreement import Account, difference
from overlay.model import Decision, State
from overlay.overrides import Overrides
from overlay.plan import Plan
from overlay.platform import Platform
from overlay.version import classify
from tests.unit.engine_support import BETA_PATCH, PATCH, ROCM


def plan(**changed: object) -> Plan:
    decisions = tuple(Decision(patch, State.PLANNED, "", patch.variants[0]) for patch in (PATCH, BETA_PATCH))
    made = Plan("/site/sglang", classify("0.5.9"), ROCM, decisions, (("AMD_SGLANG_X", "auto"),), Overrides())
    return replace(made, **changed)  # type: ignore[arg-type]


def account(place: str = "pid 1 on a", of: Plan | None = None, ends: str = "", **states: tuple[State, str]) -> Account:
    def state(patch_id: str) -> tuple[State, str]:
        return states.get(patch_id, (State.APPLIED, "needed here"))

    return agreement.account(place, of or plan(), state, ends=ends)


def compared(*accounts: Account | None) -> str | None:
    return difference({f"rank {rank}": one for rank, one in enumerate(accounts)}, 60)


def test_ranks_of_one_plan_are_alike_wherever_they_run_and_however_far_they_have_imported() -> None:
    there = replace(plan(), sglang_path="/opt/sglang")
    waiting = account("pid 7 on b", there, beta=(State.PLANNED, "this process has not imported sglang.srt.beta"))
    assert compared(account(), waiting, account("pid 9 on a")) is None


@pytest.mark.parametrize(
    ("other", "sentence"),
    [
        (
            account("pid 2 on b", alpha=(State.DISABLED, "switched off by --disable")),
            "alpha in force (only) on rank 0 (pid 1 on a), but disabled on rank 1 (pid 2 on b), "
            "switched off by --disable",
        ),
        (
            account("pid 2 on b", plan(switches=(("AMD_SGLANG_X", "native"),))),
            "AMD_SGLANG_X auto on rank 0 (pid 1 on a), but native on rank 1 (pid 2 on b)",
        ),
        (
            account("pid 2 on b", plan(platform=Platform("rocm", "gfx950"))),
            "platform rocm gfx942 on rank 0 (pid 1 on a), but rocm gfx950 on rank 1 (pid 2 on b)",
        ),
        (
            account("pid 2 on b", plan(platform=replace(ROCM, aiter="0.1.5"))),
            "aiter none on rank 0 (pid 1 on a), but 0.1.5 on rank 1 (pid 2 on b)",
        ),
        (
            account("pid 2 on b", plan(version=classify("0.5.10"))),
            "sglang 0.5.9 on rank 0 (pid 1 on a), but 0.5.10 on rank 1 (pid 2 on b)",
        ),
        (
            account("pid 2 on b", plan(overrides=Overrides(trust_version="0.5.9"))),
            "--trust-version not given on rank 0 (pid 1 on a), but 0.5.9 on rank 1 (pid 2 on b)",
        ),
        (
            account("pid 2 on b", ends="alpha is failed and --strict forbids to serve without it"),
            "process serves on rank 0 (pid 1 on a), but ends on rank 1 (pid 2 on b), "
            "alpha is failed and --strict forbids to serve without it",
        ),
    ],
    ids=["patch", "backend", "gpu", "aiter", "sglang", "override", "leaving"],
)
def test_a_difference_names_the_ranks_and_what_differs(other: Account, sentence: str) -> None:
    said = compared(account(), other)
    assert said == f"the ranks of this server are not alike: {sentence}. {agreement._CURE}"


def test_the_variant_counts_and_the_digest_is_named_where_nothing_else_tells() -> None:
    alpha, beta = plan().decisions
    other = replace(alpha, variant=replace(PATCH.variants[0], name="older"))
    said = compared(account(), account("pid 2 on b", plan(decisions=(other, beta))))
    assert said is not None and "alpha in force (only) on rank 0" in said and "in force (older) on rank 1" in said
    assert "plan " not in said

    only_the_digest = Account("pid 2 on b", {**account().facts, "plan": "0123456789abcdef"})
    assert f"plan {plan().digest} on rank 0 (pid 1 on a), but 0123456789abcdef on rank 1 (pid 2 on b)" in str(
        compared(account(), only_the_digest)
    )


def test_many_ranks_are_named_by_their_first_and_many_differences_by_their_causes() -> None:
    ranks = [account(f"pid {rank} on a") for rank in range(8)]
    off = [account(f"pid {rank} on b", alpha=(State.FAILED, "no compiler")) for rank in range(8, 10)]
    said = compared(*ranks, *off)
    assert said is not None
    assert "rank 0 (pid 0 on a), rank 1 (pid 1 on a), rank 2 (pid 2 on a) and 5 more, but failed" in said
    assert "rank 8 (pid 8 on b) and rank 9 (pid 9 on b), no compiler" in said

    odd = Account("pid 9 on b", dict.fromkeys((*account().facts, "new 1", "new 2"), "other"))
    said = str(compared(account(), odd))
    assert said.index("amd-sglang") < said.index("sglang 0.5.9") < said.index("platform")
    assert said.count(", but other on rank 1 (pid 9 on b)") == 6
    assert f"; and {len(odd.facts) - 1 - 6} more differences. " in said, "all but the digest"


def test_a_rank_without_an_account_is_named() -> None:
    said = compared(account(), None, account("pid 3 on a"), None)
    assert said is not None
    assert said.startswith(
        "the ranks of this server are not alike: rank 1 and rank 3 of 4 gave no account within 60 s: sglang has ended "
        "there, or runs without the overlay"
    )


def test_an_account_survives_the_wire_and_nothing_else_is_taken_for_one() -> None:
    one = account(ends="why")
    assert Account.from_json(one.to_json()) == one
    good = json.loads(one.to_json())
    bad: object
    for bad in ([], {}, {**good, "facts": []}, {**good, "facts": {"x": 1}}, {**good, "name": None}, {"name": "x"}):
        with pytest.raises(ValueError, match=r"account"):
            Account.from_json(json.dumps(bad))
