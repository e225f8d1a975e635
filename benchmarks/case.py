"""What a suite declares: groups of cases, each with implementations that are prepared when their turn comes."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor


class AbsentError(Exception):
    """An implementation does not run here, or not at this size. The message is the reason, and is reported."""


class Place(NamedTuple):
    """Where a case's tensors are, and the dtype of its activations."""

    device: str
    dtype: torch.dtype

    @property
    def dtype_name(self) -> str:
        return str(self.dtype).removeprefix("torch.")

    def normal(self, *shape: int) -> Tensor:
        """Normally distributed activations."""
        return torch.randn(*shape, device=self.device).to(self.dtype)


GPU = Place("cuda", torch.bfloat16)


class Prepared(NamedTuple):
    """One implementation, bound to the inputs of its case, whose answer has been compared."""

    call: Callable[[], object]
    """what is timed; may be captured in a graph and repeated any number of times"""
    errors: Mapping[str, float]
    """how far its answer is from the definition, by measure; larger is worse, and 0 is exact"""


Maker = Callable[[], Prepared]


@dataclass(frozen=True)
class Case:
    """One size."""

    label: str
    parameters: Mapping[str, int | str]
    bytes_moved: int
    """what any implementation must read and write at least once"""
    operations: int
    """floating-point operations of its matrix products, for kernels that these may bound; else 0"""
    makers: Callable[[], Mapping[str, Maker]]
    """draws the inputs; each maker prepares one implementation of them, or raises AbsentError. The first is ours."""


@dataclass(frozen=True)
class Group:
    """The cases of one table."""

    suite: str
    title: str
    axes: str
    """what the labels of the cases are, for example "N, M" """
    cases: tuple[Case, ...]
