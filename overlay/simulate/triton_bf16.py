"""bfloat16 as the hardware computes it, for Triton's interpreter.

The interpreter keeps bf16 values as uint16 bit patterns. Triton 3.6 converts them only between bf16 and fp32, and
there it truncates (runtime/interpreter.py cast_impl, _convert_float without a rounding mode); arithmetic, dot products
and reductions work on the patterns as if they were integers. Here all of them go through fp32, where every bf16 value
is exact, and come back rounded to nearest, ties to even, as `torch` and the GPU do it.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt
import triton.language as tl
from triton.runtime import interpreter
from triton.runtime.interpreter import InterpreterBuilder, ReduceOps, ScanOps, TensorHandle

_COMPARISONS = (np.equal, np.not_equal, np.less, np.greater, np.less_equal, np.greater_equal)


def widen(bits: npt.NDArray[np.uint16]) -> npt.NDArray[np.float32]:
    """bf16 patterns as the fp32 numbers they stand for. Exact."""
    return (np.asarray(bits).astype(np.uint32) << 16).view(np.float32)


def narrow(values: npt.ArrayLike) -> npt.NDArray[np.uint16]:
    """fp32 numbers as bf16 patterns, rounded to nearest, ties to even. A NaN stays a (quiet) NaN."""
    number = np.array(values, dtype=np.float32)
    bits = number.view(np.uint32)
    rounded = (bits + 0x7FFF + ((bits >> 16) & 1)) >> 16
    return np.where(np.isnan(number), (bits >> 16) | 0x40, rounded).astype(np.uint16)


def _is_bf16(*handles: Any) -> bool:
    return any(handle.dtype.scalar == tl.bfloat16 for handle in handles)


def _wide(handle: Any) -> Any:
    """An operand as fp32 if it is bf16, as it is otherwise."""
    return TensorHandle(widen(handle.data), tl.float32) if _is_bf16(handle) else handle


def _bf16(values: npt.ArrayLike) -> Any:
    return TensorHandle(narrow(values), tl.bfloat16)


def apply() -> None:
    """Correct the interpreter of this process."""
    for name, make in (
        ("cast_impl", _cast),
        ("create_fp_to_fp", _convert),
        ("binary_op", _binary),
        ("unary_op", _unary),
        ("ternary_op", _ternary),
        ("create_fma", _fma),
        ("create_rsqrt", _unary_method),
        ("create_erf", _unary_method),
        ("create_dot", _dot),
    ):
        setattr(InterpreterBuilder, name, make(getattr(InterpreterBuilder, name)))
    # Without it a bf16 constant other than 0 cannot be written in a kernel (semantic.py scalar_constant).
    InterpreterBuilder.get_bf16 = lambda self, value: _bf16([value])
    for owner, names in ((ReduceOps, ("sum", "min_max")), (ScanOps, ("cumsum", "cumprod"))):
        for name in names:
            setattr(owner, name, _reduction(getattr(owner, name)))


_Method = Callable[..., Any]


def _cast(plain: _Method) -> _Method:
    def cast_impl(self: Any, src: Any, dst_type: Any) -> Any:
        if dst_type.scalar == tl.bfloat16:
            return src if _is_bf16(src) else _bf16(src.data)
        return plain(self, _wide(src), dst_type)

    return cast_impl


def _convert(plain: _Method) -> _Method:
    def create_fp_to_fp(self: Any, src: Any, dst_type: Any, rounding_mode: Any) -> Any:
        if dst_type.scalar != tl.bfloat16:
            return plain(self, _wide(src), dst_type, rounding_mode)
        if rounding_mode == interpreter._ir.ROUNDING_MODE.RTZ:
            return plain(self, src, dst_type, rounding_mode)
        return _bf16(plain(self, src, tl.float32, None).data if src.dtype.primitive_bitwidth == 8 else src.data)

    return create_fp_to_fp


def _binary(plain: _Method) -> _Method:
    def binary_op(self: Any, lhs: Any, rhs: Any, op: Any) -> Any:
        if not _is_bf16(lhs, rhs):
            return plain(self, lhs, rhs, op)
        result = op(_wide(lhs).data, _wide(rhs).data)
        return TensorHandle(result, tl.int1) if op in _COMPARISONS else _bf16(result)

    return binary_op


def _unary(plain: _Method) -> _Method:
    def unary_op(self: Any, arg: Any, op: Any) -> Any:
        return _bf16(op(_wide(arg).data)) if _is_bf16(arg) else plain(self, arg, op)

    return unary_op


def _unary_method(plain: _Method) -> _Method:
    def create(self: Any, arg: Any) -> Any:
        return _bf16(plain(self, _wide(arg)).data) if _is_bf16(arg) else plain(self, arg)

    return create


def _ternary(plain: _Method) -> _Method:
    def ternary_op(self: Any, lhs: Any, rhs: Any, other: Any, op: Any) -> Any:
        if op is np.where or not _is_bf16(other):  # a choice between two values computes nothing
            return plain(self, lhs, rhs, other, op)
        return _bf16(op(_wide(lhs).data, _wide(rhs).data, _wide(other).data))

    return ternary_op


def _fma(plain: _Method) -> _Method:
    def create_fma(self: Any, x: Any, y: Any, z: Any) -> Any:
        return _bf16(plain(self, _wide(x), _wide(y), _wide(z)).data) if _is_bf16(z) else plain(self, x, y, z)

    return create_fma


def _dot(plain: _Method) -> _Method:
    def create_dot(self: Any, a: Any, b: Any, d: Any, *options: Any) -> Any:
        product = plain(self, _wide(a), _wide(b), _wide(d), *options)
        return _bf16(product.data) if _is_bf16(d) else product

    return create_dot


def _reduction(plain: _Method) -> _Method:
    """Accumulates in fp32 and rounds once: the order in which a GPU would round in between is not defined."""

    def back(result: Any) -> Any:
        if isinstance(result, (list, tuple)):
            return type(result)(back(one) for one in result)
        if result.dtype != tl.float32:
            return result  # the index beside a minimum or maximum
        return tl.core.tensor(_bf16(result.handle.data), _typed(result.type, tl.bfloat16))

    def reduce(self: Any, input: Any, *args: Any, **kwargs: Any) -> Any:
        if input.dtype != tl.bfloat16:
            return plain(self, input, *args, **kwargs)
        wide = tl.core.tensor(_wide(input.handle), _typed(input.type, tl.float32))
        return back(plain(self, wide, *args, **kwargs))

    return reduce


def _typed(shape_of: Any, scalar: Any) -> Any:
    return tl.block_type(scalar, list(shape_of.shape)) if shape_of.is_block() else scalar
