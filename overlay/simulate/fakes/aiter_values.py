"""aiter's enumerations, objects and constants."""

from __future__ import annotations

import inspect
from enum import Enum, IntEnum

import torch
import torch.nn.functional as F
from torch import Tensor

from overlay.simulate.fakes.catalogue import bind
from overlay.simulate.fakes.catalogues import aiter
from overlay.simulate.fakes.errors import MissingBodyError


class ActivationType(IntEnum):
    """csrc/include/aiter_enum.h. The head of 2026-08 adds Situv2, which no release of sglang here names."""

    No = -1
    Silu = 0
    Gelu = 1
    Swiglu = 2


class QuantType(IntEnum):
    """csrc/include/aiter_enum.h."""

    No = 0
    per_Tensor = 1
    per_Token = 2
    per_1x32 = 3
    per_1x128 = 4
    per_128x128 = 5
    per_256x128 = 6
    per_1024x128 = 7


class GateMode(str, Enum):
    """How the gate and up projections of an expert lie in memory (ops/flydsl/moe_common.py)."""

    SEPARATED = "separated"
    MOCK_GATE_ONLY = "mock_gate_only"
    GATE_ONLY = "gate_only"
    INTERLEAVE = "interleave"


class _TunedGemm:
    """Stands for `TunedGemm`, which picks a GEMM by shape from a table of measurements."""

    def __init__(self) -> None:
        self.mm = bind("aiter.tuned_gemm.tgemm.mm", inspect.signature(_mm), _mm)


def _mm(
    inp: Tensor,
    weights: Tensor,
    bias: Tensor | None = None,
    otype: torch.dtype | None = None,
    scale_a: Tensor | None = None,
    scale_b: Tensor | None = None,
    scale_c: Tensor | None = None,
) -> Tensor:
    if (scale_a, scale_b, scale_c) != (None, None, None):
        raise MissingBodyError("aiter.tuned_gemm.tgemm.mm with scales has no body in the simulation")
    return F.linear(inp, weights, bias).to(otype or inp.dtype)


def _no_instances(name: str) -> type:
    def refuse(self: object, *_: object, **__: object) -> None:
        raise MissingBodyError(f"{name} has no body in the simulation")

    module, _, attribute = name.rpartition(".")
    return type(attribute, (), {"__module__": module, "__init__": refuse})


aiter.value("aiter.ops.enum.ActivationType", lambda: ActivationType, shown_in=("aiter",))
aiter.value("aiter.ops.enum.QuantType", lambda: QuantType, shown_in=("aiter",))
aiter.value("aiter.ops.flydsl.moe_common.GateMode", lambda: GateMode, first="v0.1.15")
aiter.value("aiter.tuned_gemm.tgemm", _TunedGemm)
aiter.value(
    "aiter.dist.device_communicators.custom_all_reduce.CustomAllreduce",
    lambda: _no_instances("aiter.dist.device_communicators.custom_all_reduce.CustomAllreduce"),
)
# Where the C++ sources lie: sglang builds include paths from it, and compiles nothing here.
aiter.value("aiter.jit.core.AITER_CSRC_DIR", lambda: "/nonexistent/aiter_meta/csrc")
