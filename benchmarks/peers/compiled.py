"""torch.compile as a peer: what it makes of the unfused operations."""

from __future__ import annotations

from collections.abc import Callable
from typing import ParamSpec, TypeVar

import torch

P = ParamSpec("P")
R = TypeVar("R")


def compiled(function: Callable[P, R]) -> Callable[P, R]:
    """`function` by torch.compile, specialised anew: it does best when every size is a constant."""
    torch._dynamo.reset()
    return torch.compile(function, dynamic=False)
