"""Runs under the overlay, in a process that has imported what a server imports: what is pickled for sglang's child
processes, first with our patches alone and then with somebody else's code around every slot that they fill.

Prints `FOUND` and a JSON object: `patches` with each planned patch's state at the end, `lost` with every target that
came out of its pickle as something else, `slots` with the number of slots that they fill and `hooked` with the number
of those that were filled again, and `watched` with the seams of the witness.
"""

from __future__ import annotations

import importlib
import importlib.util
import io
import json
import pickle
import sys
from multiprocessing.reduction import ForkingPickler
from typing import Any

from overlay import runtime
from overlay.install import MARK, held
from overlay.model import Slot, State
from overlay.runtime import Runtime
from overlay.witness import SEAMS
from tests.coexistence import other_overlay
from tests.patches.in_release.vllm_placeholder import provide_vllm

#: What `Process(target=...)` is given (srt/entrypoints/engine.py, srt/managers/data_parallel_controller.py).
TARGETS = (
    "sglang.srt.managers.scheduler:run_scheduler_process",
    "sglang.srt.managers.detokenizer_manager:run_detokenizer_process",
    "sglang.srt.managers.data_parallel_controller:run_data_parallel_controller_process",
    "sglang.srt.entrypoints.engine:Engine.run_scheduler_process_func",
    "sglang.srt.entrypoints.engine:Engine.run_detokenizer_process_func",
    "sglang.srt.managers.scheduler:Scheduler",
    "sglang.srt.managers.data_parallel_controller:DataParallelController.launch_tensor_parallel_group",
)
HOOKS = "sglang.srt.plugins.hook_registry"


def unpickled(value: object) -> object:
    """Through the pickler that `spawn` uses."""
    return pickle.load(io.BytesIO(ForkingPickler.dumps(value)))


def lost() -> list[str]:
    """The targets that come out of the pickle as something else, or not at all."""
    found = []
    for target in TARGETS:
        module, _, qualname = target.partition(":")
        value: Any = importlib.import_module(module)
        for part in qualname.split("."):
            value = getattr(value, part)
        try:
            same = unpickled(value) is value
        except (pickle.PicklingError, AttributeError, NotImplementedError, TypeError) as error:
            found.append(f"{target}: {error}")
        else:
            found += [] if same else [f"{target}: another object"]
    return found


def filled(overlay: Runtime) -> list[Slot]:
    """Every slot that an applied patch fills."""
    applied = [d for d in overlay.plan.decisions if overlay.state(d.patch.id)[0] is State.APPLIED]
    return sorted({target.slot for decision in applied for target in decision.targets})


def hook(slot: Slot) -> None:
    """Put code of sglang's own plugins around a slot, or of another overlay where the release has no plugins."""
    owner_name, _, name = slot.qualname.rpartition(".")
    owner: Any = sys.modules[slot.module]
    for part in filter(None, owner_name.split(".")):
        owner = vars(owner)[part]
    if importlib.util.find_spec("sglang.srt.plugins") is None:
        other_overlay.wrap_with_wrapt(owner, name)
        return
    registry = importlib.import_module(HOOKS)
    registry.HookRegistry.register(
        f"{slot.module}.{slot.qualname}", lambda original, *args, **kwargs: original(*args, **kwargs),
        registry.HookType.AROUND,
    )  # fmt: skip


def main() -> None:
    import sglang  # noqa: F401 - from here on the overlay is active

    provide_vllm()
    for target in TARGETS:
        importlib.import_module(target.partition(":")[0])
    overlay = runtime.current()
    assert overlay is not None
    planned = [decision for decision in overlay.plan.decisions if decision.state is State.PLANNED]
    for name in sorted({report.slot.module for decision in planned for report in decision.slots}):
        importlib.import_module(name)
    watched = [str(seam.slot) for seam in SEAMS if getattr(held(seam.slot), MARK, None)]
    problems = lost()
    slots = filled(overlay)
    before = {str(slot): held(slot) for slot in slots}
    for slot in slots:
        hook(slot)
    if HOOKS in sys.modules:
        sys.modules[HOOKS].HookRegistry.apply_hooks()
    problems += lost()
    overlay.ready("scheduler", {})
    states = {d.patch.id: overlay.state(d.patch.id)[0].value for d in planned}
    hooked = sum(held(slot) is not before[str(slot)] for slot in slots)
    facts = {"patches": states, "lost": problems, "hooked": hooked, "slots": len(slots), "watched": watched}
    print("FOUND " + json.dumps(facts))


if __name__ == "__main__":
    main()
