"""Third-party packs: what is installed, and what of it is in force."""

from __future__ import annotations

from collections.abc import Iterator

from overlay.doctor.facts import Facts
from overlay.doctor.finding import Finding, error, info
from overlay.model import Pack


def packs(facts: Facts) -> Iterator[Finding]:
    """Packs that a launch would load, and those that only lie here. A malformed list of names is said by `switches`."""
    problem = facts.unanswered.get("packs")
    if problem and problem != facts.unanswered.get("switches"):
        yield error("packs", problem, "Nothing starts while it is named: install it anew, or leave its name out.")
    patches: dict[Pack, list[str]] = {}
    for patch in facts.patches:
        if patch.pack is not None:
            patches.setdefault(patch.pack, []).append(patch.id)
    for pack, ids in patches.items():
        yield info("packs", f"third-party code is in force: pack {pack}, with {', '.join(ids)}")
    for pack in facts.packs:
        if pack not in patches:
            yield info("packs", f"pack {pack} is installed and off", f"Pass --packs {pack.name} if you want it.")


CHECKS = (packs,)
