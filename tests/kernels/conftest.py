"""Where the kernel tests run: on the GPU if there is one, else in Triton's interpreter on the CPU.

Triton chooses when it is imported, so the choice is made here, before any test module imports it.
"""

from __future__ import annotations

import functools
import os
import sys
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import pytest
import torch

from tests.kernels.amd_builds import PROGRAMS, Build, builds_of

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


@pytest.fixture(scope="session")
def amd_builds(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[[str, str], list[Build]]]:
    """The builds of a kernel for an AMD architecture, made once for all tests that look at them: two architectures at a
    time, and those of one kernel together, since whoever asks for one asks for the others next."""
    cache = tmp_path_factory.mktemp("triton")
    with ThreadPoolExecutor(2) as pool:

        @functools.cache
        def compiled(kernel: str) -> dict[str, Future[list[Build]]]:
            return {arch: pool.submit(builds_of, kernel, arch, cache) for arch in PROGRAMS[kernel][1]}

        yield lambda kernel, arch: compiled(kernel)[arch].result()


@pytest.fixture
def compilations() -> Iterator[list[str]]:
    """The names of the kernels that Triton compiles from here on, of whatever module; needs Triton's compiler."""
    from triton import knobs

    names: list[str] = []

    def compiled(**what: Any) -> None:
        names.append(what["repr"])

    before = knobs.runtime.jit_post_compile_hook
    knobs.runtime.jit_post_compile_hook = compiled
    yield names
    knobs.runtime.jit_post_compile_hook = before


@pytest.fixture
def poisoned(monkeypatch: pytest.MonkeyPatch) -> Callable[..., torch.Tensor]:
    """Makes ``torch.empty`` return NaN, so that an output element that no kernel wrote shows."""
    empty = torch.empty

    def nan_filled(*args: object, **kwargs: object) -> torch.Tensor:
        return empty(*args, **kwargs).fill_(float("nan"))  # type: ignore[call-overload, no-any-return]

    monkeypatch.setattr(torch, "empty", nan_filled)
    return nan_filled
