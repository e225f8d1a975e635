"""The decision about every patch: a pure function of the patches, a source tree, the platform and the environment.

The launcher shows it, and every process of the server makes it again from the same inputs; the digest of the two must
agree. Nothing is imported, nothing is touched.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict
from functools import cached_property

import overlay
from overlay import denylist, gates
from overlay.errors import OverlayError
from overlay.model import Decision, Facts, Pack, Patch, State
from overlay.observer import Observer
from overlay.overrides import Overrides
from overlay.platform import Platform
from overlay.recognise import drifted
from overlay.records import dataclass
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
    def packs(self) -> dict[Pack, tuple[str, ...]]:
        """The third-party packs that are in force, in their order, and the ids of the patches of each."""
        found: dict[Pack, tuple[str, ...]] = {}
        for pack, patch_id in ((d.patch.pack, d.patch.id) for d in self.decisions):
            if pack is not None:
                found[pack] = (*found.get(pack, ()), patch_id)
        return found

    @cached_property
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
        packs = self.packs_to_json()
        what = [overlay.__version__, self.version.text, facts, self.switches, self.overrides.to_json(), packs]
        return hashlib.sha256(json.dumps(what).encode()).hexdigest()[:16]

    def packs_to_json(self) -> list[dict[str, object]]:
        """What plans and statuses say of the packs, and digests are made of."""
        return [{**asdict(pack), "patches": list(patches)} for pack, patches in self.packs.items()]

    def to_json(self) -> dict[str, object]:
        """The stable form that `patches plan --json` prints."""
        return {
            "schema": SCHEMA,
            "sglang": {"version": self.version.text, "kind": self.version.kind.value, "path": self.sglang_path},
            "platform": self.platform.to_json(),
            "overrides": self.overrides.to_json(),
            "packs": self.packs_to_json(),
            "digest": self.digest,
            "patches": [decision_to_json(decision) for decision in self.decisions],
        }


def decision_to_json(decision: Decision) -> dict[str, object]:
    return {
        "id": decision.patch.id,
        "pack": decision.patch.pack and decision.patch.pack.name,
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
        decisions[patch.id] = chosen.unless_denied(
            chosen.rules_out(patch, decisions)
            or _platform_rules_out(patch, platform)
            or decide(patch, version, facts, observer, patch.id in overrides.allow_drift)
        )
    switches = tuple((gate.name, str(gate.read(environ))) for gate in registry.gates)
    return Plan(tree.path, version, platform, tuple(decisions.values()), switches, overrides)


@dataclass(frozen=True)
class _Choice:
    """What the user switched on and off, and what `amd-sglang verify` keeps away."""

    enabled: frozenset[str]
    disabled: frozenset[str]
    denied: Mapping[str, str]

    @classmethod
    def read(cls, registry: Registry, environ: Mapping[str, str]) -> _Choice:
        for gate in (gates.ENABLE, gates.DISABLE):
            for one in gate.read(environ):
                registry.get(one, gate.name)
        enabled, disabled = frozenset(gates.ENABLE.read(environ)), frozenset(gates.DISABLE.read(environ))
        both = enabled & disabled
        if both:
            raise OverlayError(f"{min(both)} is both enabled and disabled: remove it from one of the two.")
        denied = denylist.handed_over(environ)
        for one in sorted(enabled & denied.keys()):
            raise OverlayError(f"{one} is enabled by name, and denied: {denied[one]}. Lift it, or do not enable {one}.")
        return cls(enabled, disabled, denied)

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

    def unless_denied(self, decision: Decision) -> Decision:
        why = self.denied.get(decision.patch.id)
        if why is None or decision.state is not State.PLANNED:
            return decision
        return Decision(decision.patch, State.DISABLED, why)


def _platform_rules_out(patch: Patch, platform: Platform) -> Decision | None:
    if platform.kind not in patch.platforms:
        reason = f"for {' or '.join(sorted(patch.platforms))} only: {platform.torch}"
    elif patch.archs is not None and platform.arch not in patch.archs:
        reason = f"for {', '.join(sorted(patch.archs))} only: the GPU is {platform.arch or 'unknown'}"
    else:
        return None
    return Decision(patch, State.UNSUPPORTED_PLATFORM, reason)
