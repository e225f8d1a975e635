"""Runs in the processes that the runtime tests start: the overlay with synthetic patches in place of the built-in ones.

Environment: PATCHES names what `registry` below offers; `activate` is the start of every scenario.
"""

from __future__ import annotations

import os
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

from overlay import guard as guards
from overlay import runtime
from overlay.counters import CALLS
from overlay.model import Method, Patch, Target
from overlay.registry import Registry
from overlay.runtime import Runtime
from tests.unit.engine_support import ALPHA, ALPHA_IMAGE, BETA_IMAGE, BETA_PATCH, PATCH, returning, variant


def _raise(_original: object) -> object:
    raise RuntimeError("no kernel for this GPU")


def _guarded(original: Any) -> object:
    """A method with a kernel, which fails while KERNEL says so."""
    guard = guards.guard("alpha")

    def forward(self: object) -> object:
        if guard.on:
            try:
                if os.environ.get("KERNEL"):
                    raise RuntimeError(os.environ["KERNEL"])
            except Exception as error:  # noqa: BLE001 - as in every patch with a kernel
                guard.trip(error)
            else:
                guard.counts[CALLS] += 1
                return "patched"
        return original(self)

    return forward


def _around(_original: object) -> object:
    return lambda wrapped, _instance, args, kwargs: f"around {wrapped(*args, **kwargs)}"


def _instead(original: Any) -> object:
    return lambda self: f"around {original(self)}"


def _stack(upper: Target) -> tuple[Patch, Patch]:
    """A patch, and one that requires it and fills its slot once more."""
    filled = variant(
        ALPHA_IMAGE, BETA_IMAGE, targets=(upper, Target(BETA_IMAGE.slot, Method.REPLACE, returning("patched")))
    )
    return PATCH, replace(BETA_PATCH, requires=("alpha",), variants=(filled,))


_ALPHA_FILLED = Target(ALPHA, Method.REPLACE, returning("patched"))
_BETA_FILLED = Target(BETA_IMAGE.slot, Method.REPLACE, returning("patched"))

PATCHES: dict[str, tuple[Patch, ...]] = {
    "alpha": (PATCH,),
    "alpha beta": (PATCH, BETA_PATCH),
    "guarded": (replace(PATCH, variants=(variant(ALPHA_IMAGE, targets=(Target(ALPHA, Method.REPLACE, _guarded),)),)),),
    "group": (replace(PATCH, variants=(variant(ALPHA_IMAGE, BETA_IMAGE, targets=(_ALPHA_FILLED, _BETA_FILLED)),)),),
    "raising": (
        replace(
            PATCH,
            variants=(
                variant(
                    ALPHA_IMAGE, BETA_IMAGE, targets=(_ALPHA_FILLED, Target(BETA_IMAGE.slot, Method.REPLACE, _raise))
                ),
            ),
        ),
    ),
    "needing": (
        replace(PATCH, variants=(variant(ALPHA_IMAGE, targets=(Target(ALPHA, Method.REPLACE, _raise),)),)),
        replace(BETA_PATCH, requires=("alpha",)),
    ),
    "wrapped twice": _stack(Target(ALPHA, Method.WRAP, _around)),
    "replaced twice": _stack(Target(ALPHA, Method.REPLACE, _instead)),
    "wrapping": (replace(PATCH, variants=(variant(ALPHA_IMAGE, targets=(Target(ALPHA, Method.WRAP, _around),)),)),),
}


def install_registry() -> None:
    """Every `activate` of this process, and the boot hook's, decides about the patches of the scenario."""
    chosen = Registry(PATCHES[os.environ["PATCHES"]])
    vars(runtime)["load"] = lambda _environ: chosen


def activate() -> Runtime:
    install_registry()
    return runtime.activate(os.environ)


def results() -> SimpleNamespace:
    """What callers of the two modules get."""
    from sglang.srt.alpha import Alpha
    from sglang.srt.beta import beta

    return SimpleNamespace(alpha=Alpha().forward(), beta=beta())
