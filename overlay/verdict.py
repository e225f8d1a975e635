"""The verdict on one patch by what sglang calls itself and by its source: the fingerprints decide, a version can only
rule out. Pure.
"""

from __future__ import annotations

from dataclasses import replace

from overlay.model import Decision, Facts, Patch, State
from overlay.observer import Observer
from overlay.recognise import drifted, nearest, recognise, reports, spell, unknown
from overlay.version import SglangVersion, VersionKind, may_lie_within, newer_than, within


def decide(patch: Patch, version: SglangVersion, facts: Facts, observer: Observer, drift_allowed: bool) -> Decision:
    """What version and source say about a patch that neither a switch nor the platform rules out."""
    inside = within(version, patch.versions)
    newer = newer_than(version, patch.versions)
    if version.trusted and not inside and not newer:
        return Decision(patch, State.UNSUPPORTED_VERSION, f"for sglang {patch.versions}: this is {version}")
    variant = recognise(patch, observer)
    if variant is not None:
        need = variant.need(facts)
        honest = inside and version.trusted and version.kind is not VersionKind.DECLARED
        basis = "" if honest else f" [{_distrust(version, newer)}: decided by fingerprint]"
        state = State.PLANNED if need.needed else need.otherwise
        return Decision(patch, state, need.reason + basis, variant, reports(patch, variant, observer))
    unrecognised = _unrecognised(patch, version, newer, observer)
    return _despite_drift(patch, unrecognised, facts, observer) if drift_allowed else unrecognised


def _unrecognised(patch: Patch, version: SglangVersion, newer: bool, observer: Observer) -> Decision:
    seen = reports(patch, None, observer)
    strange = unknown(patch, seen) or seen
    if version.trusted and newer:
        reason = f"for sglang {patch.versions}: this is {version}, where {strange[0].slot} differs"
        return Decision(patch, State.UNSUPPORTED_VERSION, reason, slots=seen)
    if not may_lie_within(version, patch.versions):
        reason = f"for sglang {patch.versions}: this calls itself {version}, and {spell(strange)}"
        return Decision(patch, State.UNSUPPORTED_VERSION, reason, slots=seen)
    return Decision(patch, State.SOURCE_MISMATCH, f"the source is none that is known: {spell(strange)}", slots=seen)


def _despite_drift(patch: Patch, unrecognised: Decision, facts: Facts, observer: Observer) -> Decision:
    """--allow-drift: what the nearest known source asks for, if it can be put on this one.

    It stands for a missing fingerprint alone: where the version says no as well, the user has to say which release the
    source is made from (--trust-version), since a bound may also mean that upstream has had the change ever since.
    """

    def refused(why: str) -> Decision:
        return replace(unrecognised, reason=f"{unrecognised.reason} [--allow-drift cannot help: {why}]")

    if unrecognised.state is not State.SOURCE_MISMATCH:
        return refused("the version is outside the range; --trust-version says which release this is made from")
    found = nearest(patch, observer)
    if isinstance(found, str):
        return refused(found)
    need = found.need(facts)
    if not need.needed:
        return refused(f"the nearest known source, {found.name!r}, needs no patch")
    decision = Decision(patch, State.PLANNED, need.reason, found, reports(patch, found, observer))
    drift = f"DRIFT allowed by --allow-drift: {spell(drifted(decision))}; nearest known source is {found.name!r}"
    return replace(decision, reason=f"{need.reason} [{drift}]")


def _distrust(version: SglangVersion, newer: bool) -> str:
    if version.kind is VersionKind.DECLARED:
        return f"taken for {version}"
    if version.kind is VersionKind.CHECKOUT:
        return f"a git checkout, which calls itself {version.text or 'nothing'}"
    if version.trusted and newer:
        return f"{version.text} is newer than the releases this patch was read against"
    return f"version {version.text!r} is of kind {version.kind.value}" if version.text else "the version is unreadable"
