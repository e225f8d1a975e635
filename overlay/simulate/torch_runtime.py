"""Makes the CPU build of torch that was just imported answer as a ROCm build on an eight-GPU node."""

from __future__ import annotations

import torch
import torch.distributed
import torch.library
from torch.distributed import distributed_c10d
from torch.nn.modules.module import register_module_forward_hook

from overlay.simulate import torch_cuda, torch_devices
from overlay.simulate.counters import count
from overlay.simulate.settings import Arch

_HIP = "7.0.51831"


def apply(arch: Arch) -> None:
    """Change torch for the rest of this process."""
    torch.version.hip, torch.version.cuda = _HIP, None
    torch_cuda.apply(arch)
    torch_devices.apply()
    _use_gloo()
    _register_on_cpu()
    register_module_forward_hook(_count_dispatch)


def _use_gloo() -> None:
    """Process groups that ask for nccl (RCCL's name in torch) get gloo, which works on the tensors there are."""
    start, split = distributed_c10d.init_process_group, distributed_c10d.new_group

    def backend_here(backend: object) -> object:
        return "gloo" if isinstance(backend, str) and "nccl" in backend else backend

    def init_process_group(backend: object = None, *args: object, **kwargs: object) -> object:
        kwargs.pop("device_id", None)
        return start(backend_here(backend), *args, **kwargs)  # type: ignore[arg-type]

    def new_group(
        ranks: object = None, timeout: object = None, backend: object = None, *args: object, **kwargs: object
    ) -> object:
        kwargs.pop("device_id", None)
        return split(ranks, timeout, backend_here(backend), *args, **kwargs)  # type: ignore[arg-type]

    for module in (torch.distributed, distributed_c10d):
        vars(module).update(init_process_group=init_process_group, new_group=new_group)


def _register_on_cpu() -> None:
    """Custom operators reach the tensors of a simulation.

    sglang registers its operators for the dispatch key CUDA, which HIP shares (srt/utils/common.py
    direct_register_custom_op). torchvision registers fake kernels for operators of its own C++ extension, which
    cannot be loaded beside a CPU build of torch; nothing here calls them.
    """
    implement, register_fake = torch.library.Library.impl, torch.library.register_fake

    def impl(
        self: torch.library.Library, op_name: str, fn: object, dispatch_key: str = "", *args: object, **kwargs: object
    ) -> object:
        key = "CPU" if dispatch_key == "CUDA" else dispatch_key
        return implement(self, op_name, fn, key, *args, **kwargs)  # type: ignore[no-untyped-call]

    def fake(op: object, *args: object, **kwargs: object) -> object:
        if isinstance(op, str) and op.startswith("torchvision::") and torch._C._jit_get_operation(op)[0] is None:
            return lambda function: function
        return register_fake(op, *args, **kwargs)  # type: ignore[arg-type]

    torch.library.Library.impl = impl  # type: ignore[method-assign]
    torch.library.register_fake = fake


def _count_dispatch(module: torch.nn.Module, args: object, output: object) -> None:
    """Count which method one of sglang's operators dispatched to.

    A multi-platform operator of any release holds that method as `_forward_method` (layers/utils/multi_platform.py,
    since 0.5.16 kernels/fused_op.py, which resolves it in the first call: hence a hook that runs after the call).
    """
    method = getattr(module, "_forward_method", None)
    if method is not None:
        count(f"op:{type(module).__name__}.{getattr(method, '__name__', type(method).__name__)}")
