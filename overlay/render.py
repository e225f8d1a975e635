"""Decisions, patches and statuses as text for a terminal and as JSON. Formatting only."""

from __future__ import annotations

import textwrap
from collections.abc import Iterable, Mapping, Sequence

import overlay
from overlay.model import Patch
from overlay.plan import Plan

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


def summary(plan: Plan) -> str:
    """One block: what runs where, and the decision about every patch."""
    version = f"{plan.version.text or '(no version)'} ({plan.version.kind.value})"
    head = (
        f"amd-sglang {overlay.__version__} | sglang {version} | {plan.platform} | aiter {plan.platform.aiter or 'none'}"
    )
    rows = [(d.patch.id, d.state.value, d.reason) for d in plan.decisions]
    return f"{head}\n{plan.sglang_path}\n{table(('PATCH', 'STATE', 'WHY'), rows)}"


def patch_to_json(patch: Patch) -> dict[str, object]:
    return {
        "id": patch.id,
        "title": patch.title,
        "why": patch.why,
        "upstream": list(patch.upstream),
        "contained_since": patch.contained_since,
        "versions": patch.versions,
        "platforms": sorted(patch.platforms),
        "archs": sorted(patch.archs) if patch.archs is not None else None,
        "default_on": patch.default_on,
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


def patch_table(patches: Iterable[Patch]) -> str:
    rows = [(p.id, "on" if p.default_on else "off", " ".join(p.upstream), p.versions, p.title) for p in patches]
    return table(("PATCH", "DEFAULT", "UPSTREAM", "SGLANG", "WHAT IT DOES"), rows)


def explanation(patch: Patch) -> str:
    """Everything that is known about one patch, as paragraphs."""
    parts = [f"{patch.id}: {patch.title}", *_paragraph("", patch.why)]
    facts = [
        ("upstream", f"{', '.join(patch.upstream)}, contained since {patch.contained_since}"),
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
    facts += [("verified", patch.verified_by), ("remove", f"when {patch.remove_when}")]
    for name, text in facts:
        if text:
            parts += _paragraph(name, text)
    return "\n".join(parts)


def status_table(rows: Sequence[Mapping[str, object]]) -> str:
    """One line per process and patch; a process is named on its first line."""
    if not rows:
        return "No run of amd-sglang is alive for this user (see --all, and AMD_SGLANG_RUN_DIR)."
    lines = []
    for row in rows:
        if "error" in row:
            lines.append(("?", "?", "unknown", "", "", f"{row['error']} ({row['file']})"))
            continue
        life = ("ready" if row["ready"] else "starting") if row["alive"] else "ended"
        process = (str(row["pid"]), f"{row['role']}{_ranks(row['ranks'])}", life)
        for patch in _dicts(row["patches"]):
            lines.append((*process, str(patch["id"]), str(patch["state"]), str(patch["reason"])))
            process = ("", "", "")
    notes = sorted({_note(row) for row in rows if "error" not in row})
    return "\n".join([*notes, table(("PID", "ROLE", "LIFE", "PATCH", "STATE", "WHY"), lines)])


def _note(row: Mapping[str, object]) -> str:
    sglang, platform = _dict(row["sglang"]), _dict(row["platform"])
    where = " ".join(str(platform[key]) for key in ("kind", "arch") if platform[key])
    simulated = " SIMULATED on CPU" if platform["simulated"] else ""
    return (
        f"run {row['run']} | amd-sglang {row['overlay']} | sglang {sglang['version']} | {where}{simulated} | "
        f"plan {row['plan']}"
    )


def _ranks(ranks: object) -> str:
    return "".join(f" {name}{number}" for name, number in _dict(ranks).items())


def _dict(value: object) -> Mapping[str, object]:
    return value if isinstance(value, Mapping) else {}


def _dicts(value: object) -> list[Mapping[str, object]]:
    return [_dict(item) for item in value] if isinstance(value, list) else []


def _paragraph(name: str, text: str) -> list[str]:
    lead = f"  {name:<10}" if name else "  "
    return textwrap.wrap(text, _WIDTH, initial_indent=lead, subsequent_indent=" " * len(lead), break_on_hyphens=False)
