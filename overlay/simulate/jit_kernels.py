"""sglang's own JIT kernels: C++ that is compiled on the machine, here by name in PyTorch."""

from __future__ import annotations

from collections.abc import Callable
from types import ModuleType, SimpleNamespace

import torch
from torch import Tensor

from overlay.install import put
from overlay.simulate.counters import count
from overlay.simulate.fakes.errors import MissingBodyError


def clamp_position(dst: Tensor, seq_lens: Tensor) -> None:
    """Last positions, `seq_lens - 1` but at least 0: [batch], int32 or int64 (jit_kernel/clamp_position.py)."""
    dst.copy_(torch.clamp(seq_lens - 1, min=0))


def resolve_future_token_ids(input_ids: Tensor, future_token_ids_map: Tensor) -> None:
    """Replace each negative id -i by entry i of the map, in place (jit_kernel/resolve_future_token_ids.py)."""
    promised = future_token_ids_map[torch.clamp(-input_ids, min=0)]
    input_ids.copy_(torch.where(input_ids < 0, promised, input_ids))


#: A module that `load_jit` builds, by its marker, and the one function it exports.
_KERNELS: dict[str, Callable[..., None]] = {
    "clamp_position": clamp_position,
    "resolve_future_token_ids": resolve_future_token_ids,
}


def apply(loader: ModuleType) -> None:
    """Give sglang's loader a `load_jit` that compiles nothing."""
    put(loader, "load_jit", load_jit)


def load_jit(*args: object, **_: object) -> SimpleNamespace:
    """The module sglang would compile. Raises MissingBodyError for one nobody wrote in PyTorch: a module that fails
    only when called would let sglang pass its start-up checks on a kernel that does not exist."""
    name = str(args[0]) if args else ""
    kernel = _KERNELS.get(name)
    if kernel is None:
        known = ", ".join(_KERNELS)
        raise MissingBodyError(
            f"sglang's JIT module {name!r} {args[1:]} has no body in the simulation (known: {known})"
        )

    def call(*tensors: Tensor) -> None:
        count(f"jit:{name}")
        kernel(*tensors)

    return SimpleNamespace(**{name: call})
