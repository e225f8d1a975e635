"""What one release shows: the decision about every patch under every scenario, and the source in every slot."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from matrix.scenarios import SCENARIOS, Scenario
from overlay import gates
from overlay.model import Decision, Patch, Slot
from overlay.observer import Observer
from overlay.plan import make_plan
from overlay.registry import Registry
from overlay.sighting import Memory
from overlay.source import SourceTree


@dataclass(frozen=True)
class Survey:
    """`decisions` by patch id and scenario name, such as `planned (unfused)`; `slots` by name, such as a digest."""

    decisions: Mapping[str, Mapping[str, str]]
    slots: Mapping[str, str]


def survey(registry: Registry, tree: SourceTree, scenarios: Sequence[Scenario] = SCENARIOS) -> Survey:
    """Plan everything on one source tree, which is read and parsed once, whatever is known of it. An aiter that lies
    beside it is not seen."""
    observer = Observer(tree, simulated=True, memory=Memory())
    decisions: dict[str, dict[str, str]] = {patch.id: {} for patch in registry}
    for scenario in scenarios:
        for environ, ids in _plans(registry):
            plan = make_plan(registry, tree, scenario.platform, {**scenario.environ, **environ}, observer)
            for decision in plan.decisions:
                if decision.patch.id in ids:
                    decisions[decision.patch.id][scenario.name] = outcome(decision)
    return Survey(decisions, {str(slot): observer.observe(slot) for patch in registry for slot in slots_of(patch)})


def slots_of(patch: Patch) -> Iterable[Slot]:
    """Every slot that some variant of a patch looks at, once."""
    return dict.fromkeys(image.slot for variant in patch.variants for image in variant.images)


def outcome(decision: Decision) -> str:
    """A decision in a word or two."""
    return f"{decision.state.value} ({decision.variant.name})" if decision.variant else decision.state.value


def _plans(registry: Registry) -> list[tuple[dict[str, str], set[str]]]:
    """The switches to plan under, and whose decision each plan is taken for: one plan for the patches that are on by
    default, and one for each that has to be asked for, without those that exclude it."""
    plans: list[tuple[dict[str, str], set[str]]] = [({}, {patch.id for patch in registry if patch.default_on})]
    for patch in registry:
        if not patch.default_on:
            wanted = _with_required(registry, patch)
            excluded = {other.id for other in registry if other.id in patch.conflicts or patch.id in other.conflicts}
            switches = {gates.ENABLE: wanted, gates.DISABLE: excluded - wanted}
            environ = {gate.name: ",".join(sorted(ids)) for gate, ids in switches.items() if ids}
            plans.append((environ, {patch.id}))
    return plans


def _with_required(registry: Registry, patch: Patch) -> set[str]:
    required = [_with_required(registry, registry.get(other, patch.id)) for other in patch.requires]
    return {patch.id}.union(*required)
