"""Greedy sampling: the column of each row's maximum, exactly as ``torch.argmax`` names it.

Every row is cut into equal parts, one per program, so that a batch of one occupies the whole GPU; a second, tiny
kernel takes the best part. A batch large enough to fill the GPU with whole rows needs no second kernel.

A program walks its part in blocks and keeps, for each position of a block, the largest value so far and the block it
came from: a conversion, a comparison, a maximum and a selection per element, which leaves 16-bit logits bound by
memory. Only at the end does a candidate become one 64-bit key, ordered by value and then by the smaller column, whose
maximum is the answer.
"""

from __future__ import annotations

import functools
from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from patches.kernels import device

MAX_VOCAB_SIZE = 2**31
"""Longest row, in columns: the last one is the largest int32."""

_LOGIT_DTYPES = frozenset({torch.bfloat16, torch.float16, torch.float32})
_INDEX_DTYPES = frozenset({torch.int32, torch.int64})

_UNIT_BYTES = 16
"""The widest load of a thread, on either vendor."""

_MAX_PART = 2**30
"""Columns of a part: positions inside one are 32-bit integers."""

_FINISH_BLOCK = 128


@triton.jit  # type: ignore[untyped-decorator]
def _update(best: tl.tensor, source: tl.tensor, values: tl.tensor, block: tl.tensor) -> tuple[tl.tensor, tl.tensor]:
    # Strictly greater: of equal values the first stays. A NaN is never greater, but from then on best is NaN.
    values = values.to(tl.float32)
    source = tl.where(values > best, block, source)
    return tl.maximum(best, values, propagate_nan=tl.PropagateNan.ALL), source


@triton.jit  # type: ignore[untyped-decorator]
def _key(value: tl.tensor, column: tl.tensor) -> tl.tensor:
    """An int64 that is larger for the larger float32 and, of equal ones, for the smaller column.

    Equal are also -0 and +0, and any two NaN; a NaN is larger than +inf.
    """
    bits = tl.where(value == 0.0, 0.0, value).to(tl.int32, bitcast=True)
    rank = tl.where(value != value, 0x7FFFFFFF, tl.where(bits < 0, bits ^ 0x7FFFFFFF, bits))
    return (rank.to(tl.int64) << 32) + (0x7FFFFFFF - column)


@triton.jit  # type: ignore[untyped-decorator]
def _is_nan(key: tl.tensor) -> tl.tensor:
    return (key >> 32) == 0x7FFFFFFF


@triton.jit  # type: ignore[untyped-decorator]
def _column(key: tl.tensor) -> tl.tensor:
    return 0x7FFFFFFF - (key & 0xFFFFFFFF)


# Nothing is specialised on but what ALIGNED says: one build serves every batch and vocabulary of its alignment.
@triton.jit(  # type: ignore[untyped-decorator]
    do_not_specialize=["n_cols", "row_stride", "blocks", "out_stride"],
    do_not_specialize_on_alignment=["out_ptr", "x_ptr"],
)
def _argmax_kernel(
    out_ptr: tl.tensor,
    x_ptr: tl.tensor,
    n_cols: tl.tensor,
    row_stride: tl.tensor,
    out_stride: tl.tensor,
    blocks: tl.tensor,
    BLOCK: tl.constexpr,
    ALIGNED: tl.constexpr,
    KEYS: tl.constexpr,
    STAGES: tl.constexpr,
) -> None:
    row = tl.program_id(0).to(tl.int64)
    part = tl.program_id(1).to(tl.int64)
    # Positions count from the 16-byte boundary at or before the row: the first `lead` of them precede it. Without that
    # every row of a vocabulary like 151666 would be read one element at a time.
    BYTES: tl.constexpr = x_ptr.dtype.element_ty.primitive_bitwidth // 8
    UNIT: tl.constexpr = 16 // BYTES
    address = (x_ptr + row * row_stride).to(tl.int64)
    start = part * blocks * BLOCK
    if ALIGNED:
        lead = 0
        end = tl.multiple_of(tl.minimum(n_cols - start, blocks * BLOCK).to(tl.int32), UNIT)
    else:
        lead = ((address & 15) // BYTES).to(tl.int32)
        end = tl.minimum(n_cols - start + lead, blocks * BLOCK).to(tl.int32)
    lanes = tl.arange(0, BLOCK)
    x = tl.multiple_of((address & -16).to(x_ptr.dtype), 16) + start + lanes

    # A masked load is as narrow as its mask is fine, so only the two blocks at the edges are masked, and both are
    # requested before the loop that hides their latency. A position outside the part keeps -inf.
    best = tl.full((BLOCK,), float("-inf"), tl.float32)
    source = tl.zeros((BLOCK,), tl.int32)
    first = 0
    full_begin = 0
    if not ALIGNED:
        first = tl.where(part == 0, lead, 0)
        full_begin = tl.where(first > 0, 1, 0)
        head = (lanes >= first) & (lanes < tl.minimum(end, full_begin * BLOCK))
        best = tl.load(x, mask=head, other=float("-inf")).to(tl.float32)
    full_end = tl.maximum(end // BLOCK, full_begin)
    tail = tl.load(x + full_end * BLOCK, mask=lanes < end - full_end * BLOCK, other=float("-inf"))
    for block in tl.range(full_begin, full_end, num_stages=STAGES):
        best, source = _update(best, source, tl.load(x + block * BLOCK), block)
    best, source = _update(best, source, tail, full_end)

    # One thread read the UNIT neighbours of a row of this matrix: reducing those first exchanges nothing.
    best = tl.reshape(best, (BLOCK // UNIT, UNIT))
    maximum = tl.max(best, axis=1)
    position = tl.reshape(source * BLOCK + lanes, (BLOCK // UNIT, UNIT))
    position = tl.where(best == maximum[:, None], position, 0x7FFFFFFF)
    position = tl.min(tl.where(best == best, position, -1), axis=1)
    maximum = tl.where(position < 0, float("nan"), maximum)
    # Where the row's maximum is -inf, positions before the row compete: column 0, the answer, is what they stand for.
    column = tl.maximum(start + position - lead, 0)
    key = tl.max(_key(maximum, column), axis=0)
    if _is_nan(key):
        # `best` tells that there is a NaN and not where the first one is. Rare enough to read the part again.
        nearest = tl.full((BLOCK,), 0x7FFFFFFF, tl.int32)
        for block in range(tl.cdiv(end, BLOCK)):
            at = block * BLOCK + lanes
            values = tl.load(x + block * BLOCK, mask=(at >= first) & (at < end), other=0.0).to(tl.float32)
            nearest = tl.minimum(nearest, tl.where(values == values, 0x7FFFFFFF, at))
        key = _key(tl.full((), float("nan"), tl.float32), start + tl.min(nearest, axis=0) - lead)

    if KEYS:
        tl.store(out_ptr + row * tl.num_programs(1) + part, key)
    else:
        tl.store(out_ptr + row * out_stride, _column(key).to(out_ptr.dtype.element_ty))


@triton.jit(  # type: ignore[untyped-decorator]
    do_not_specialize=["parts", "out_stride"], do_not_specialize_on_alignment=["out_ptr"]
)
def _finish_kernel(
    out_ptr: tl.tensor, keys_ptr: tl.tensor, parts: tl.tensor, out_stride: tl.tensor, BLOCK: tl.constexpr
) -> None:
    row = tl.program_id(0).to(tl.int64)
    lanes = tl.arange(0, BLOCK)
    LOWEST: tl.constexpr = -(2**63)
    best = tl.full((BLOCK,), LOWEST, tl.int64)
    for offset in range(0, parts, BLOCK):
        keys = tl.load(keys_ptr + row * parts + offset + lanes, mask=offset + lanes < parts, other=LOWEST)
        best = tl.maximum(best, keys)
    tl.store(out_ptr + row * out_stride, _column(tl.max(best, axis=0)).to(out_ptr.dtype.element_ty))


_INTERPRETED = not isinstance(_argmax_kernel, triton.JITFunction)
"""Whether Triton bound the kernels above to its CPU interpreter, which it decides when the decorator runs."""


class Partition(NamedTuple):
    """How a launch covers the logits: ``parts`` programs per row, each of ``blocks`` blocks of ``block`` columns, of
    which ``stages`` are in flight at once."""

    parts: int
    blocks: int
    block: int
    threads: int
    stages: int


def partition(batch: int, vocab: int, element_bytes: int, compute_units: int) -> Partition:
    """The partition of ``batch`` rows of ``vocab`` columns for a GPU of ``compute_units`` compute units (NVIDIA: SMs).

    From three rows for four compute units on, a program takes a whole row and the second kernel is saved; programs are
    sized for 1024 threads per compute unit, which keep enough loads in flight to use all of the memory's bandwidth.
    From two rows a compute unit on they keep four blocks in flight, so that the last rows are not left to wait for
    memory alone. Just above one row a compute unit, a second round of whole rows would leave most of the GPU idle:
    16-bit rows are then cut in four; 32-bit ones keep the memory busy all the same. Fewer rows are cut into up to
    three small programs per compute unit, none of which has less than three blocks: more parts would cost the second
    kernel more than they gain. (Measured on an H200.)
    """
    unit = _UNIT_BYTES // element_bytes
    columns = vocab + unit - 1  # a row may begin anywhere between two 16-byte boundaries
    narrow = element_bytes == 2
    quarters = narrow and 10 * compute_units < 10 * batch <= 13 * compute_units
    whole_rows = 4 * batch >= 3 * compute_units and not quarters
    threads, stages = 128, 1
    if quarters:
        threads = 256
    elif whole_rows and batch <= 4 * compute_units:
        threads = 512 if batch <= (3 if narrow else 2) * compute_units else 256
        stages = 4 if batch > 2 * compute_units else 1
    threads = min(threads, max(128, triton.next_power_of_2(columns // unit)))
    block = threads * (8 if whole_rows or quarters else unit)
    total = _ceil_div(columns, block)
    if quarters:
        parts = min(4, total)
    else:
        parts = 1 if whole_rows else max(1, min(3 * compute_units // batch, _ceil_div(total, 3)))
    parts = max(parts, _ceil_div(columns, _MAX_PART))
    blocks = _ceil_div(total, parts)
    return Partition(_ceil_div(total, blocks), blocks, block, threads, stages)


def _ceil_div(a: int, b: int) -> int:
    return -(-a // b)


@functools.cache
def _device(index: int) -> tuple[int, int]:
    """Compute units and threads of a warp (AMD: wave). The interpreter, of device -1, has neither to ask about."""
    if index < 0:
        return 1, 32
    properties = torch.cuda.get_device_properties(index)
    return properties.multi_processor_count, properties.warp_size


_partition = functools.cache(partition)


def supports(logits: Tensor) -> bool:
    """Whether :func:`greedy_argmax` may be called with these logits; reads metadata only."""
    return (
        (logits.is_cuda or (_INTERPRETED and logits.device.type == "cpu"))
        and logits.dtype in _LOGIT_DTYPES
        and logits.dim() == 2
        and 1 <= logits.shape[1] <= MAX_VOCAB_SIZE
        and (logits.stride(1) == 1 or logits.shape[1] == 1)
        and not torch.compiler.is_compiling()
    )


def greedy_argmax(logits: Tensor, out: Tensor | None = None, *, dtype: torch.dtype = torch.int64) -> Tensor:
    """``torch.argmax(logits, -1)``: of equal maxima the first column, and before any other value the first NaN.

    Call it where :func:`supports` is true for the same logits: it does not check them again. The logits are not
    written to. It neither waits for the GPU nor allocates outside torch's allocator, so a CUDA or HIP graph can
    capture it.

    Args:
        logits: ``(batch, vocab)``, bfloat16, float16 or float32; adjacent columns, rows any distance apart. No rows is
            allowed.
        out: where to write: ``(batch,)``, int32 or int64, on the device of ``logits``. By default a new tensor.
        dtype: of the new tensor: int32 or int64.

    Returns:
        ``(batch,)``: ``out``, or the new tensor.

    Raises:
        ValueError: if ``out`` or ``dtype`` cannot hold the result.
    """
    batch = logits.shape[0]
    if out is None:
        if dtype not in _INDEX_DTYPES:
            raise ValueError(f"greedy_argmax: dtype is {dtype}; pass torch.int32 or torch.int64")
        out = torch.empty(batch, dtype=dtype, device=logits.device)
    elif out.shape != (batch,) or out.dtype not in _INDEX_DTYPES or out.device != logits.device:
        raise ValueError(
            f"greedy_argmax: out is {out.dtype} of shape {tuple(out.shape)} on {out.device}; "
            f"pass int32 or int64 of shape ({batch},) on {logits.device}"
        )
    if batch == 0:
        return out  # an empty grid is a launch error
    index = logits.get_device()  # -1 on the CPU
    with device.guard(index):
        _launch(out, logits, index)
    return out


def builds(vocab: int, element_bytes: int, compute_units: int) -> list[Partition]:
    """A partition for every build that batches of such logits take: one for each of its constants."""
    chosen = (partition(batch, vocab, element_bytes, compute_units) for batch in range(1, 4 * compute_units + 2))
    distinct = {(p.parts > 1, p.block, p.threads, p.stages): p for p in chosen}
    return list(distinct.values())


_warmed: set[tuple[int, torch.dtype, torch.dtype, int, bool]] = set()


def _warm_up(out: Tensor, logits: Tensor, index: int, aligned: bool) -> None:
    """Compiles, and does not run, what other batches of these logits will need.

    A sampler runs outside the graphs that a server captures before it serves, so nothing else has met a batch that is
    larger than every one so far, and it would wait for the compiler in the middle of serving.
    """
    vocab = logits.shape[1]
    compute_units, warp_size = _device(index)
    for parts, blocks, block, threads, stages in builds(vocab, logits.element_size(), compute_units):
        _argmax_kernel.warmup(
            torch.int64 if parts > 1 else out.dtype, logits, vocab, vocab, 1, blocks,
            BLOCK=block, ALIGNED=aligned, KEYS=parts > 1, STAGES=stages,
            grid=(1,), num_warps=threads // warp_size,
        )  # fmt: skip
    _finish_kernel.warmup(out.dtype, torch.int64, 2, 1, BLOCK=_FINISH_BLOCK, grid=(1,), num_warps=1)


def _launch(out: Tensor, logits: Tensor, index: int) -> None:
    batch, vocab = logits.shape
    element_bytes = logits.element_size()
    compute_units, warp_size = _device(index)
    parts, blocks, block, threads, stages = _partition(batch, vocab, element_bytes, compute_units)
    row_stride = logits.stride(0)
    aligned = (logits.data_ptr() | row_stride * element_bytes | vocab * element_bytes) % _UNIT_BYTES == 0
    if not _INTERPRETED and (met := (index, logits.dtype, out.dtype, vocab, aligned)) not in _warmed:
        _warmed.add(met)
        _warm_up(out, logits, index, aligned)
    keys = None if parts == 1 else torch.empty((batch, parts), dtype=torch.int64, device=logits.device)
    _argmax_kernel[(batch, parts)](
        out if keys is None else keys, logits, vocab, row_stride, out.stride(0), blocks,
        BLOCK=block, ALIGNED=aligned, KEYS=keys is not None, STAGES=stages,
        num_warps=threads // warp_size,
    )  # fmt: skip
    if keys is not None:
        _finish_kernel[(batch,)](out, keys, parts, out.stride(0), BLOCK=_FINISH_BLOCK, num_warps=1)
