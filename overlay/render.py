"""Decisions and patches as text for a terminal and as JSON. Formatting only."""

from __future__ import annotations

import textwrap
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING

import overlay
from overlay.model import Patch, State
from overlay.plan import Plan
from overlay.recognise import drifted

if TYPE_CHECKING:
    from overlay.diff import PatchDiff

_WIDTH = 100


def table(header: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """Columns aligned by the widest cell; the last one is wrapped and hangs under itself."""
    cells = [tuple(header), *map(tuple, rows)]
    widths = [max(len(row[column]) for row in cells) for column in range(len(header) - 1)]
    lines = []
    for row in cells:
        lead = "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=False))
        indent = " " * (sum(widths) + 2 * len(widths))
        body = textwrap.wrap(row[-1], max(_WIDTH - len(indent), 40), break_on_hyphens=False) or [""]
        lines.append("\n".join([f"{lead}  {body[0]}".rstrip(), *(indent + line for line in body[1:])]))
    return "\n".join(lines)


def summary(plan: Plan, *, brief: bool = False) -> str:
    """One block: what runs where, and the decision about every patch. `brief` says in one row which are not for this
    release, or not for this machine."""
    version = f"{plan.version.text or '(no version)'} ({plan.version.kind.value})"
    head = (
        f"amd-sglang {overlay.__version__} | sglang {version} | {plan.platform} | aiter {plan.platform.aiter or 'none'}"
    )
    folded = (State.UNSUPPORTED_VERSION, State.UNSUPPORTED_PLATFORM) if brief else ()
    rows = [(d.patch.id, d.state.value, _origin(d.patch) + d.reason) for d in plan.decisions if d.state not in folded]
    for state in folded:
        ids = [d.patch.id for d in plan.decisions if d.state is state]
        if ids:
            rows.append((f"{len(ids)} more", state.value, f"{', '.join(ids)} (`amd-sglang patches plan` says why)"))
    return "\n".join([head, plan.sglang_path, *warnings(plan), table(("PATCH", "STATE", "WHY"), rows)])


def warnings(plan: Plan) -> list[str]:
    """Whose code runs that is not of this distribution; what the user has decided against the rules, and what came of
    it."""
    lines = [f"third-party code: pack {pack} patches sglang: {', '.join(ids)}" for pack, ids in plan.packs.items()]
    if plan.overrides.trust_version:
        lines.append(f"version ranges are judged for {plan.version}")
    for decision in plan.decisions:
        if decision.patch.id in plan.overrides.allow_drift:
            slots = ", ".join(str(report.slot) for report in drifted(decision))
            lines.append(
                f"--allow-drift puts {decision.patch.id} on source that nobody has read: {slots}. "
                f"Look at `amd-sglang patches diff {decision.patch.id}`"
                if slots
                else f"--allow-drift changes nothing for {decision.patch.id}, which is {decision.state.value}"
            )
    return [f"WARNING: {line}" for line in lines]


def patch_diff(diff: PatchDiff) -> str:
    """Every slot of a patch as a unified diff, under the sentence that says how the slot is filled."""
    version = diff.version.text or "(no version)"
    parts = [f"{diff.patch.id}: {diff.patch.title}", f"sglang {version} at {diff.sglang_path}"]
    if diff.strange:
        nearest = f"shown for the nearest known one, {diff.variant!r}" if diff.variant else "there is nothing to show"
        parts.append(f"This source is none that is known, {nearest}: {diff.strange}")
    elif diff.variant:
        parts.append(f"This source is known as {diff.variant!r}." + ("" if diff.slots else " It needs no patch."))
    for one in diff.slots:
        parts += ["", f"{one.slot} [{one.observed}]: the patch {one.how}.", one.unified.rstrip()]
    return "\n".join(parts)


def patch_to_json(patch: Patch) -> dict[str, object]:
    return {
        "id": patch.id,
        "pack": patch.pack and asdict(patch.pack),
        "title": patch.title,
        "why": patch.why,
        "upstream": list(patch.upstream),
        "contained_since": patch.contained_since,
        "versions": patch.versions,
        "platforms": sorted(patch.platforms),
        "archs": sorted(patch.archs) if patch.archs is not None else None,
        "default_on": patch.default_on,
        "kernels": patch.kernels,
        "switches": [{"name": g.name, "default": g.default, "help": g.help} for g in patch.gates],
        "requires": list(patch.requires),
        "conflicts": list(patch.conflicts),
        "variants": [
            {"name": v.name, "targets": [{"slot": str(t.slot), "method": t.method.value} for t in v.targets]}
            for v in patch.variants
        ],
        "verified_by": patch.verified_by,
        "remove_when": patch.remove_when,
    }


def patch_table(patches: Iterable[Patch], denied: Mapping[str, str]) -> str:
    """One row a patch. `denied` says of some why they are not applied on this machine."""
    rows = []
    for p in patches:
        default = "denied" if p.id in denied else "on" if p.default_on else "off"
        note = f" ({denied[p.id]})" if p.id in denied else ""
        rows.append((p.id, default, " ".join(p.upstream), p.versions, _origin(p) + p.title + note))
    return table(("PATCH", "DEFAULT", "UPSTREAM", "SGLANG", "WHAT IT DOES"), rows)


def _origin(patch: Patch) -> str:
    return f"[pack {patch.pack.name} {patch.pack.version}] " if patch.pack else ""


def explanation(patch: Patch, at_hand: str) -> str:
    """Everything that is known about one patch, as paragraphs. `at_hand` says what the sglang at hand needs."""
    parts = [f"{patch.id}: {patch.title}", *paragraph("", patch.why)]
    facts = [
        ("pack", f"{patch.pack}: third-party code" if patch.pack else ""),
        ("upstream", ", ".join([*patch.upstream, f"contained since {patch.contained_since}"])),
        ("sglang", patch.versions),
        ("platform", ", ".join(sorted(patch.platforms))),
        ("gpus", ", ".join(sorted(patch.archs or ()))),
        ("default", "on" if patch.default_on else "off"),
        *(("switch", f"{gate.name} (default {gate.default}): {gate.help}") for gate in patch.gates),
        ("requires", ", ".join(patch.requires)),
        ("excludes", ", ".join(patch.conflicts)),
    ]
    for variant in patch.variants:
        slots = "; ".join(f"{t.method.value} {t.slot}" for t in variant.targets)
        facts.append(("variant", f"{variant.name}: {slots}"))
    facts += [("verified", patch.verified_by), ("remove", f"when {patch.remove_when}"), ("at hand", at_hand)]
    for name, text in facts:
        if text:
            parts += paragraph(name, text)
    return "\n".join(parts)


def paragraph(name: str, text: str) -> list[str]:
    """The lines of a text, indented, behind a name that they hang under."""
    lead = f"  {name:<10}" if name else "  "
    return textwrap.wrap(text, _WIDTH, initial_indent=lead, subsequent_indent=" " * len(lead), break_on_hyphens=False)
