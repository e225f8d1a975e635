"""`sgl_kernel.scalar_type`: pure Python in the real package, and imported by sglang's quantisation on every platform.

The part of it that sglang uses (quantization/utils.py, marlin_utils.py, gptq.py, awq.py): what a sub-byte number looks
like, and the integer by which it is passed to a custom operator. The packing of that integer is fixed by sgl-kernel's
csrc/core/scalar_type.hpp.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import IntEnum


class NanRepr(IntEnum):
    """How a floating-point type spells NaN: not at all, as IEEE 754, or as the largest pattern only."""

    NONE = 0
    IEEE_754 = 1
    EXTD_RANGE_MAX_MIN = 2


@dataclass(frozen=True)
class ScalarType:
    """A number format. `exponent` is 0 for integers, whose value bits then are `mantissa`; a stored integer is its
    value plus `bias`."""

    exponent: int
    mantissa: int
    signed: bool
    bias: int = 0
    finite_values_only: bool = False
    nan_repr: NanRepr = NanRepr.IEEE_754

    @property
    def size_bits(self) -> int:
        return self.exponent + self.mantissa + self.signed

    @property
    def id(self) -> int:
        """All fields in one integer, lowest first: 8 + 8 + 1 + 32 + 1 + 8 bits."""
        packed = shift = 0
        fields = (self.exponent, self.mantissa, self.signed, self.bias, self.finite_values_only, self.nan_repr)
        for value, width in zip(fields, (8, 8, 1, 32, 1, 8), strict=True):
            packed |= (int(value) & ((1 << width) - 1)) << shift
            shift += width
        return packed

    def is_signed(self) -> bool:
        return self.signed

    def is_integer(self) -> bool:
        return self.exponent == 0

    def is_floating_point(self) -> bool:
        return self.exponent != 0

    def has_bias(self) -> bool:
        return self.bias != 0

    def min(self) -> int:
        """Smallest value of an integer type."""
        return (-(1 << (self.size_bits - 1)) if self.signed else 0) - self.bias

    def max(self) -> int:
        """Largest value of an integer type."""
        return (1 << self.mantissa) - 1 - self.bias


class scalar_types:
    """The formats by name."""

    int4 = ScalarType(0, 3, True)
    uint4 = ScalarType(0, 4, False)
    int8 = ScalarType(0, 7, True)
    uint8 = ScalarType(0, 8, False)
    uint2b2 = ScalarType(0, 2, False, 2)
    uint3b4 = ScalarType(0, 3, False, 4)
    uint4b8 = ScalarType(0, 4, False, 8)
    uint8b128 = ScalarType(0, 8, False, 128)
    float4_e2m1f = ScalarType(2, 1, True, 0, True, NanRepr.NONE)
    float6_e3m2f = ScalarType(3, 2, True, 0, True, NanRepr.NONE)
    float8_e4m3fn = ScalarType(4, 3, True, 0, True, NanRepr.EXTD_RANGE_MAX_MIN)
    float8_e5m2 = ScalarType(5, 2, True)
    float16 = float16_e5m10 = ScalarType(5, 10, True)
    bfloat16 = float16_e8m7 = ScalarType(8, 7, True)
