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
from overlay import fingerprint, gates
from overlay.errors import OverlayError
from overlay.model import ABSENT, Decision, Facts, Image, Patch, SlotReport, State, Variant
from overlay.observer import Observer
from overlay.platform import Platform
from overlay.registry import Registry
from overlay.source import SourceTree
from overlay.version import SglangVersion, newer_than, read_version, within

SCHEMA = 1


@dataclass(frozen=True)
class Plan:
    """One decision per patch, in order, and what they were made of."""

    sglang_path: str
    version: SglangVersion
    platform: Platform
    decisions: tuple[Decision, ...]
    switches: tuple[tuple[str, str], ...]

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
        what = [overlay.__version__, self.version.text, facts, self.switches]
        return hashlib.sha256(json.dumps(what).encode()).hexdigest()[:16]

    def to_json(self) -> dict[str, object]:
        """The stable form that `patches plan --json` prints."""
        return {
            "schema": SCHEMA,
            "sglang": {"version": self.version.text, "kind": self.version.kind.value, "path": self.sglang_path},
            "platform": self.platform.to_json(),
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
    }


def make_plan(registry: Registry, tree: SourceTree, platform: Platform, environ: Mapping[str, str]) -> Plan:
    """Decide every patch. Raises MalformedSwitchError or UnknownPatchError for switches that make no sense."""
    version = read_version(tree)
    chosen = _Choice.read(registry, environ)
    observer = Observer(tree)
    facts = Facts(platform, dict(environ))
    decisions: dict[str, Decision] = {}
    for patch in registry:
        decisions[patch.id] = (
            chosen.rules_out(patch, decisions)
            or _platform_rules_out(patch, platform)
            or _decide_by_source(patch, version, facts, observer)
        )
    switches = tuple((gate.name, str(gate.read(environ))) for gate in registry.gates)
    return Plan(tree.path, version, platform, tuple(decisions.values()), switches)


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


def _decide_by_source(patch: Patch, version: SglangVersion, facts: Facts, observer: Observer) -> Decision:
    inside = within(version, patch.versions)
    newer = newer_than(version, patch.versions)
    if version.trusted and not inside and not newer:
        return Decision(patch, State.UNSUPPORTED_VERSION, f"for sglang {patch.versions}: this is {version.text}")
    for variant in patch.variants:
        if all(observer.observe(image.slot) in image.digests for image in variant.images):
            reports = _reports(variant.images, variant, observer)
            need = variant.need(facts)
            basis = "" if version.trusted and inside else f" [{_distrust(version, newer)}: decided by fingerprint]"
            state = State.PLANNED if need.needed else State.CONTAINED
            return Decision(patch, state, need.reason + basis, variant, reports)
    return _unrecognised(patch, version, newer, observer)


def _unrecognised(patch: Patch, version: SglangVersion, newer: bool, observer: Observer) -> Decision:
    images = tuple({image.slot: image for variant in patch.variants for image in variant.images}.values())
    reports = _reports(images, None, observer)
    strange = [
        r
        for r in reports
        if not any(r.observed in i.digests for v in patch.variants for i in v.images if i.slot == r.slot)
    ] or list(reports)
    seen = "; ".join(f"{r.slot} is {_spell(r.observed)}" for r in strange)
    if version.trusted and newer:
        return Decision(
            patch,
            State.UNSUPPORTED_VERSION,
            f"for sglang {patch.versions}: this is {version.text}, where {strange[0].slot} differs",
            slots=reports,
        )
    return Decision(patch, State.SOURCE_MISMATCH, f"the source is none that is known: {seen}", slots=reports)


def _reports(images: tuple[Image, ...], variant: Variant | None, observer: Observer) -> tuple[SlotReport, ...]:
    methods = {target.slot: target.method for target in variant.targets} if variant else {}
    return tuple(SlotReport(i.slot, observer.observe(i.slot), methods.get(i.slot)) for i in images)


def _distrust(version: SglangVersion, newer: bool) -> str:
    if version.trusted and newer:
        return f"{version.text} is newer than the releases this patch was read against"
    return f"version {version.text!r} is of kind {version.kind.value}" if version.text else "the version is unreadable"


def _spell(observed: str) -> str:
    return {
        ABSENT: "absent",
        fingerprint.NO_MODULE: "absent (no such module)",
        fingerprint.NO_OWNER: "absent (no such class)",
        fingerprint.AMBIGUOUS: "bound more than once",
        fingerprint.UNREADABLE: "unreadable",
    }.get(observed, f"unknown code {observed}")
