"""Fresh memory that shows whether a kernel wrote it."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from overlay.errors import OverlayError


@contextlib.contextmanager
def poisoned(device: torch.device) -> Iterator[None]:
    """Within, whatever torch allocates starts as NaN, or as the largest integer: also what a kernel keeps for itself.

    This is torch's own `fill_uninitialized_memory`, which counts only while deterministic algorithms are asked for.
    Raises OverlayError if this torch does not do it.
    """
    before = torch.are_deterministic_algorithms_enabled(), torch.is_deterministic_algorithms_warn_only_enabled()
    settings: Any = torch.utils.deterministic  # a module whose attribute is a property
    filled = settings.fill_uninitialized_memory
    torch.use_deterministic_algorithms(True, warn_only=True)
    settings.fill_uninitialized_memory = True
    try:
        for dtype in (torch.bfloat16, torch.int64):
            probe = torch.empty(2, dtype=dtype, device=device)
            if not bool(untouched(probe).all()):
                raise OverlayError(
                    f"torch {torch.__version__} does not fill new memory, so that an element which no kernel wrote "
                    "would not show. Use torch 2.2 or later."
                )
        yield
    finally:
        settings.fill_uninitialized_memory = filled
        torch.use_deterministic_algorithms(before[0], warn_only=before[1])


def untouched(values: Tensor) -> Tensor:
    """Which elements hold the poison."""
    return values.isnan() if values.is_floating_point() else values == torch.iinfo(values.dtype).max


def poison(values: Tensor) -> None:
    """Overwrite a tensor that a captured graph writes."""
    values.fill_(float("nan") if values.is_floating_point() else torch.iinfo(values.dtype).max)
