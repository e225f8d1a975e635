"""Whether the ranks of one server would compute alike: what each says of itself, and in what they differ. Pure.

A rank that runs a patch beside one that does not raises no error. It gives other tokens, or hangs where the two enter
different collectives. So a server whose ranks disagree must not serve.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import overlay
from overlay.model import State
from overlay.plan import Plan

#: Stands for both states: where a patch is applied depends on what a process has imported so far, and that may differ
#: between the stages of a pipeline.
_IN_FORCE = "in force"
_WILL_DO = frozenset({State.PLANNED, State.APPLIED})

#: Differences beyond these are counted, not told: another release of sglang on one node differs in everything.
_TOLD = 6
_NAMED = 3

_CURE = "Start every rank with the same sglang, the same amd-sglang and the same switches."


@dataclass(frozen=True)
class Account:
    """What one rank says of itself. `name` is how a person finds it; `facts` must be equal everywhere, causes before
    their consequences; `reasons` explains some of them. Plain text, so that two releases of the overlay can compare."""

    name: str
    facts: Mapping[str, str]
    reasons: Mapping[str, str] = field(default_factory=dict)

    def to_json(self) -> str:
        return json.dumps(asdict(self))

    @classmethod
    def from_json(cls, text: str | bytes) -> Account:
        """Raises ValueError for what `to_json` does not write."""
        document = json.loads(text)
        if not isinstance(document, dict) or not isinstance(document.get("name"), str):
            raise ValueError("an account has a name")
        facts, reasons = document.get("facts"), document.get("reasons")
        if not isinstance(facts, dict) or not isinstance(reasons, dict):
            raise ValueError("an account has facts and reasons")
        if not all(isinstance(value, str) for value in (*facts.values(), *reasons.values())):
            raise ValueError("an account is plain text")
        return cls(document["name"], facts, reasons)

    @classmethod
    def of_status(cls, row: Mapping[str, Any]) -> Account:
        """What the status file of a process (a row of `status.read_runs`) holds of an account."""
        patches = row["patches"]
        return cls(
            f"pid {row['pid']}",
            {
                "amd-sglang": row["overlay"],
                "sglang": row["sglang"]["version"],
                **{patch["id"]: _standing(State(patch["state"])) for patch in patches},
                "plan": row["plan"],
            },
            {patch["id"]: patch["reason"] for patch in patches},
        )


def account(name: str, plan: Plan, state: Callable[[str], tuple[State, str]], *, ends: str = "") -> Account:
    """The account of a process with this plan, in which `state(patch id)` says where a patch stands, and why. `ends`
    says why it will not serve, if it will not."""
    platform = plan.platform
    facts = {
        "process": "ends" if ends else "serves",
        "amd-sglang": overlay.__version__,
        "sglang": plan.version.text or "(no version)",
        "platform": str(platform),
        "aiter": platform.aiter or "none",
        "vllm": platform.vllm or "none",
        "packs": ", ".join(map(str, plan.packs)) or "none",
        "--trust-version": plan.overrides.trust_version or "not given",
        "--allow-drift": ",".join(plan.overrides.allow_drift) or "not given",
        **dict(plan.switches),
    }
    reasons = {"process": ends}
    for decision in plan.decisions:
        now, reasons[decision.patch.id] = state(decision.patch.id)
        facts[decision.patch.id] = _standing(now, decision.variant.name if decision.variant else "")
    # Last: it differs with any of the others, and alone only where one variant knows a function by several sources.
    return Account(name, {**facts, "plan": plan.digest}, reasons)


def difference(accounts: Mapping[str, Account | None], patience: float) -> str | None:
    """The sentence that says which members of a server differ, and in what; None if all are alike.

    `accounts` has an entry for each, by what to call it: None where it gave no account within `patience` seconds.
    """
    given = {member: one for member, one in accounts.items() if one is not None}
    told = []
    if silent := [member for member in accounts if member not in given]:
        told.append(
            f"{_some(silent)} of {len(accounts)} gave no account within {patience:g} s: sglang has ended there, or "
            "runs without the overlay, or with one that compares nothing"
        )
    found = {fact: text for fact in _facts(given.values()) if (text := _compare(fact, given)) is not None}
    if len(found) > 1:
        found.pop("plan", None)
    told += list(found.values())[:_TOLD]
    if len(found) > _TOLD:
        told.append(f"and {len(found) - _TOLD} more differences")
    return f"the ranks of this server are not alike: {'; '.join(told)}. {_CURE}" if told else None


def title(ranks: Mapping[str, int]) -> str:
    """{"dp": 1, "tp": 0} as sglang's log has it: `DP1 TP0`."""
    return " ".join(f"{name.upper()}{number}" for name, number in ranks.items())


def _standing(state: State, variant: str = "") -> str:
    if state not in _WILL_DO:
        return state.value
    return f"{_IN_FORCE} ({variant})" if variant else _IN_FORCE


def _facts(accounts: Iterable[Account]) -> list[str]:
    """Every fact that somebody gives, in the order of whoever gives it first."""
    return list(dict.fromkeys(name for one in accounts for name in one.facts))


def _compare(fact: str, given: Mapping[str, Account]) -> str | None:
    groups: dict[str, list[str]] = {}
    for member, one in given.items():
        groups.setdefault(one.facts.get(fact, "unknown"), []).append(member)
    if len(groups) < 2:
        return None
    parts = []
    for value, members in groups.items():
        why = next(filter(None, (given[member].reasons.get(fact) for member in members)), "")
        # Why a patch is in force is no news; why it is not there is what has to be cured.
        reason = f", {why}" if why and not value.startswith(_IN_FORCE) else ""
        parts.append(f"{value} on {_some([f'{member} ({given[member].name})' for member in members])}{reason}")
    return f"{fact} {', but '.join(parts)}"


def _some(words: Sequence[str]) -> str:
    """A list for a sentence, the first few by name."""
    if len(words) > _NAMED + 1:
        words = [*words[:_NAMED], f"{len(words) - _NAMED} more"]
    return " and ".join(filter(None, (", ".join(words[:-1]), words[-1])))
