"""The greedy argmax against ``torch.argmax``."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import Tensor

from patches.kernels import argmax as kernel
from patches.kernels.argmax import Partition, greedy_argmax, partition, supports

INF, NAN = float("inf"), float("nan")
DTYPES = [torch.float32, torch.float16, torch.bfloat16]

Check = Callable[[Tensor], Tensor]


@pytest.fixture(params=["whole rows", "parts"])
def check(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Check:
    """Compares one call with torch, through one kernel or through two."""
    whole = request.param == "whole rows"
    monkeypatch.setattr(kernel, "_partition", lambda *_: choose(*_, whole=whole))

    def run(logits: Tensor) -> Tensor:
        before = logits.clone()
        assert supports(logits)
        ids = greedy_argmax(logits)
        assert ids.dtype == torch.int64 and ids.is_contiguous()
        assert torch.equal(ids, torch.argmax(logits, -1)), f"{ids.tolist()}, not {torch.argmax(logits, -1).tolist()}"
        assert torch.equal(torch.nan_to_num(logits.float(), 5.0), torch.nan_to_num(before.float(), 5.0))
        return ids

    return run


def choose(batch: int, vocab: int, element_bytes: int, _compute_units: int, *, whole: bool) -> Partition:
    """The module's own choices for a GPU that this batch fills, or does not."""
    return partition(batch, vocab, element_bytes, 1 if whole else 8 * batch)


@pytest.fixture(autouse=True)
def poisoned_integers(monkeypatch: pytest.MonkeyPatch) -> None:
    """Makes ``torch.empty`` return a token and a key that would win, so that one that nobody wrote shows."""
    empty = torch.empty

    def filled(*args: object, **kwargs: object) -> Tensor:
        made = empty(*args, **kwargs)  # type: ignore[call-overload]
        return made.fill_(2**62 if made.dtype == torch.int64 else 2**30)  # type: ignore[no-any-return]

    monkeypatch.setattr(torch, "empty", filled)


def randn(*shape: int, dtype: torch.dtype, device: str) -> Tensor:
    return torch.randn(*shape, device=device).to(dtype)


# 128 and 512 threads take blocks of 512 to 4096 columns: one column less, as many, one more.
VOCABS = [1, 2, 7, 8, 9, 511, 512, 513, 1024, 4095, 4096, 4097, 32000, 50257]


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("vocab", VOCABS)
def test_every_length(check: Check, vocab: int, dtype: torch.dtype, device: str) -> None:
    check(randn(3, vocab, dtype=dtype, device=device))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
@pytest.mark.parametrize("vocab", [1, 8, 2049, 9000])
def test_every_column_can_win(check: Check, vocab: int, dtype: torch.dtype, device: str) -> None:
    """First, last and both sides of every edge of blocks and parts, under negative logits."""
    columns = sorted({c for edge in range(0, vocab + 1, 512) for c in (edge - 1, edge, edge + 1) if 0 <= c < vocab})
    logits = torch.full((len(columns), vocab), -9.0, dtype=dtype, device=device)
    logits[range(len(columns)), columns] = -3.5
    assert check(logits).tolist() == columns


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("vocab", [3000, 9001])
def test_ties_go_to_the_first(check: Check, vocab: int, dtype: torch.dtype, device: str) -> None:
    torch.manual_seed(0)
    logits = torch.randint(-3, 0, (6, vocab), device=device).to(dtype)
    logits[:3, : vocab // 2] = -4.0
    logits[4] = -2.0
    check(logits)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("vocab", [5, 9001])
def test_signed_zeros_tie(check: Check, vocab: int, dtype: torch.dtype, device: str) -> None:
    logits = torch.full((4, vocab), -1.0, dtype=dtype, device=device)
    logits[0, [vocab // 3, vocab - 1]] = torch.tensor([-0.0, 0.0], dtype=dtype, device=device)
    logits[1, [vocab // 3, vocab - 1]] = torch.tensor([0.0, -0.0], dtype=dtype, device=device)
    logits[2] = -0.0
    logits[3] = -INF
    logits[3, vocab - 1] = -0.0
    assert check(logits).tolist() == [vocab // 3, vocab // 3, 0, vocab - 1]


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("vocab", [5, 9001])
def test_infinities(check: Check, vocab: int, dtype: torch.dtype, device: str) -> None:
    logits = randn(4, vocab, dtype=dtype, device=device)
    logits[0] = -INF
    logits[1] = -INF
    logits[1, vocab - 2] = -3.5
    logits[2, [1, vocab - 2]] = INF
    logits[3] = INF
    assert check(logits).tolist() == [0, vocab - 2, 1, 0]


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("vocab", [5, 9001])
def test_the_first_nan_wins(check: Check, vocab: int, dtype: torch.dtype, device: str) -> None:
    logits = randn(5, vocab, dtype=dtype, device=device)
    logits[0] = NAN
    logits[1, [vocab // 2, vocab - 1]] = NAN
    logits[2] = -INF
    logits[2, vocab - 1] = NAN
    logits[3, [0, vocab - 1]] = torch.tensor([INF, -NAN], dtype=dtype, device=device)
    assert check(logits)[:4].tolist() == [0, vocab // 2, vocab - 1, vocab - 1]


def test_nan_of_any_payload_and_sign(check: Check, device: str) -> None:
    bits = torch.tensor([0x7F800001, 0x7FFFFFFF, -0x400000, -1], dtype=torch.int32, device=device)
    logits = torch.zeros(2, 9001, device=device)
    logits[0, [8000, 700, 3, 4000]] = bits.view(torch.float32)
    logits[1, [8, 1700, 5555, 4000]] = bits.view(torch.float32)
    assert check(logits).tolist() == [3, 8]


@pytest.mark.parametrize("value", [INF, NAN, 9.0], ids=str)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("offset", [0, 1, 4, 7, 8])
@pytest.mark.parametrize(("width", "vocab"), [(5011, 5000), (5016, 5000), (5016, 5001)])
def test_neighbours_of_a_slice_stay_out(
    check: Check, width: int, vocab: int, offset: int, dtype: torch.dtype, value: float, device: str
) -> None:
    """Rows that begin and end anywhere between two 16-byte boundaries, amid values that would win."""
    whole = torch.full((3, width), value, dtype=dtype, device=device)
    logits = whole[:, offset : offset + vocab]
    logits.copy_(-torch.rand(3, vocab, device=device) - 1.0)
    logits[1] = -INF
    check(logits)


def test_rows_of_a_padded_vocabulary_and_one_row_for_all(check: Check, device: str) -> None:
    check(randn(3, 5120, dtype=torch.float16, device=device)[:, :5000])
    check(randn(1, 5000, dtype=torch.float16, device=device).expand(3, 5000))
    check(randn(5, 3, dtype=torch.float16, device=device)[:, 1:2])


def test_row_offsets_pass_32_bits(check: Check, device: str) -> None:
    """Row 2 starts 2**31 elements after row 0. A 32-bit offset wraps to 2**31 before it, inside the storage."""
    stride, vocab = 2**30, 1000
    size = 2**32 + vocab
    if device == "cpu":  # pages that nothing touches are never backed
        storage = torch.from_numpy(np.zeros(size, dtype=np.float16))
    else:
        storage = torch.zeros(size, dtype=torch.float16, device=device)
    logits = storage.as_strided((3, vocab), (stride, 1), 2**31)
    logits.copy_(torch.randn(3, vocab, device=device))
    check(logits)


class TestOutput:
    @pytest.mark.parametrize("dtype", [torch.int32, torch.int64])
    def test_of_either_dtype(self, dtype: torch.dtype, device: str) -> None:
        logits = randn(3, 700, dtype=torch.float16, device=device)
        ids = greedy_argmax(logits, dtype=dtype)
        assert ids.dtype == dtype
        assert torch.equal(ids.long(), torch.argmax(logits, -1))

    @pytest.mark.parametrize("parts", [1, 8])
    @pytest.mark.parametrize("dtype", [torch.int32, torch.int64])
    def test_given(self, dtype: torch.dtype, parts: int, device: str, monkeypatch: pytest.MonkeyPatch) -> None:
        """Strided, and nothing beside it is touched."""
        monkeypatch.setattr(kernel, "_partition", lambda *_: Partition(parts, 2, 1024, 128, 1))
        logits = randn(4, 2 * 1024 * parts - 9, dtype=torch.float16, device=device)
        buffer = torch.full((12,), -7, dtype=dtype, device=device)
        assert greedy_argmax(logits, buffer[1::3]).data_ptr() == buffer[1:].data_ptr()
        assert torch.equal(buffer[1::3].long(), torch.argmax(logits, -1))
        assert torch.equal(buffer[0::3], torch.full_like(buffer[0::3], -7))
        assert torch.equal(buffer[2::3], torch.full_like(buffer[2::3], -7))

    def test_of_no_rows(self, device: str, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(kernel, "_argmax_kernel", None)
        logits = torch.zeros(0, 100, device=device)
        assert supports(logits)
        assert greedy_argmax(logits, dtype=torch.int32).shape == (0,)
        out = torch.zeros(0, dtype=torch.int64, device=device)
        assert greedy_argmax(logits, out) is out

    def test_that_cannot_hold_the_result_is_an_error(self, device: str) -> None:
        logits = torch.zeros(3, 100, device=device)
        with pytest.raises(ValueError, match=r"dtype is torch\.int16; pass torch\.int32 or torch\.int64"):
            greedy_argmax(logits, dtype=torch.int16)
        for out in (
            torch.zeros(3, device=device),
            torch.zeros(4, dtype=torch.int64, device=device),
            torch.zeros(3, 1, dtype=torch.int64, device=device),
            torch.zeros(3, dtype=torch.int64, device="meta"),
        ):
            with pytest.raises(ValueError, match=r"pass int32 or int64 of shape \(3,\)"):
                greedy_argmax(logits, out)


class TestSupports:
    @pytest.mark.parametrize("dtype", DTYPES)
    def test_accepts(self, dtype: torch.dtype, device: str) -> None:
        logits = torch.zeros(2, 100, dtype=dtype, device=device)
        assert supports(logits)
        assert supports(logits[:, 3:50])
        assert supports(logits[:, 3:4])
        assert supports(logits[:0])
        assert supports(torch.zeros(1, dtype=dtype, device=device).expand(2, 1))

    @pytest.mark.parametrize("case", ["float64", "int32", "1-d", "3-d", "no columns", "columns apart", "long", "meta"])
    def test_rejects(self, case: str, device: str) -> None:
        logits = {
            "float64": torch.zeros(2, 9, dtype=torch.float64, device=device),
            "int32": torch.zeros(2, 9, dtype=torch.int32, device=device),
            "1-d": torch.zeros(9, device=device),
            "3-d": torch.zeros(2, 1, 9, device=device),
            "no columns": torch.zeros(2, 0, device=device),
            "columns apart": torch.zeros(9, 2, device=device).t(),
            "long": torch.zeros(1, device=device).as_strided((0, 2**31 + 1), (0, 1)),
            "meta": torch.zeros(2, 9, device="meta"),
        }[case]
        assert not supports(logits)

    def test_needs_the_interpreter_for_a_cpu_tensor(self, monkeypatch: pytest.MonkeyPatch) -> None:
        for interpreted in (True, False):
            monkeypatch.setattr(kernel, "_INTERPRETED", interpreted)
            assert supports(torch.zeros(2, 9)) is interpreted

    def test_leaves_traced_code_to_torch(self, device: str) -> None:
        def step(logits: Tensor) -> Tensor:
            return greedy_argmax(logits) if supports(logits) else torch.argmax(logits, -1)

        logits = randn(3, 700, dtype=torch.float32, device=device)
        compiled = torch.compile(step, fullgraph=True, backend="aot_eager")
        assert torch.equal(compiled(logits), torch.argmax(logits, -1))


class TestPartition:
    @pytest.mark.parametrize("element_bytes", [2, 4])
    @pytest.mark.parametrize("vocab", [1, 9, 1000, 50257, 151936, 2**27 + 1, 2**31])
    @pytest.mark.parametrize("compute_units", [1, 80, 132, 304])
    def test_covers_every_row_and_no_part_is_empty(self, compute_units: int, vocab: int, element_bytes: int) -> None:
        unit = 16 // element_bytes
        for batch in (1, 2, 7, 8, 33, 99, 132, 160, 256, 350, 1000, 100_000):
            parts, blocks, block, threads, _ = partition(batch, vocab, element_bytes, compute_units)
            part = blocks * block
            columns = vocab + unit - 1
            assert (parts - 1) * part < columns <= parts * part
            assert part <= 2**30 + block, "positions in a part would pass 32 bits"
            assert threads in (128, 256, 512)
            assert block // threads in (unit, 8), "whole 16-byte loads"
            assert parts <= 65535, "the second dimension of a grid holds no more"

    def test_few_rows_spread_over_the_gpu(self) -> None:
        for batch in (1, 2, 8, 64):
            parts, blocks, _, threads, _ = partition(batch, 151936, 2, 132)
            assert threads == 128
            assert blocks >= 3
            assert min(49, 132) <= batch * parts <= 3 * 132

    def test_a_full_gpu_takes_whole_rows(self) -> None:
        assert partition(98, 151936, 2, 132).parts > 1
        chosen = {batch: partition(batch, 151936, 2, 132) for batch in (99, 172, 264, 265, 396, 397, 528, 529)}
        assert {batch: (p.parts, p.threads, p.stages) for batch, p in chosen.items()} == {
            99: (1, 512, 1),
            172: (1, 512, 1),
            264: (1, 512, 1),
            265: (1, 512, 4),
            396: (1, 512, 4),
            397: (1, 256, 4),
            528: (1, 256, 4),
            529: (1, 128, 1),
        }
        assert [partition(batch, 151936, 4, 132)[3:] for batch in (264, 265)] == [(512, 1), (256, 4)]

    def test_a_second_round_that_would_be_nearly_empty_is_avoided(self) -> None:
        assert partition(132, 151936, 2, 132).parts == 1
        assert [partition(batch, 151936, 2, 132)[::3] for batch in (133, 171)] == [(4, 256)] * 2
        assert [partition(batch, 151936, 4, 132)[::3] for batch in (133, 171)] == [(1, 512)] * 2

    def test_short_rows_leave_no_thread_idle(self) -> None:
        assert partition(256, 1000, 2, 132) == (1, 1, 1024, 128, 1)
        assert partition(256, 2000, 2, 132) == (1, 1, 2048, 256, 1)

    def test_known_shapes(self) -> None:
        assert partition(1, 151936, 2, 132) == (50, 3, 1024, 128, 1)
        assert partition(8, 151936, 2, 132) == (38, 4, 1024, 128, 1)
        assert partition(256, 151936, 2, 132) == (1, 38, 4096, 512, 1)
        assert partition(8, 151936, 4, 132) == (43, 7, 512, 128, 1)
        assert partition(128, 151936, 4, 132) == (1, 38, 4096, 512, 1)
        assert partition(256, 2**31, 2, 132).parts == 3
