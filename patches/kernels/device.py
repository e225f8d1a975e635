"""Launching a Triton kernel where its tensors live."""

from __future__ import annotations

import contextlib

import torch

_NO_GUARD = contextlib.nullcontext()


def guard(index: int) -> contextlib.AbstractContextManager[None]:
    """Makes device `index` current for a launch, and costs nothing where it is; -1 is the CPU.

    Triton launches on the current device, whichever one the tensors live on.
    """
    return _NO_GUARD if index < 0 or index == torch.cuda.current_device() else torch.cuda.device(index)
