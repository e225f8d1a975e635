"""Installs patches on one release, takes them out again, and compares every slot with the source they were planned on.

Run under the overlay as `take_out.py PATCH...`; prints `TAKEN OUT` and a JSON object: patch id -> `installs`,
`uninstalls` and the reason where one of them is false or, `installs` being null, could not be tried.
"""

from __future__ import annotations

import importlib
import json
import os
import sys

from overlay import gates, runtime
from overlay.install import held
from overlay.model import Decision, Slot, State
from overlay.plan import make_plan
from overlay.platform import Platform
from overlay.preimage import Proof
from overlay.registry import Registry, builtin
from overlay.runtime import Runtime
from overlay.source import installed_tree
from tests.patches.in_release import vllm_placeholder
from tests.patches.in_release.tilelang_placeholder import provide_tilelang

VLLM_NORMS = "fix-vllm-norm-signature"
Row = dict[str, object]


def beside_vllm(arch: str) -> Runtime:
    """No vLLM is installed, so the process's own plan leaves its norms alone: one that sees the placeholder."""
    vllm_placeholder.install_vllm()
    registry = Registry([builtin().get(VLLM_NORMS, "here")])
    platform = Platform("rocm", arch, vllm="0.9.2", simulated=True)
    environ = {name: value for name, value in os.environ.items() if name != gates.DISABLE.name}
    made = Runtime(make_plan(registry, installed_tree(), platform, environ), {})
    made.arm()
    return made


def slots(decision: Decision) -> set[Slot]:
    return {report.slot for report in decision.slots} | {target.slot for target in decision.targets}


def imported(decision: Decision) -> str | None:
    """Import what the patch waits for, and what those that it requires wait for; says why that failed."""
    for name in sorted({slot.module for slot in slots(decision)}):
        try:
            importlib.import_module(name)
        except Exception as error:  # noqa: BLE001 - sglang may fail in any way where a kernel library is missing
            return f"{name}: {type(error).__name__}: {error}"
    return None


def take_out(overlay: Runtime, wanted: list[str]) -> dict[str, Row]:
    """Everything that is applied is taken out, the last of the plan first; then every slot of `wanted` is proved."""
    planned = [decision for decision in overlay.plan.decisions if decision.state is State.PLANNED]
    obstacles = {decision.patch.id: imported(decision) for decision in planned}
    states = {patch_id: overlay.state(patch_id) for patch_id in wanted}
    for decision in reversed(planned):
        if overlay.state(decision.patch.id)[0] is State.APPLIED:
            overlay.uninstall(decision.patch.id)
    rows: dict[str, Row] = {}
    for decision in overlay.plan.decisions:
        patch_id = decision.patch.id
        if patch_id not in wanted:
            continue
        state, reason = states[patch_id]
        if obstacle := obstacles.get(patch_id):
            rows[patch_id] = {"installs": None, "uninstalls": None, "reason": obstacle}
        elif state is not State.APPLIED:
            rows[patch_id] = {"installs": False, "uninstalls": None, "reason": f"{state.value}: {reason}"}
        else:
            left = [f"{slot} {objection}" for slot in sorted(slots(decision)) if (objection := foreign(slot))]
            rows[patch_id] = {"installs": True, "uninstalls": not left, "reason": "; ".join(left)}
    return rows


def foreign(slot: Slot) -> str | None:
    """What is wrong with a slot: nothing, if it holds what the source of its module defines there."""
    return Proof(sys.modules[slot.module]).foreign(slot, held(slot))


def main(wanted: list[str]) -> None:
    import sglang  # noqa: F401 - from here on the overlay is active

    provide_tilelang()
    overlay = runtime.current()
    assert overlay is not None
    if VLLM_NORMS in wanted:
        overlay = beside_vllm(str(overlay.plan.platform.arch))
    else:
        vllm_placeholder.provide_vllm()
    print("TAKEN OUT " + json.dumps(take_out(overlay, wanted)))


if __name__ == "__main__":
    main(sys.argv[1:])
