"""Makes the Triton that was just imported believe in an AMD GPU, and interpret its kernels faithfully."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from types import SimpleNamespace
from typing import Any

import triton
from triton.backends.compiler import GPUTarget
from triton.backends.driver import DriverBase
from triton.runtime.errors import InterpreterError
from triton.runtime.interpreter import InterpretedFunction, InterpreterOptions, _patch_lang, interpreter_builder

from overlay.simulate import triton_bf16, triton_language
from overlay.simulate.counters import count
from overlay.simulate.settings import Arch


def apply(arch: Arch) -> None:
    """Change Triton for the rest of this process."""
    triton.runtime.driver.set_active(_Driver(arch))
    if not triton.knobs.runtime.interpret:
        return
    triton_bf16.apply()
    triton_language.apply()
    _count_launches()
    _prepare_once_per_launch()
    # The interpreter repeats every integer operation in 64 bits to find overflows; a GPU build does so only in debug
    # mode, and half the time of an attention kernel goes there.
    interpreter_builder.options = InterpreterOptions(sanitize_overflow=False)


class _Driver(DriverBase):  # type: ignore[misc]
    """An AMD GPU that is described and never driven."""

    binary_ext = "hsaco"

    def __init__(self, arch: Arch) -> None:
        super().__init__()
        self._arch = arch
        self.utils = SimpleNamespace(get_device_properties=self.get_device_properties)

    @classmethod
    def is_active(cls) -> bool:
        return True

    def map_python_to_cpp_type(self, ty: str) -> str:
        return ty

    def get_current_target(self) -> Any:
        return GPUTarget("hip", self._arch.name, 64)

    def get_active_torch_device(self) -> Any:
        import torch

        return torch.device("cuda", 0)

    def get_device_interface(self) -> Any:
        import torch

        return torch.cuda

    def get_benchmarker(self) -> Callable[..., Sequence[float]]:
        """Every configuration takes no time: autotuning keeps the first that runs."""

        def bench(
            kernel_call: Callable[[], object], quantiles: Sequence[float] | None = None, **_: object
        ) -> list[float]:
            kernel_call()
            return [0.0] * len(quantiles or (0,))

        return bench

    def get_device_properties(self, device: int) -> dict[str, Any]:
        return {
            "arch": self._arch.name,
            "warpSize": 64,
            "multiprocessor_count": self._arch.compute_units,
            "max_shared_mem": 65536,
            "sm_clock_rate": 0,
            "mem_clock_rate": 0,
            "mem_bus_width": 0,
        }

    def get_current_device(self) -> int:
        return 0

    def set_current_device(self, device: int) -> None:
        pass

    def get_current_stream(self, device: int = 0) -> int:
        return 0


def _count_launches() -> None:
    run = InterpretedFunction.run

    def counted(self: Any, *args: Any, grid: Any, warmup: bool, **kwargs: Any) -> Any:
        if not warmup:
            count(f"triton:{self.fn.__module__}.{self.fn.__name__}")
            _prepared.clear()
        return run(self, *args, grid=grid, warmup=warmup, **kwargs)

    InterpretedFunction.run = counted


#: The device functions whose view of triton.language is in its interpreted state for the launch under way.
_prepared: set[Callable[..., Any]] = set()


def _prepare_once_per_launch() -> None:
    """Before every call of a device function the interpreter replaces some 200 attributes of triton.language, which
    nothing takes back before the launch ends (interpreter.py, InterpretedFunction.__call__). Once per launch is enough,
    and makes a decode step several times faster."""

    def call(self: Any, *args: Any, **kwargs: Any) -> Any:
        if self.fn not in _prepared:
            _patch_lang(self.fn)
            _prepared.add(self.fn)
        try:
            return self.rewrite()(*args, **kwargs)
        except Exception as error:
            raise InterpreterError(repr(error)) from error

    InterpretedFunction.__call__ = call
