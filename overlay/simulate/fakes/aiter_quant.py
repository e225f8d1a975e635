"""aiter's quantisers and samplers. Quantised weights are not simulated: quantisers are imported, never run."""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor

from overlay.simulate.fakes.aiter_values import QuantType
from overlay.simulate.fakes.catalogues import aiter
from overlay.simulate.fakes.errors import MissingBodyError
from overlay.simulate.settings import AITER_HEAD

_TOP = ("aiter",)

aiter.signature("aiter.ops.quant.static_per_tensor_quant", "out, input, scale", shown_in=_TOP)
aiter.signature("aiter.ops.quant.dynamic_per_tensor_quant", "out, input, scale", shown_in=_TOP)
aiter.signature(
    "aiter.ops.quant.dynamic_per_token_scaled_quant",
    "out, input, scales, scale_ub=None, shuffle_scale=False, num_rows=None, num_rows_factor=1",
    shown_in=_TOP,
)
aiter.signature(
    "aiter.ops.quant.per_1x32_f4_quant_hip",
    "x, scale=None, quant_dtype=..., shuffle=False, num_rows=None, num_rows_factor=1",
    shown_in=_TOP,
)
_PER_GROUP = "x, scale=None, quant_dtype=..., group_size=128, transpose_scale=False, num_rows=None, num_rows_factor=1"
aiter.signature("aiter.ops.quant.per_group_quant_hip", _PER_GROUP, last="v0.1.15")
aiter.signature("aiter.ops.quant.per_group_quant_hip", f"{_PER_GROUP}, scale_type=...", first=AITER_HEAD)
aiter.signature(
    "aiter.ops.triton.quant.quant.dynamic_mxfp4_quant", "x, scaling_mode='even'", shown_in=("aiter.ops.triton.quant",)
)
aiter.signature("aiter.utility.fp4_utils.e8m0_shuffle", "scale")


@aiter.function("aiter.ops.quant.get_hip_quant", shown_in=_TOP)
def get_hip_quant(qType: QuantType) -> Callable[..., tuple[Tensor, None]]:
    """The quantiser of a scheme. sglang asks for one when it is imported (quantization/fp8_utils.py)."""

    def quantise(x: Tensor, *_: object, **__: object) -> tuple[Tensor, None]:
        if qType != QuantType.No:
            raise MissingBodyError(f"aiter's quantiser for {qType!r} has no body in the simulation")
        return x, None

    return quantise


@aiter.function("aiter.ops.sample.greedy_sample", shown_in=_TOP)
def greedy_sample(out: Tensor, input: Tensor) -> None:
    """The index of each row's maximum: `input` [batch, vocabulary] to `out` [batch]."""
    out.copy_(input.argmax(-1))
