"""Everything asked to live on "cuda" lives on the CPU."""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch.overrides import TorchFunctionMode

_CPU = torch.device("cpu")
#: Moves that are none here.
_STAY = (torch.Tensor.cuda, torch.Tensor.pin_memory)


def apply() -> None:
    """Redirect device requests of this thread and of every thread started from now on."""
    OnCpu().__enter__()  # type: ignore[no-untyped-call]
    start = threading.Thread.start

    def start_redirected(self: threading.Thread) -> None:
        # On the instance, so that a subclass with a run() of its own is covered. Modes are per thread.
        run = self.run

        def redirected() -> None:
            with OnCpu():
                run()

        self.run = redirected  # type: ignore[method-assign]
        start(self)

    threading.Thread.start = start_redirected  # type: ignore[method-assign]
    torch.nn.Module.cuda = lambda self, device=None: self  # type: ignore[method-assign]


class OnCpu(TorchFunctionMode):
    """Calls every torch function with the CPU in place of a GPU, and without pinned memory, which needs a driver."""

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Sequence[type],
        args: Sequence[Any] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        if func in _STAY:
            return args[0]
        named = dict(kwargs or {})
        if named.get("pin_memory"):
            named["pin_memory"] = False
        if "device" in named and _is_gpu(named["device"], index=True):
            named["device"] = _CPU
        # Only `to` takes the name of a device by position; elsewhere "cuda" may be any string.
        names = func is torch.Tensor.to
        return func(*(_CPU if _is_gpu(a, name=names) else a for a in args), **named)


def _is_gpu(value: object, name: bool = True, index: bool = False) -> bool:
    """Whether a value stands for a GPU: a device, and where they may occur, its name or its bare index."""
    if isinstance(value, torch.device):
        return value.type == "cuda"
    if isinstance(value, str):
        return name and value.partition(":")[0] == "cuda"
    return index and type(value) is int
