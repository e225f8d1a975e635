"""Where the kernel tests run: on the GPU if there is one, else in Triton's interpreter on the CPU.

Triton chooses when it is imported, so the choice is made here, before any test module imports it.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable

import pytest
import torch

ON_GPU = torch.cuda.is_available()

if not ON_GPU:
    if "triton" in sys.modules and os.environ.get("TRITON_INTERPRET") != "1":
        raise pytest.UsageError(
            "tests/kernels: triton was imported before these tests could select its interpreter, and there is no GPU; "
            "run pytest with TRITON_INTERPRET=1 in the environment"
        )
    os.environ["TRITON_INTERPRET"] = "1"


@pytest.fixture
def device() -> str:
    return "cuda" if ON_GPU else "cpu"


# Triton 3.6's interpreter truncates float32 -> bfloat16 where a GPU rounds to nearest.
@pytest.fixture(params=["float16", "bfloat16"] if ON_GPU else ["float16"])
def dtype(request: pytest.FixtureRequest) -> torch.dtype:
    return torch.float16 if request.param == "float16" else torch.bfloat16


@pytest.fixture
def poisoned(monkeypatch: pytest.MonkeyPatch) -> Callable[..., torch.Tensor]:
    """Makes ``torch.empty`` return NaN, so that an output element that no kernel wrote shows."""
    empty = torch.empty

    def nan_filled(*args: object, **kwargs: object) -> torch.Tensor:
        return empty(*args, **kwargs).fill_(float("nan"))  # type: ignore[call-overload, no-any-return]

    monkeypatch.setattr(torch, "empty", nan_filled)
    return nan_filled
