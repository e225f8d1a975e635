"""The processes of runs, as status files and servers tell of them, as text for a terminal. Formatting only."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from overlay.model import BROKEN, State
from overlay.render import paragraph, table

#: What a process has done, or failed to do; every other state was decided before it began.
_DONE = frozenset({State.APPLIED, *BROKEN})


def status_table(rows: Sequence[Mapping[str, object]]) -> str:
    """One line per process and patch that was applied or is broken, and one for all others of the process. A process
    is named on its first line."""
    if not rows:
        return "No run of amd-sglang is alive for this user (see --all, and AMD_SGLANG_RUN_DIR)."
    lines = []
    for row in rows:
        if "error" in row:
            lines.append(("?", "?", "unknown", "", "", f"{row['error']} ({row['file']})"))
            continue
        life = ("ready" if row["ready"] else "starting") if row["alive"] else "ended"
        process = (str(row["pid"]), f"{row['role']}{_ranks(row['ranks'])}", life)
        patches = [(str(p["id"]), State(p["state"]), f"{p['reason']}{_counted(p)}") for p in _dicts(row["patches"])]
        others = Counter(state for _, state, _ in patches if state not in _DONE)
        shown = [(name, state.value, reason) for name, state, reason in patches if state in _DONE]
        if others:
            counts = ", ".join(f"{count} {state.value}" for state, count in others.items())
            shown.append((f"{others.total()} others", "-", f"{counts} (--json says why)"))
        for patch in shown:
            lines.append((*process, *patch))
            process = ("", "", "")
    notes = sorted({_note(row) for row in rows if "error" not in row})
    return "\n".join([*notes, table(("PID", "ROLE", "LIFE", "PATCH", "STATE", "WHY"), lines)])


def served_status(document: Mapping[str, Any]) -> str:
    """What a server answers for itself: whether all is well, and the processes of its host."""
    head = [f"{document.get('host')}: {'healthy' if document.get('healthy') else 'NOT HEALTHY'}"]
    notes = [str(note) for note in (*document["reasons"], document.get("note")) if note]
    paragraphs = [line for note in notes for line in paragraph("", note)]
    return "\n".join([*head, *paragraphs, status_table(document["processes"])])


def _counted(patch: Mapping[str, object]) -> str:
    """What the guard of a patch has counted, where there is something to tell."""
    counts = _dict(patch.get("counters")).items()
    words = [f"{count} {name.removesuffix('s') if count == 1 else name}" for name, count in counts if count]
    worst = patch.get("worst_error")
    if isinstance(worst, int | float):
        words.append(f"worst error {worst:g}")
    return f" ({', '.join(words)})" if words else ""


def _note(row: Mapping[str, object]) -> str:
    sglang, platform = _dict(row["sglang"]), _dict(row["platform"])
    where = " ".join(str(platform[key]) for key in ("kind", "arch") if platform[key])
    simulated = " SIMULATED on CPU" if platform["simulated"] else ""
    return (
        f"run {row['run']} | amd-sglang {row['overlay']} | sglang {sglang['version']} | {where}{simulated} | "
        f"plan {row['plan']}{_overridden(_dict(row.get('overrides')))}{_packs(row.get('packs'))}"
    )


def _packs(packs: object) -> str:
    return "".join(
        f" | THIRD-PARTY pack {pack.get('name')} ({pack.get('distribution')} {pack.get('version')}): "
        f"{', '.join(map(str, ids)) if isinstance(ids := pack.get('patches'), list) else 'unknown patches'}"
        for pack in _dicts(packs)
    )


def _overridden(overrides: Mapping[str, object]) -> str:
    words = {name: ",".join(value) if isinstance(value, list) else value for name, value in overrides.items()}
    used = [f"--{name.replace('_', '-')} {value}" for name, value in words.items() if value]
    return f" | {' '.join(used)}" if used else ""


def _ranks(ranks: object) -> str:
    return "".join(f" {name}{number}" for name, number in _dict(ranks).items())


def _dict(value: object) -> Mapping[str, object]:
    return value if isinstance(value, Mapping) else {}


def _dicts(value: object) -> list[Mapping[str, object]]:
    return [_dict(item) for item in value] if isinstance(value, list) else []
