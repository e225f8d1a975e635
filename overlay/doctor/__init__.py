"""Is this environment fit to serve sglang on ROCm with the overlay, and what would go wrong?

Probes gather facts from files, metadata, the environment and one child interpreter; checks are pure functions of the
facts. Neither torch nor sglang is imported, and no GPU is needed: what cannot be known is said.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence

from overlay.doctor import (
    check_hazards,
    check_machine,
    check_packages,
    check_packs,
    check_setup,
    check_streams,
    installed,
)
from overlay.doctor.facts import Facts
from overlay.doctor.finding import Finding
from overlay.doctor.gathering import gather, withheld
from overlay.doctor.report import Report
from overlay.plan import Plan
from overlay.platform import Platform
from overlay.registry import Registry
from overlay.source import SourceTree

CHECKS: tuple[Callable[[Facts], Iterable[Finding]], ...] = (
    *check_machine.CHECKS,
    *check_packages.CHECKS,
    *check_setup.CHECKS,
    *check_packs.CHECKS,
    *check_streams.CHECKS,
    *check_hazards.CHECKS,
)


def examine(environ: Mapping[str, str], arguments: Sequence[str] = ()) -> Report:
    """Look at everything. `arguments` are those `sglang.launch_server` would get. Raises nothing a user can cause."""
    return diagnose(gather(environ, arguments))


def wrong_numbers(
    environ: Mapping[str, str],
    registry: Registry,
    tree: SourceTree,
    search: Sequence[str],
    platform: Platform,
    plan: Plan,
) -> tuple[Finding, ...]:
    """Of all findings the one that a launch must not keep to itself: a second stream, as planned, computes wrongly."""
    facts = Facts(
        environ,
        platform=platform,
        sglang=installed.sglang(tree, search),
        plan=plan,
        withheld=withheld(registry, tree, platform, environ),
    )
    return tuple(check_hazards.numbers(facts))


def diagnose(facts: Facts) -> Report:
    return Report(facts, tuple(finding for check in CHECKS for finding in check(facts)))
