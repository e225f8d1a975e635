"""Mori on ROCm: say so when the second stream has nothing to overlap with.

What upstream lacks. With DeepSeek's alternate stream (`patches.deepseek_dual_stream`) the shared experts run beside
Mori's dispatch and combine, which leaves them compute units only if Mori moves the tokens by its AsyncLL kernel.
#24005 (0.5.12) warns where it does not; 0.5.9 to 0.5.11 have no such warning.

Where this differs from #24005's warning, on purpose: it does not recommend `--deepep-mode auto`, which server_args.py
turns into `normal` for Mori; it is silent where MORI_ENABLE_SDMA=1 selects AsyncLL in normal mode (0.5.11); and it
takes every value of the variable that switches the stream on.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from overlay.model import Image, Method, Need, Patch, Slot, Target, Variant, always
from overlay.stream_environment import MULTI_STREAM

_MODULE = "sglang.srt.layers.moe.token_dispatcher.moriep"
_INIT = Slot(_MODULE, "MoriEPDispatcher.__init__")
_BASE_INIT = Slot(_MODULE, "_MoriEPDispatcherImplBase.__init__")
_OPERATOR = Slot(_MODULE, "init_mori_op")

#: By release: what selects AsyncLL.
_NOTHING = "Nothing in this release selects AsyncLL: it came with 0.5.10."
_MODE = "Pass --deepep-mode low_latency to select AsyncLL."
_MODE_OR_SDMA = "Pass --deepep-mode low_latency, or set MORI_ENABLE_SDMA=1, to select AsyncLL."


def _make_init(remedy: str) -> Callable[[object], Callable[..., None]]:
    """Around `MoriEPDispatcher.__init__`, of which every MoE layer has one: warns once a process."""

    def make(_original: object) -> Callable[..., None]:
        warned = False

        def init(
            wrapped: Callable[..., None], instance: Any, args: tuple[object, ...], kwargs: dict[str, object]
        ) -> None:
            nonlocal warned
            import logging  # a launch, which plans this patch and applies nothing, does without

            from sglang.srt.environ import envs

            wrapped(*args, **kwargs)
            if warned or not envs.SGLANG_ROCM_USE_MULTI_STREAM.get() or _is_async(instance):
                return
            warned = True
            logging.getLogger(_MODULE).warning(
                "%s is on, but Mori does not use its AsyncLL kernel (--deepep-mode %s): dispatch and combine occupy "
                "the compute units that the second stream would need. %s",
                MULTI_STREAM.name,
                instance.deepep_mode.value,
                remedy,
            )

        return init

    return make


def _is_async(dispatcher: Any) -> bool:
    """Whether Mori moves tokens by AsyncLL: what `init_mori_op` will decide (moriep.py:222, 0.5.11)."""
    if dispatcher.deepep_mode.enable_low_latency():
        return True
    return bool(getattr(dispatcher._normal_dispatcher, "enable_sdma", False))


_needed = always(Need(True, "back-port of #24005's warning: without AsyncLL the second stream waits for compute units"))


_contained = always(Need(False, "upstream warns itself"))


def _variant(name: str, init: str, base_init: str, operator: str, remedy: str) -> Variant:
    return Variant(
        name=name,
        images=(Image.of(_INIT, init), Image.of(_BASE_INIT, base_init), Image.of(_OPERATOR, operator)),
        need=_needed,
        targets=(Target(_INIT, Method.WRAP, _make_init(remedy)),),
    )


PATCH = Patch(
    id="mori-async-warning",
    title="a warning where Mori leaves the second stream no compute units",
    why="SGLANG_ROCM_USE_MULTI_STREAM=1 gains time with Mori only if its AsyncLL kernel copies the tokens; in normal "
    "mode nothing says that it does not.",
    upstream=("#24005",),
    contained_since="0.5.12",
    versions=">=0.5.9,<0.5.24",
    requires=("deepseek-dual-stream",),
    variants=(
        _variant("without-async", "a5a4ddd58d5c2151", "31110921c0fba903", "a7b68b1dced7b2ad", _NOTHING),
        _variant("async-by-mode", "2eda88dbde7477b6", "5a4be6a7003dd8ad", "3b9485dd8ec3acd7", _MODE),
        _variant("async-by-mode-or-sdma", "2eda88dbde7477b6", "74cb9753d0f1512d", "784ed9e1a1aee356", _MODE_OR_SDMA),
        Variant(
            name="upstream",
            images=(Image.of(_INIT, "50ef997deb294320", "210f94fc4899167c", "fb7d2737081587b6", "08d3fd0a81ea00d9"),),
            need=_contained,
        ),
    ),
    verified_by="real MoriEPDispatcher of 0.5.9, 0.5.10.post1 and 0.5.11 in every mode, with and without "
    "MORI_ENABLE_SDMA",
    remove_when="0.5.12 is the oldest supported release",
)
