"""The fused Gemma RMSNorm against a float64 oracle."""

from __future__ import annotations

import importlib
import math

import numpy as np
import pytest
import torch
import torch._dynamo.testing
from torch import Tensor

from patches.kernels import gemma_rmsnorm as kernel
from patches.kernels.gemma_rmsnorm import can_overwrite, gemma_rmsnorm, supports
from tests.kernels import norm_reference

EPS = 1e-6
FORMS = ["plain", "residual", "residual+post"]


def randn(*shape: int, dtype: torch.dtype, device: str, scale: float = 1.0) -> Tensor:
    return (torch.randn(*shape, device=device) * scale).to(dtype)


def call_and_check(
    x: Tensor, weight: Tensor, residual: Tensor | None = None, post: Tensor | None = None, eps: float = EPS
) -> None:
    """Compares one call with the oracle, and checks what every call promises of its inputs and outputs."""
    inputs = [t for t in (x, weight, residual, post) if t is not None]
    before = [t.clone() for t in inputs]
    assert supports(x, weight, residual, post)

    result = gemma_rmsnorm(x, weight, eps, residual, post)

    for tensor, copy in zip(inputs, before, strict=True):
        assert torch.equal(tensor, copy), "an input was written to"
    want = norm_reference.expected(x, weight, eps, residual, post)
    if isinstance(result, Tensor):
        assert want.total is None
        outputs = [result]
    else:
        assert want.total is not None
        outputs = list(result)
        assert result[1].dtype == want.total.dtype
        assert torch.equal(result[1], want.total), "residual_out is not torch.add's sum, bit for bit"
    assert outputs[0].dtype == x.dtype
    norm_reference.assert_close(outputs[0], want.y)
    input_storages = {t.untyped_storage().data_ptr() for t in inputs if t.numel()}
    for output in outputs:
        assert output.shape == x.shape
        assert output.is_contiguous()
        assert output.numel() == 0 or output.untyped_storage().data_ptr() not in input_storages


def operands(form: str, shape: tuple[int, ...], dtype: torch.dtype, device: str) -> tuple[Tensor | None, Tensor | None]:
    residual = randn(*shape, dtype=dtype, device=device, scale=3.0) if form != "plain" else None
    post = randn(*shape, dtype=dtype, device=device) if form == "residual+post" else None
    return residual, post


@pytest.mark.usefixtures("poisoned")
class TestAgainstTheOracle:
    @pytest.mark.parametrize("weight_dtype", ["same", "float32"])
    @pytest.mark.parametrize("form", FORMS)
    @pytest.mark.parametrize("m", [0, 1, 3])
    @pytest.mark.parametrize("n", [64, 128, 256, 2048, 5120])
    def test_every_size(self, n: int, m: int, form: str, weight_dtype: str, dtype: torch.dtype, device: str) -> None:
        weight = randn(n, dtype=torch.float32 if weight_dtype == "float32" else dtype, device=device, scale=0.2)
        call_and_check(randn(m, n, dtype=dtype, device=device), weight, *operands(form, (m, n), dtype, device))

    @pytest.mark.parametrize("n", [1, 20, 100, 250, 257, 1000, 2051])
    def test_row_lengths_that_no_vector_or_block_divides(self, n: int, dtype: torch.dtype, device: str) -> None:
        residual, post = operands("residual+post", (11, n), dtype, device)
        call_and_check(randn(11, n, dtype=dtype, device=device), randn(n, dtype=dtype, device=device), residual, post)

    @pytest.mark.parametrize("n", [64, 128, 256])
    def test_short_rows_fill_several_programs(self, n: int, dtype: torch.dtype, device: str) -> None:
        m = 3 * kernel.launch_config(n, 32).rows + 1
        residual, post = operands("residual+post", (m, n), dtype, device)
        call_and_check(randn(m, n, dtype=dtype, device=device), randn(n, dtype=dtype, device=device), residual, post)

    @pytest.mark.parametrize("form", FORMS)
    @pytest.mark.parametrize("shape", [(256,), (2, 3, 256), (2, 0, 256), (2, 1, 3, 512)])
    def test_any_leading_dimensions(self, shape: tuple[int, ...], form: str, dtype: torch.dtype, device: str) -> None:
        weight = randn(shape[-1], dtype=dtype, device=device)
        call_and_check(randn(*shape, dtype=dtype, device=device), weight, *operands(form, shape, dtype, device))

    @pytest.mark.parametrize("offset", [0, 128, 3], ids=["aligned", "k", "odd"])
    def test_row_strided_slices_of_qkv(self, offset: int, dtype: torch.dtype, device: str) -> None:
        def q_slice() -> Tensor:
            return randn(5, 128 * 6, dtype=dtype, device=device)[:, offset : offset + 128]

        x = q_slice()
        assert not x.is_contiguous()
        call_and_check(x, randn(128, dtype=dtype, device=device), q_slice(), q_slice())

    def test_rows_of_different_strides(self, dtype: torch.dtype, device: str) -> None:
        """Each operand is walked with its own stride, the expanded one with 0."""
        x = randn(5, 700, dtype=dtype, device=device)[:, :512]
        residual = randn(5, 900, dtype=dtype, device=device)[:, :512]
        post = randn(1, 512, dtype=dtype, device=device).expand(5, 512)
        call_and_check(x, randn(512, dtype=dtype, device=device), residual, post)

    def test_column_strided_inputs(self, dtype: torch.dtype, device: str) -> None:
        def transposed() -> Tensor:
            return randn(256, 5, dtype=dtype, device=device).t()

        weight = randn(256, dtype=dtype, device=device)
        call_and_check(transposed(), weight, transposed(), transposed())
        call_and_check(randn(2, 256, 3, dtype=dtype, device=device).transpose(1, 2), weight)

    @pytest.mark.parametrize(
        ("residual_dtype", "post_dtype"),
        [
            (torch.float32, None),
            (torch.float32, torch.float32),
            (torch.float32, torch.float16),
            (torch.float16, torch.float32),
            (torch.bfloat16, torch.float16),
            (torch.bfloat16, torch.float32),
        ],
    )
    def test_sums_promote_as_torch_promotes(
        self, residual_dtype: torch.dtype, post_dtype: torch.dtype | None, dtype: torch.dtype, device: str
    ) -> None:
        residual = randn(3, 512, dtype=residual_dtype, device=device)
        post = None if post_dtype is None else randn(3, 512, dtype=post_dtype, device=device)
        call_and_check(
            randn(3, 512, dtype=dtype, device=device), randn(512, dtype=torch.float32, device=device), residual, post
        )

    def test_the_two_additions_round_one_after_the_other(self, dtype: torch.dtype, device: str) -> None:
        """1 + tiny is 1 and 1 - 1 is 0; added in another order, or rounded once, tiny would survive."""
        one = torch.ones(2, 64, dtype=dtype, device=device)
        tiny = torch.full_like(one, 2.0**-12)
        result = gemma_rmsnorm(-one, torch.zeros(64, dtype=dtype, device=device), EPS, one, tiny)
        assert torch.equal(result[1], torch.zeros_like(one))

    def test_eps_counts(self, dtype: torch.dtype, device: str) -> None:
        x = randn(3, 256, dtype=dtype, device=device, scale=1e-3)
        weight = randn(256, dtype=dtype, device=device)
        for eps in (1e-6, 1e-2):
            call_and_check(x, weight, eps=eps)

    @pytest.mark.parametrize("n", [64, 512], ids=["rows of one program", "rows of several programs"])
    def test_row_offsets_pass_32_bits(self, n: int, device: str) -> None:
        """Row 2 starts 2**31 elements after row 0. A 32-bit offset wraps to 2**31 before it, inside the storage."""
        stride = 2**30
        size = 2**32 + n
        if device == "cpu":  # pages that nothing touches are never backed
            storage = torch.from_numpy(np.zeros(size, dtype=np.float16))
        else:
            storage = torch.zeros(size, dtype=torch.float16, device=device)
        x = storage.as_strided((3, n), (stride, 1), 2**31)
        x.copy_(randn(3, n, dtype=torch.float16, device=device))
        call_and_check(x, randn(n, dtype=torch.float16, device=device), x, x)


def test_no_rows_launch_nothing(monkeypatch: pytest.MonkeyPatch, dtype: torch.dtype, device: str) -> None:
    monkeypatch.setattr(kernel, "_gemma_rmsnorm_kernel", None)
    x = torch.empty(0, 64, dtype=dtype, device=device)
    y, total = gemma_rmsnorm(x, torch.zeros(64, dtype=dtype, device=device), EPS, x)
    assert y.shape == total.shape == (0, 64)


def test_post_without_a_residual_is_ignored(dtype: torch.dtype, device: str) -> None:
    x, post = randn(2, 3, 256, dtype=dtype, device=device)
    weight = randn(256, dtype=dtype, device=device)
    assert supports(x, weight, None, post)
    alone, ignored = gemma_rmsnorm(x, weight, EPS), gemma_rmsnorm(x, weight, EPS, None, post)
    assert isinstance(alone, Tensor)
    assert isinstance(ignored, Tensor)
    assert torch.equal(alone, ignored)


def test_a_weight_updated_in_place_is_seen_by_the_next_call(dtype: torch.dtype, device: str) -> None:
    x, weight = randn(3, 256, dtype=dtype, device=device), randn(256, dtype=dtype, device=device)
    call_and_check(x, weight)
    weight.data.copy_(randn(256, dtype=dtype, device=device))
    call_and_check(x, weight)


class TestInPlace:
    @pytest.mark.parametrize("weight_dtype", ["same", "float32"])
    @pytest.mark.parametrize("n", [64, 128, 256, 1000, 2048, 5120])
    @pytest.mark.parametrize("m", [0, 1, 3, 20])
    def test_the_inputs_become_the_outputs_bit_for_bit(
        self, m: int, n: int, weight_dtype: str, dtype: torch.dtype, device: str
    ) -> None:
        x, residual = (randn(m, n, dtype=dtype, device=device, scale=3.0) for _ in range(2))
        weight = randn(n, dtype=torch.float32 if weight_dtype == "float32" else dtype, device=device)
        want = gemma_rmsnorm(x, weight, EPS, residual)
        got = gemma_rmsnorm(x, weight, EPS, residual, overwrite=True)
        assert got[0] is x and got[1] is residual
        assert torch.equal(x, want[0]) and torch.equal(residual, want[1])

    def test_nothing_beyond_the_rows_is_written(self, dtype: torch.dtype, device: str) -> None:
        """Neighbours in one storage, as the layers of a pool: rows of one program before and after them."""
        pool = randn(9, 64, dtype=dtype, device=device)
        kept = pool.clone()
        gemma_rmsnorm(pool[1:4], randn(64, dtype=dtype, device=device), EPS, pool[4:7], overwrite=True)
        for row in (0, 7, 8):
            assert torch.equal(pool[row], kept[row])
        assert torch.equal(pool[4:7], kept[1:4] + kept[4:7])

    @pytest.mark.parametrize(
        "case",
        [
            "overlap by a row",
            "overlap by an element",
            "one tensor",
            "strided x",
            "strided residual",
            "expanded residual",
            "transposed",
            "fp32 residual",
            "other 16 bits",
            "three dimensions",
            "x with a gradient",
            "residual with a gradient",
        ],
    )
    def test_what_is_not_overwritten_is_computed_apart(self, case: str, dtype: torch.dtype, device: str) -> None:
        pool = randn(4 * 8 * 64, dtype=dtype, device=device)
        x, residual = pool[:512].view(8, 64), pool[512:1024].view(8, 64)
        assert can_overwrite(x, residual) and can_overwrite(residual, x)
        other = torch.bfloat16 if dtype == torch.float16 else torch.float16
        x, residual = {
            "overlap by a row": (x, pool[448:960].view(8, 64)),
            "overlap by an element": (pool[511:1023].view(8, 64), pool[:512].view(8, 64)),
            "one tensor": (x, x),
            "strided x": (pool[:1024].view(8, 128)[:, :64], pool[1024:1536].view(8, 64)),
            "strided residual": (pool[1024:1536].view(8, 64), pool[:1024].view(8, 128)[:, :64]),
            "expanded residual": (x, pool[512:576].expand(8, 64)),
            "transposed": (pool[:512].view(64, 8).t(), residual),
            "fp32 residual": (x, residual.float()),
            "other 16 bits": (x, residual.to(other)),
            "three dimensions": (x.view(2, 4, 64), residual.view(2, 4, 64)),
            "x with a gradient": (x.clone().requires_grad_(), residual),
            "residual with a gradient": (x, residual.clone().requires_grad_()),
        }[case]
        assert not can_overwrite(x, residual)
        kept = x.clone(), residual.clone()
        with torch.no_grad():
            got = gemma_rmsnorm(x, randn(64, dtype=dtype, device=device), EPS, residual, overwrite=True)
        assert torch.equal(x, kept[0]) and torch.equal(residual, kept[1])
        assert torch.equal(got[1], torch.add(*kept))

    def test_a_second_addend_is_added_apart(self, dtype: torch.dtype, device: str) -> None:
        """As upstream's CUDA path: its op takes one addend, so the sum of two is a new tensor."""
        x, residual, post = randn(3, 4, 64, dtype=dtype, device=device)
        kept = x.clone(), residual.clone()
        got = gemma_rmsnorm(x, randn(64, dtype=dtype, device=device), EPS, residual, post, overwrite=True)
        assert torch.equal(x, kept[0]) and torch.equal(residual, kept[1])
        assert torch.equal(got[1], kept[0] + (kept[1] + post))

    def test_without_a_residual_nothing_is_overwritten(self, dtype: torch.dtype, device: str) -> None:
        """Callers keep x as the residual of the next norm."""
        x = randn(4, 64, dtype=dtype, device=device)
        kept = x.clone()
        y = gemma_rmsnorm(x, randn(64, dtype=dtype, device=device), EPS, overwrite=True)
        assert isinstance(y, Tensor) and y is not x and torch.equal(x, kept)


def test_a_single_rows_stride_does_not_count(dtype: torch.dtype, device: str) -> None:
    """torch reports any for it: 1, as here, would be a build of its own."""
    column = randn(64, 1, dtype=dtype, device=device)
    assert column.t().stride() == (1, 1) and column.t().shape == (1, 64)
    assert kernel._as_rows(column.t(), 64)[1] == 64
    call_and_check(column.t(), randn(64, dtype=dtype, device=device), column.t(), column.t())


class TestSupports:
    @pytest.mark.parametrize("n", [1, 64, 5120, 16384])
    def test_accepts(self, n: int, device: str) -> None:
        for dtype in (torch.float16, torch.bfloat16):
            x = torch.zeros(2, n, dtype=dtype, device=device)
            for operand in (torch.float16, torch.bfloat16, torch.float32):
                addend = torch.zeros(2, n, dtype=operand, device=device)
                assert supports(x, torch.zeros(n, dtype=operand, device=device), addend, addend)

    @pytest.mark.parametrize("case", ["float32", "float64", "int8", "too long", "0-d", "empty rows", "meta"])
    def test_rejects_x(self, case: str, device: str) -> None:
        x = {
            "float32": torch.zeros(2, 64),
            "float64": torch.zeros(2, 64, dtype=torch.float64),
            "int8": torch.zeros(2, 64, dtype=torch.int8),
            "too long": torch.zeros(2, 16385, dtype=torch.float16),
            "0-d": torch.zeros((), dtype=torch.float16),
            "empty rows": torch.zeros(2, 0, dtype=torch.float16),
            "meta": torch.zeros(2, 64, dtype=torch.float16, device="meta"),
        }[case]
        x = x if case == "meta" else x.to(device)
        weight = torch.zeros(x.shape[-1:], dtype=torch.float16, device=x.device)
        assert not supports(x, weight)

    @pytest.mark.parametrize("case", ["length", "2-d", "strided", "float64", "device"])
    def test_rejects_weight(self, case: str, device: str) -> None:
        weight = {
            "length": torch.zeros(63, dtype=torch.float16, device=device),
            "2-d": torch.zeros(1, 64, dtype=torch.float16, device=device),
            "strided": torch.zeros(128, dtype=torch.float16, device=device)[::2],
            "float64": torch.zeros(64, dtype=torch.float64, device=device),
            "device": torch.zeros(64, dtype=torch.float16, device="meta"),
        }[case]
        assert not supports(torch.zeros(2, 64, dtype=torch.float16, device=device), weight)

    @pytest.mark.parametrize("position", [0, 1], ids=["residual", "post"])
    @pytest.mark.parametrize("case", ["shape", "float64", "device"])
    def test_rejects_an_addend(self, case: str, position: int, device: str) -> None:
        good = torch.zeros(2, 64, dtype=torch.float16, device=device)
        bad = {
            "shape": torch.zeros(1, 64, dtype=torch.float16, device=device),
            "float64": torch.zeros(2, 64, dtype=torch.float64, device=device),
            "device": torch.zeros(2, 64, dtype=torch.float16, device="meta"),
        }[case]
        addends = [good, good]
        assert supports(good, good[0], *addends)
        addends[position] = bad
        assert not supports(good, good[0], *addends)

    def test_needs_the_interpreter_for_a_cpu_tensor(self, monkeypatch: pytest.MonkeyPatch) -> None:
        x = torch.zeros(2, 64, dtype=torch.float16)
        for interpreted in (True, False):
            monkeypatch.setattr(kernel, "_INTERPRETED", interpreted)
            assert supports(x, x[0]) is interpreted


class TestLaunchConfig:
    @pytest.mark.parametrize("warp_size", [32, 64])
    def test_every_length_gets_a_valid_shape(self, warp_size: int) -> None:
        for n in range(1, kernel.MAX_HIDDEN_SIZE + 1):
            block, rows, num_warps = kernel.launch_config(n, warp_size)
            assert n <= block < 2 * n
            assert math.log2(rows).is_integer()
            assert num_warps in (1, 2, 4, 8, 16)  # Triton takes powers of two
            threads = num_warps * warp_size
            assert 64 <= threads <= 512
            assert rows * block // threads in (8, 16, 32), "whole 16-byte loads, few enough to hold in registers"
            assert threads == 512 or rows * block // threads == 8, "threads are left idle"

    def test_threads_do_not_depend_on_the_warp_size(self) -> None:
        for n in (64, 128, 512, 2048, 5120, 16384):
            assert kernel.launch_config(n, 32).num_warps == 2 * kernel.launch_config(n, 64).num_warps

    def test_known_shapes(self) -> None:
        assert kernel.launch_config(128, 32) == (128, 8, 4)
        assert kernel.launch_config(4096, 32) == (4096, 1, 16)
        assert kernel.launch_config(5120, 64) == (8192, 1, 8)


class TestCompile:
    @pytest.fixture(autouse=True)
    def _fresh_dynamo(self) -> None:
        torch._dynamo.reset()

    @pytest.mark.parametrize("form", FORMS)
    @pytest.mark.parametrize("overwrite", [False, True])
    def test_one_graph_for_every_batch_and_equal_to_eager(
        self, overwrite: bool, form: str, dtype: torch.dtype, device: str
    ) -> None:
        """Compiled code is functional, also where eager code may overwrite."""
        backend = "inductor" if device == "cuda" else "aot_eager"
        counter = torch._dynamo.testing.CompileCounterWithBackend(backend)

        def norm(x: Tensor, weight: Tensor, residual: Tensor | None, post: Tensor | None) -> tuple[Tensor, ...]:
            assert supports(x, weight, residual, post)
            result = gemma_rmsnorm(x * 2, weight, 1e-6, residual, post, overwrite)
            return (result,) if isinstance(result, Tensor) else result

        compiled = torch.compile(norm, fullgraph=True, dynamic=True, backend=counter)
        weight = randn(256, dtype=dtype, device=device)
        for m in (2, 5, 9):
            shape = (m, 256) if overwrite else (m, 3, 256)
            x = randn(*shape, dtype=dtype, device=device)
            addends = operands(form, shape, dtype, device)
            given = [addend for addend in addends if addend is not None]
            kept = [addend.clone() for addend in given]
            made = compiled(x, weight, *addends)
            assert all(map(torch.equal, given, kept)), "compiled code wrote to its input"
            for got, want in zip(made, norm(x, weight, *addends), strict=True):
                assert torch.equal(got, want)
        assert counter.frame_count == 1
        assert counter.op_count > 0

    def test_the_operators_declare_what_they_return(self, dtype: torch.dtype, device: str) -> None:
        """torch's own check of the schema, the fake implementation and the aliasing, on awkward strides and dtypes."""
        x = randn(64, 5, dtype=dtype, device=device).t()
        weight = randn(64, dtype=torch.float32, device=device)
        residual = randn(5, 64, dtype=torch.float32, device=device)
        operators = torch.ops.amd_sglang
        torch.library.opcheck(operators.gemma_rmsnorm.default, (x, weight, EPS))
        torch.library.opcheck(operators.gemma_add_rmsnorm.default, (x, residual, None, weight, EPS))
        torch.library.opcheck(operators.gemma_add_rmsnorm.default, (x, x, residual, weight, EPS))

    def test_reloading_the_module_replaces_the_operators(self, dtype: torch.dtype, device: str) -> None:
        importlib.reload(kernel)
        x, weight = randn(3, 64, dtype=dtype, device=device), randn(64, dtype=dtype, device=device)
        compiled = torch.compile(kernel.gemma_rmsnorm, fullgraph=True, backend="aot_eager")
        got, want = compiled(x, weight, EPS), kernel.gemma_rmsnorm(x, weight, EPS)
        assert isinstance(got, Tensor)
        assert isinstance(want, Tensor)
        assert torch.equal(got, want)
