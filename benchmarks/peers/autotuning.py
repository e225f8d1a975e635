"""Compiles what Triton's autotuner will try with every core at once.

The autotuner compiles its configurations one after another: minutes for kernels with dozens of them. Which one it picks
is not touched: it still times each, and finds it compiled.
"""

from __future__ import annotations

import functools
import os
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any, ParamSpec, TypeVar

import triton
from triton.runtime import _async_compile
from triton.runtime.autotuner import Autotuner

P = ParamSpec("P")
R = TypeVar("R")


def compiled_at_once(function: Callable[P, R]) -> Callable[P, R]:
    """`function`, whose first call compiles the configurations of each autotuned kernel together before it tunes."""
    called = False

    @functools.wraps(function)
    def wrapper(*args: P.args, **kwargs: P.kwargs) -> R:
        nonlocal called
        if called:
            return function(*args, **kwargs)
        called = True
        with _parallel_compilation():
            return function(*args, **kwargs)

    return wrapper


@contextmanager
def _parallel_compilation() -> Iterator[None]:
    """While active, an autotuned kernel's configurations are compiled before it runs. Unchanged in the interpreter."""
    if triton.knobs.runtime.interpret:
        yield
        return
    plain_run = Autotuner.run

    def run(self: Any, *args: Any, **kwargs: Any) -> Any:
        # A configuration that does not compile (too many registers, too much shared memory) is the autotuner's to find.
        executor = ThreadPoolExecutor(os.cpu_count())
        with executor, _async_compile.AsyncCompileMode(executor, ignore_errors=True):
            self.warmup(*args, **{name: value for name, value in kwargs.items() if name != "warmup"})
        return plain_run(self, *args, **kwargs)

    Autotuner.run = run
    try:
        yield
    finally:
        Autotuner.run = plain_run
