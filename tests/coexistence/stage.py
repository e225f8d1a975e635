"""Runs in the processes that the tests of coexistence start: `python -m tests.coexistence.stage ACT...`.

Three patches stand ready, one of a function, one of a method and one of a classmethod of a synthetic sglang. Each act
is one thing that happens to all three. At the end the process is ready, as a server would be, and what then runs at
each slot is printed beside the state that the overlay reports.
"""

from __future__ import annotations

import importlib
import json
import os
import sys
from collections.abc import Callable
from dataclasses import replace
from typing import Any

from overlay import runtime
from overlay.model import Image, Method, Slot, Target
from overlay.registry import Registry
from overlay.runtime import Runtime
from tests.coexistence import other_overlay
from tests.unit.engine_support import PATCH, digest_of, variant

MODULE = "sglang.srt.alpha"
SOURCE = """
def function():
    return "upstream"

class Alpha:
    def method(self):
        return "upstream"

    @classmethod
    def klass(cls):
        return "upstream"
"""
SLOTS = {"function": "function", "method": "Alpha.method", "classmethod": "Alpha.klass"}


def _ours(kind: str, wrapping: bool) -> Target:
    slot = Slot(MODULE, SLOTS[kind])
    if wrapping:
        return Target(slot, Method.WRAP, lambda _: lambda inner, _self, args, kwargs: f"ours({inner(*args, **kwargs)})")
    if kind == "classmethod":
        return Target(slot, Method.REPLACE, lambda _: classmethod(lambda _cls: "ours"))
    return Target(slot, Method.REPLACE, lambda _: lambda *_args: "ours")


def registry(*, wrapping: bool) -> Registry:
    """One patch for each kind of slot."""
    made = []
    for kind, qualname in SLOTS.items():
        image = Image.of(Slot(MODULE, qualname), digest_of(SOURCE, qualname))
        made.append(replace(PATCH, id=kind, variants=(variant(image, targets=(_ours(kind, wrapping),)),)))
    return Registry(made)


class Stage:
    """The acts."""

    def __init__(self) -> None:
        self.wrapping = False
        self._runtime: Runtime | None = None
        self._undo: list[other_overlay.Undo] = []

    def activate(self) -> None:
        vars(runtime)["load"] = lambda _environ: registry(wrapping=self.wrapping)
        self._runtime = runtime.activate(os.environ)

    def load(self) -> None:
        importlib.import_module(MODULE)

    def reload(self) -> None:
        importlib.reload(sys.modules[MODULE])

    def forget(self) -> None:
        """The next import executes the module once more."""
        del sys.modules[MODULE]
        del vars(sys.modules["sglang.srt"])["alpha"]

    def uninstall(self) -> None:
        assert self._runtime is not None
        for kind in SLOTS:
            self._runtime.uninstall(kind)

    def register(self, hook_type: str) -> None:
        """Hand one hook of sglang's own registry to it; `apply` puts it in place."""
        from sglang.srt.plugins.hook_registry import HookRegistry, HookType

        hooks: dict[str, Callable[..., Any]] = {
            "before": lambda *args, **kwargs: (args, kwargs),
            "after": lambda result, *_args: f"hook({result})",
            "around": lambda original, *args, **kwargs: f"hook({original(*args, **kwargs)})",
            "replace": lambda *_args: "hook",
        }
        for qualname in SLOTS.values():
            HookRegistry.register(f"{MODULE}.{qualname}", hooks[hook_type], HookType(hook_type))

    def apply(self) -> None:
        from sglang.srt.plugins.hook_registry import HookRegistry

        HookRegistry.apply_hooks()

    def hook(self, hook_type: str) -> None:
        self.register(hook_type)
        self.apply()

    def other(self, how: str) -> None:
        fill = {"replaces": other_overlay.replace, "wraps": other_overlay.wrap, "wrapt": other_overlay.wrap_with_wrapt}
        module = importlib.import_module(MODULE)
        for qualname in SLOTS.values():
            owner, _, name = qualname.rpartition(".")
            self._undo.append(fill[how](vars(module)[owner] if owner else module, name))

    def leaves(self) -> None:
        """The other overlay puts back what it found."""
        for undo in self._undo:
            undo()

    def end(self) -> dict[str, tuple[str, str]]:
        """Kind of slot -> what runs there, and the state that this process reports."""
        module: Any = importlib.import_module(MODULE)
        runs = {"function": module.function, "method": module.Alpha().method, "classmethod": module.Alpha.klass}
        assert self._runtime is not None
        self._runtime.ready("scheduler", {})
        return {kind: (call(), self._runtime.state(kind)[0].value) for kind, call in runs.items()}


def main(acts: list[str]) -> None:
    """Play the acts, such as `hook:around`, and print how it ended."""
    stage = Stage()
    for act in acts:
        name, _, argument = act.partition(":")
        if act == "wrapping":
            stage.wrapping = True
        else:
            getattr(stage, name)(*filter(None, (argument,)))
    print("END " + json.dumps(stage.end()))


if __name__ == "__main__":
    main(sys.argv[1:])
