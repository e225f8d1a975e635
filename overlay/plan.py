"""The decision about every patch: a pure function of the patches, a source tree, the platform and the environment.

The launcher shows it, and every process of the server makes it again from the same inputs; the digest of the two must
agree. Nothing is imported, nothing is touched.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass

import overlay
from overlay import gates
from overlay.errors import OverlayError
from overlay.model import Decision, Facts, Patch, State
from overlay.observer import Observer
from overlay.overrides import Overrides
from overlay.platform import Platform
from overlay.recognise import drifted
from overlay.registry import Registry
from overlay.source import SourceTree
from overlay.verdict import decide
from overlay.version import SglangVersion, read_version

SCHEMA = 1


@dataclass(frozen=True)
class Plan:
    """One decision per patch, in order, and what they were made of."""

    sglang_path: str
    version: SglangVersion
    platform: Platform
    decisions: tuple[Decision, ...]
    switches: tuple[tuple[str, str], ...]
    overrides: Overrides

    @property
    def digest(self) -> str:
        """16 hexadecimal digits that agree between two processes exactly if they would patch the same code alike."""
        facts = [
            [
                d.patch.id,
                d.state.value,
                d.variant.name if d.variant else None,
                [[str(s.slot), s.observed] for s in d.slots],
            ]
            for d in self.decisions
        ]
        what = [overlay.__version__, self.version.text, facts, self.switches, self.overrides.to_json()]
        return hashlib.sha256(json.dumps(what).encode()).hexdigest()[:16]

    def to_json(self) -> dict[str, object]:
        """The stable form that `patches plan --json` prints."""
        return {
            "schema": SCHEMA,
            "sglang": {"version": self.version.text, "kind": self.version.kind.value, "path": self.sglang_path},
            "platform": self.platform.to_json(),
            "overrides": self.overrides.to_json(),
            "digest": self.digest,
            "patches": [decision_to_json(decision) for decision in self.decisions],
        }


def decision_to_json(decision: Decision) -> dict[str, object]:
    return {
        "id": decision.patch.id,
        "state": decision.state.value,
        "reason": decision.reason,
        "variant": decision.variant.name if decision.variant else None,
        "upstream": list(decision.patch.upstream),
        "targets": [
            {"slot": str(s.slot), "observed": s.observed, "method": s.method.value if s.method else None}
            for s in decision.slots
        ],
        "drifted": [str(report.slot) for report in drifted(decision)],
    }


def make_plan(
    registry: Registry,
    tree: SourceTree,
    platform: Platform,
    environ: Mapping[str, str],
    observer: Observer | None = None,
) -> Plan:
    """Decide every patch. `observer` may be one that has looked at this tree before.

    Raises MalformedSwitchError or UnknownPatchError for switches that make no sense.
    """
    overrides = Overrides.read(registry, environ)
    version = read_version(tree)
    if overrides.trust_version:
        version = version.declared(overrides.trust_version)
    chosen = _Choice.read(registry, environ)
    observer = observer or Observer(tree, simulated=platform.simulated)
    facts = Facts(platform, dict(environ))
    decisions: dict[str, Decision] = {}
    for patch in registry:
        decisions[patch.id] = (
            chosen.rules_out(patch, decisions)
            or _platform_rules_out(patch, platform)
            or decide(patch, version, facts, observer, patch.id in overrides.allow_drift)
        )
    switches = tuple((gate.name, str(gate.read(environ))) for gate in registry.gates)
    return Plan(tree.path, version, platform, tuple(decisions.values()), switches, overrides)


@dataclass(frozen=True)
class _Choice:
    """What the user switched on and off."""

    enabled: frozenset[str]
    disabled: frozenset[str]

    @classmethod
    def read(cls, registry: Registry, environ: Mapping[str, str]) -> _Choice:
        sets = []
        for gate in (gates.ENABLE, gates.DISABLE):
            ids = gate.read(environ)
            for one in ids:
                registry.get(one, gate.name)
            sets.append(frozenset(ids))
        both = sets[0] & sets[1]
        if both:
            raise OverlayError(f"{min(both)} is both enabled and disabled: remove it from one of the two.")
        return cls(*sets)

    def rules_out(self, patch: Patch, earlier: Mapping[str, Decision]) -> Decision | None:
        if patch.id in self.disabled:
            return Decision(patch, State.DISABLED, f"switched off by --disable or {gates.DISABLE.name}")
        if not patch.default_on and patch.id not in self.enabled:
            return Decision(patch, State.DISABLED, f"off by default: switch it on with --enable {patch.id}")
        for other in patch.requires:
            if earlier[other].state not in (State.PLANNED, State.CONTAINED):
                return Decision(patch, State.DISABLED, f"requires {other}, which is {earlier[other].state.value}")
        for decision in earlier.values():
            pair = decision.patch.id in patch.conflicts or patch.id in decision.patch.conflicts
            if pair and decision.state is State.PLANNED:
                return Decision(patch, State.CONFLICT, f"excludes {decision.patch.id}, which is planned")
        return None


def _platform_rules_out(patch: Patch, platform: Platform) -> Decision | None:
    if platform.kind not in patch.platforms:
        found = "no torch was found" if platform.kind == "none" else f"this torch is built for {platform.kind}"
        reason = f"for {' or '.join(sorted(patch.platforms))} only: {found}"
    elif patch.archs is not None and platform.arch not in patch.archs:
        reason = f"for {', '.join(sorted(patch.archs))} only: the GPU is {platform.arch or 'unknown'}"
    else:
        return None
    return Decision(patch, State.UNSUPPORTED_PLATFORM, reason)
