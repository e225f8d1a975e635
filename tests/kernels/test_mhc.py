"""The fused mHC against its definition."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
from torch import Tensor
from triton.runtime.interpreter import InterpreterBuilder, ReduceOps, ScanOps

from overlay.simulate import triton_bf16
from patches.kernels import mhc as kernel
from patches.kernels.mhc import Boundary, Constants, Norm, mhc_post_pre, supports
from tests.kernels.conftest import ON_GPU
from tests.kernels.mhc_reference import CONSTANTS, Inputs, assert_boundary, half_unit, make_inputs, sinkhorn, token_of


@pytest.fixture(scope="module", autouse=True)
def hardware_bf16() -> Iterator[None]:
    """Lets the interpreter compute in bfloat16 as a GPU does, for the tests of this module."""
    if ON_GPU:
        yield
        return
    kept = [(owner, dict(vars(owner))) for owner in (InterpreterBuilder, ReduceOps, ScanOps)]
    triton_bf16.apply()
    yield
    for owner, names in kept:
        for name in set(vars(owner)) - set(names):
            delattr(owner, name)
        for name, value in names.items():
            if vars(owner)[name] is not value:
                setattr(owner, name, value)


@pytest.fixture(autouse=True)
def fresh_scratch(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kernel, "_scratch", {})
    torch.manual_seed(0)


@pytest.fixture(params=[torch.bfloat16, torch.float16], ids=["bf16", "fp16"])
def dtype(request: pytest.FixtureRequest) -> torch.dtype:
    chosen: torch.dtype = request.param
    return chosen


def call_and_check(inputs: Inputs, constants: Constants = CONSTANTS, norm: Norm | None = None) -> Boundary:
    """Compares one call with the oracle, and every input with what it was before."""
    assert supports(*inputs)
    before = Inputs(*(t.clone() for t in inputs))
    made = mhc_post_pre(*inputs, constants, norm)
    tokens, hidden = inputs.x.shape
    assert made.residual.shape == (tokens, 4, hidden) and made.residual.dtype == inputs.x.dtype
    assert made.layer_input.shape == (tokens, hidden) and made.layer_input.dtype == inputs.x.dtype
    assert made.post.shape == (tokens, 4) and made.comb.shape == (tokens, 4, 4)
    assert made.post.dtype == made.comb.dtype == torch.float32
    assert all(t.is_contiguous() for t in made)
    for name, now, then in zip(Inputs._fields, inputs, before, strict=True):
        assert torch.equal(now, then), f"{name} was written to"
    if tokens:
        assert_boundary(made, before, constants, norm)
    return made


def norm_of(hidden: int, device: str, dtype: torch.dtype = torch.float32) -> Norm:
    return Norm((1 + torch.randn(hidden, device=device) * 0.3).to(dtype), 1e-6)


@pytest.mark.usefixtures("poisoned")
class TestAgainstTheDefinition:
    @pytest.mark.parametrize("hidden", [64, 320])
    @pytest.mark.parametrize("tokens", [0, 1, 3, 17])
    def test_every_size(self, tokens: int, hidden: int, dtype: torch.dtype, device: str) -> None:
        call_and_check(make_inputs(tokens, hidden, dtype, device), CONSTANTS._replace(iterations=3))

    def test_the_largest_batch(self, device: str) -> None:
        call_and_check(make_inputs(64, 128, torch.bfloat16, device), CONSTANTS._replace(iterations=2))

    @pytest.mark.parametrize("normed", [False, True], ids=["plain", "normed"])
    def test_the_size_of_the_model(self, normed: bool, device: str) -> None:
        inputs = make_inputs(2, 7168, torch.float16 if normed else torch.bfloat16, device, logit_scale=10)
        call_and_check(inputs, CONSTANTS, norm_of(7168, device) if normed else None)

    @pytest.mark.parametrize("weight_dtype", [torch.float32, torch.bfloat16], ids=str)
    def test_the_norm_of_small_sizes(self, weight_dtype: torch.dtype, dtype: torch.dtype, device: str) -> None:
        for tokens, hidden in ((1, 64), (5, 1100)):
            call_and_check(make_inputs(tokens, hidden, dtype, device), norm=norm_of(hidden, device, weight_dtype))

    def test_the_norm_takes_the_rounded_input(self, dtype: torch.dtype, device: str) -> None:
        """As a layernorm of its own reads it. A rounding tie of the input may fall otherwise there: rarely."""
        inputs, norm = make_inputs(3, 320, dtype, device), norm_of(320, device)
        y = mhc_post_pre(*inputs, CONSTANTS).layer_input.double()
        want = y * torch.rsqrt(y.square().mean(-1, keepdim=True) + norm.eps) * norm.weight.double()
        got = mhc_post_pre(*inputs, CONSTANTS, norm).layer_input.double()
        away = (got - want).abs() > half_unit(want, dtype) + 2**-20 * want.abs()
        assert float(away.double().mean()) < 0.01

    @pytest.mark.parametrize("logit_scale", [0.0, 1.0, 10.0, 20.0])
    def test_every_spread_of_logits(self, logit_scale: float, dtype: torch.dtype, device: str) -> None:
        inputs = make_inputs(3, 256, dtype, device, logit_scale)
        made = call_and_check(inputs)
        assert float((made.comb.sum(-2) - 1).abs().max()) < 1e-3

    @pytest.mark.filterwarnings("ignore:overflow encountered in exp")  # numpy's, in the interpreter: a sigmoid of -90
    @pytest.mark.parametrize("case", ["zeros", "large", "tiny", "one token", "saturated", "closed"])
    def test_extreme_values(self, case: str, dtype: torch.dtype, device: str) -> None:
        inputs = make_inputs(3, 256, dtype, device)
        if case == "zeros":
            inputs = inputs._replace(x=inputs.x * 0, residual=inputs.residual * 0)
        elif case == "large":
            inputs = inputs._replace(x=inputs.x * 2048, residual=inputs.residual * 2048)
        elif case == "tiny":
            inputs = inputs._replace(x=inputs.x * 2.0**-12, residual=inputs.residual * 2.0**-12)
        elif case == "one token":
            inputs.residual[1] = 0
            inputs.x[1] = 4096
        elif case == "saturated":
            inputs = inputs._replace(base=torch.tensor([90.0, -90.0] * 12, device=device))
        else:
            inputs = inputs._replace(post=inputs.post * 0, comb=inputs.comb * 0)
        call_and_check(inputs)

    def test_fn_keeps_every_bit(self, dtype: torch.dtype, device: str) -> None:
        """Against `base` a logit cancels down to the bits of `fn` that two bfloat16 do not hold."""
        hidden, logit = 64, 48.0
        inputs = make_inputs(1, hidden, dtype, device)
        for t in (inputs.x, inputs.residual, inputs.fn):
            t.zero_()
        inputs.comb[0] = torch.eye(4)
        inputs.residual[0, 1, 5] = 1
        inputs.fn[4:8, hidden + 5] = 1 + 2.0**-20
        inputs.scale.fill_(logit / (4 * hidden) ** 0.5)
        inputs.base.fill_(-logit)
        call_and_check(inputs, CONSTANTS._replace(rms_eps=0.0))

    def test_every_constant_counts(self, device: str) -> None:
        inputs = make_inputs(2, 64, torch.float16, device)
        inputs = inputs._replace(x=inputs.x / 64, residual=inputs.residual / 64)
        for changed in ({"rms_eps": 1e-2}, {"hc_eps": 1e-2}, {"post_mult": 1.5}, {"iterations": 1}, {"iterations": 2}):
            call_and_check(inputs, CONSTANTS._replace(**changed))

    def test_the_eps_of_the_norm_counts(self, device: str) -> None:
        inputs = make_inputs(2, 64, torch.float16, device)
        call_and_check(inputs, norm=norm_of(64, device)._replace(eps=0.5))

    @pytest.mark.parametrize("case", ["fn transposed", "fn strided", "fn beside NaN", "x strided", "x is a stream"])
    def test_layouts(self, case: str, dtype: torch.dtype, device: str) -> None:
        hidden = 200  # the last slice is not full
        inputs = make_inputs(5, hidden, dtype, device)
        if case == "fn transposed":
            inputs = inputs._replace(fn=inputs.fn.t().contiguous().t())
        elif case == "fn strided":
            inputs = inputs._replace(fn=inputs.fn.repeat_interleave(2, 1)[:, ::2])
        elif case == "fn beside NaN":
            wide = torch.cat([inputs.fn, torch.full((24, 64), float("nan"), device=device)], 1)
            inputs = inputs._replace(fn=wide[:, : 4 * hidden])
        elif case == "x strided":
            inputs = inputs._replace(x=torch.cat([inputs.x, inputs.x.neg()], 1)[:, :hidden])
        else:
            inputs = inputs._replace(x=inputs.residual[:, 2])
        call_and_check(inputs, CONSTANTS._replace(iterations=2))

    def test_a_token_does_not_depend_on_its_batch(self, dtype: torch.dtype, device: str) -> None:
        batch = make_inputs(18, 128, dtype, device)
        whole = mhc_post_pre(*batch, CONSTANTS)
        for t in (0, 15, 17):
            one = mhc_post_pre(*token_of(batch, t), CONSTANTS)
            for alone, among in zip(one, whole, strict=True):
                assert torch.equal(alone[0], among[t])


def test_the_reference_differs_from_the_logarithmic_form() -> None:
    """Why aiter's default of Sinkhorn is never used: at a logit scale of 10 it is another matrix."""
    logits = torch.randn(64, 4, 4, dtype=torch.float64) * 10
    p = logits.clone()
    for _ in range(20):
        p = p - p.logsumexp(-1, keepdim=True)
        p = p - p.logsumexp(-2, keepdim=True)
    assert float((p.exp() - sinkhorn(logits, 20, 1e-6)).abs().max()) > 0.1


class TestMemory:
    def test_outputs_are_fresh(self, device: str) -> None:
        inputs = make_inputs(3, 64, torch.float16, device)
        first = mhc_post_pre(*inputs, CONSTANTS)
        kept = Boundary(*(t.clone() for t in first))
        other = make_inputs(3, 64, torch.float16, device)
        second = mhc_post_pre(*other, CONSTANTS)
        storages = {t.untyped_storage().data_ptr() for t in (*inputs, *first, *second)}
        assert len(storages) == len(inputs) + len(first) + len(second)
        assert all(torch.equal(now, then) for now, then in zip(first, kept, strict=True))

    def test_scratch_is_shared_by_calls_of_every_size(self, device: str) -> None:
        sizes = []
        for tokens, hidden in ((2, 64), (5, 192), (1, 64), (5, 192)):
            inputs = make_inputs(tokens, hidden, torch.float16, device)
            assert_boundary(mhc_post_pre(*inputs, CONSTANTS), inputs)
            (buffer,) = kernel._scratch.values()
            sizes.append((buffer.numel(), buffer.data_ptr()))
        assert sizes[1] == sizes[2] == sizes[3] and sizes[0] < sizes[1]


class TestRules:
    @pytest.fixture
    def inputs(self, device: str) -> Inputs:
        return make_inputs(4, 64, torch.float16, device)

    def test_takes_what_it_was_written_for(self, inputs: Inputs, device: str) -> None:
        assert supports(*inputs)
        assert supports(*make_inputs(kernel.MAX_TOKENS, 64, torch.bfloat16, device))
        assert supports(*make_inputs(0, 64, torch.bfloat16, device))

    @pytest.mark.parametrize("change", ["too many", "1-d", "no width", "float32", "strided", "meta"])
    def test_rejects_x(self, inputs: Inputs, change: str, device: str) -> None:
        if change == "too many":
            assert not supports(*make_inputs(kernel.MAX_TOKENS + 1, 64, torch.float16, device))
            return
        if change == "no width":
            assert not supports(*make_inputs(4, 0, torch.float16, device)._replace(fn=inputs.fn[:, :0]))
            return
        if change == "float32":
            assert not supports(*inputs._replace(x=inputs.x.float(), residual=inputs.residual.float()))
            return
        if change == "meta":
            assert not supports(*(t.to("meta") for t in inputs))
            return
        bad = {"1-d": inputs.x[0], "strided": inputs.x.repeat_interleave(2, 1)[:, ::2]}
        assert not supports(*inputs._replace(x=bad[change]))

    @pytest.mark.parametrize("change", ["dtype", "two streams", "tokens", "width", "2-d", "strided", "meta"])
    def test_rejects_a_residual(self, inputs: Inputs, change: str) -> None:
        t = inputs.residual
        bad = {
            "dtype": t.bfloat16(),
            "two streams": t[:, :2].contiguous(),
            "tokens": t[:3],
            "width": t[..., :32].contiguous(),
            "2-d": t.flatten(1),
            "strided": t.transpose(0, 1).contiguous().transpose(0, 1),
        }
        assert not supports(*inputs._replace(residual=bad.get(change, t.to("meta"))))

    @pytest.mark.parametrize("name", ["post", "comb", "scale", "base"])
    @pytest.mark.parametrize("change", ["float16", "shape", "strided", "meta"])
    def test_rejects_float32_tensors(self, inputs: Inputs, name: str, change: str) -> None:
        t: Tensor = getattr(inputs, name)
        bad = {"float16": t.half(), "shape": t[..., None], "strided": t.repeat_interleave(2, -1)[..., ::2]}
        assert not supports(*inputs._replace(**{name: bad.get(change, t.to("meta"))}))

    @pytest.mark.parametrize("change", ["bfloat16", "transposed", "rows", "meta"])
    def test_rejects_fn(self, inputs: Inputs, change: str) -> None:
        t = inputs.fn
        bad = {"bfloat16": t.bfloat16(), "transposed": t.t(), "rows": t[:23]}
        assert not supports(*inputs._replace(fn=bad.get(change, t.to("meta"))))

    def test_needs_the_interpreter_for_a_cpu_tensor(self, monkeypatch: pytest.MonkeyPatch) -> None:
        inputs = make_inputs(4, 64, torch.float16, "cpu")
        for interpreted in (True, False):
            monkeypatch.setattr(kernel, "_INTERPRETED", interpreted)
            assert supports(*inputs) is interpreted


class TestLaunchConfig:
    @pytest.mark.parametrize("norm", [False, True], ids=["plain", "normed"])
    def test_threads_do_not_depend_on_the_warp_size(self, norm: bool) -> None:
        narrow, wide = (kernel.launch_config(7168, norm, warp_size) for warp_size in (32, 64))
        assert narrow == wide._replace(post_warps=2 * wide.post_warps, pre_warps=2 * wide.pre_warps)

    def test_the_norm_has_all_of_the_hidden_dimension_in_one_program(self) -> None:
        for hidden in (64, 4096, 7168):
            assert hidden <= kernel.launch_config(hidden, True, 64).block_pre < 2 * hidden
