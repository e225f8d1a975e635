"""What `dsv4-fused-mhc` does to the real `DeepseekV4DecoderLayer` of one release.

Not collected by name: `test_dsv4_fused_mhc.py` runs this file under the overlay, in the simulated ROCm. The layers are
of the release's class with its `forward`, `hc_pre` and `hc_post`; attention, MoE and norms are one line of PyTorch
each, and so are the two kernels of aiter that the release's methods call on ROCm.
"""

from __future__ import annotations

import importlib
import sys
from collections.abc import Callable
from contextlib import nullcontext
from types import ModuleType, SimpleNamespace
from typing import Any, NamedTuple

import pytest
import torch
from torch import Tensor

from overlay import runtime, simulate
from overlay.guard import Guard
from overlay.install import held
from overlay.model import State
from overlay.preimage import Proof
from patches import dsv4_fused_mhc
from tests.patches.in_release import mhc_placeholders as aiter
from tests.patches.in_release import one_rank
from tests.patches.in_release.guarding import GuardChecks, Subject, counters
from tests.patches.in_release.tilelang_placeholder import provide_tilelang

ID = "dsv4-fused-mhc"
FUSED = "triton:patches.kernels.mhc._post_kernel"
STREAMS, HIDDEN, LAYERS, TOKENS = 4, 64, 2, 5
MIXES = 2 * STREAMS + STREAMS * STREAMS


@pytest.fixture(scope="module")
def module() -> ModuleType:
    provide_tilelang()
    found = importlib.import_module("sglang.srt.models.deepseek_v4")
    from sglang.srt.layers.moe import initialize_moe_config

    initialize_moe_config(one_rank.start())
    overlay = runtime.current()
    assert overlay is not None
    assert overlay.state(ID)[0] is State.APPLIED, overlay.state(ID)
    return found


class Calls:
    """How often the release reached aiter's separate kernels, and its fused one."""

    fused: aiter.AiterKernel

    def __init__(self) -> None:
        self.pre = self.post = 0

    def mhc_pre(
        self,
        residual: Tensor,
        fn: Tensor,
        hc_scale: Tensor,
        hc_base: Tensor,
        rms_eps: float,
        hc_pre_eps: float,
        hc_sinkhorn_eps: float,
        hc_post_mult_value: float,
        sinkhorn_repeat: int,
    ) -> tuple[Tensor, Tensor, Tensor]:
        self.pre += 1
        y, post, comb = aiter.pre(
            residual, fn, hc_scale, hc_base, rms_eps, hc_pre_eps, hc_post_mult_value, sinkhorn_repeat
        )
        return post.unsqueeze(-1), comb, y

    def mhc_post(self, out: Tensor, x: Tensor, residual: Tensor, post: Tensor, comb: Tensor) -> None:
        self.post += 1
        out.copy_(aiter.post(x, residual, post, comb))


@pytest.fixture(autouse=True)
def separate(monkeypatch: pytest.MonkeyPatch) -> Calls:
    """An aiter with the separate kernels and one fused one that no call of ours may reach, in a server that was told
    it runs on ROCm (server_args.py, 0.5.14)."""
    calls = Calls()
    calls.fused = aiter.provide_kernel(monkeypatch)
    monkeypatch.setattr(sys.modules[aiter.HIP], "mhc_pre", calls.mhc_pre, raising=False)
    monkeypatch.setattr(sys.modules[aiter.HIP], "mhc_post", calls.mhc_post, raising=False)
    for name in ("PRE", "POST"):
        monkeypatch.setenv(f"SGLANG_OPT_USE_TILELANG_MHC_{name}", "0")
    return calls


@pytest.fixture(autouse=True)
def seeded() -> None:
    torch.manual_seed(0)


class Norm(torch.nn.Module):
    """Counts how often it is applied."""

    variance_epsilon = 1e-6

    def __init__(self) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(1 + torch.randn(HIDDEN) / 4, requires_grad=False)
        self.calls = 0

    def forward(self, x: Tensor) -> Tensor:
        self.calls += 1
        return torch.nn.functional.rms_norm(x.float(), (HIDDEN,), self.weight, self.variance_epsilon).to(x.dtype)


class Attention(torch.nn.Module):
    def maybe_use_decode_attn_tp(self, _batch: object) -> nullcontext[None]:
        return nullcontext()

    def forward(self, x: Tensor, **_: object) -> Tensor:
        return torch.tanh(x)


class Experts(torch.nn.Module):
    def forward(self, x: Tensor, *_: object, **__: object) -> Tensor:
        return torch.relu(x) - 0.3


def make_layer(cls: Any, hidden: int = HIDDEN) -> Any:
    """A layer with what `forward` asks of it; the constructor would build DeepSeek-V4's attention and experts."""
    layer = cls.__new__(cls)
    torch.nn.Module.__init__(layer)
    layer.self_attn, layer.mlp = Attention(), Experts()
    layer.input_layernorm, layer.post_attention_layernorm = Norm(), Norm()
    layer.hc_mult, layer.hc_sinkhorn_iters, layer.hc_eps, layer.rms_norm_eps = STREAMS, 20, 1e-6, 1e-6
    layer.hidden_size = hidden
    layer.dsa_enable_prefill_cp = layer.use_fused_mhc_post_pre = False
    layer._input_layernorm_weight_bf16 = layer._post_attention_layernorm_weight_bf16 = None
    for side in ("attn", "ffn"):
        weights = {
            "fn": torch.randn(MIXES, STREAMS * hidden) / (STREAMS * hidden) ** 0.5,
            "scale": torch.rand(3) + 0.5,
            "base": torch.randn(MIXES) / 3,
        }
        for name, value in weights.items():
            setattr(layer, f"hc_{side}_{name}", torch.nn.Parameter(value, requires_grad=False))
    return layer


def make_stack(module: ModuleType) -> list[Any]:
    return [make_layer(module.DeepseekV4DecoderLayer) for _ in range(LAYERS)]


def streams_of(tokens: int = TOKENS, hidden: int = HIDDEN) -> Tensor:
    return torch.randn(tokens, STREAMS, hidden).to(torch.bfloat16)


def run(stack: list[Any], hidden_states: Tensor) -> Tensor:
    """The layers one after another, as `DeepseekV4Model.forward` calls them."""
    batch = SimpleNamespace(dp_padding_mode=None)
    for layer in stack:
        hidden_states, *deferred = layer(
            positions=None,
            hidden_states=hidden_states,
            input_ids=None,
            forward_batch=batch,
            input_ids_global=None,
            prev_residual=None,
            prev_post=None,
            prev_comb=None,
        )
        assert deferred == [None, None, None]
    return hidden_states


@pytest.fixture
def unfused(monkeypatch: pytest.MonkeyPatch) -> Callable[[list[Any], Tensor], Tensor]:
    """`run` by the release's own methods alone."""

    def call(stack: list[Any], hidden_states: Tensor) -> Tensor:
        with monkeypatch.context() as patch:
            patch.setattr(torch.compiler, "is_compiling", lambda: True)
            return run(stack, hidden_states)

    return call


def launches() -> int:
    return simulate.calls().get(FUSED, 0)


def near(got: Tensor, want: Tensor) -> bool:
    """Rounding ties apart: two layers deep they move a stream by a few units of its largest value."""
    unit = 2.0**-7 * float(want.float().abs().max())
    return bool(((got.float() - want.float()).abs() <= unit).all())


def test_every_layer_is_fused_and_computes_the_same(
    module: ModuleType, separate: Calls, unfused: Callable[[list[Any], Tensor], Tensor]
) -> None:
    stack, hidden_states = make_stack(module), streams_of()
    kept = hidden_states.clone()
    want = unfused(stack, hidden_states)
    assert (separate.pre, separate.post) == (2 * LAYERS, 2 * LAYERS)

    before = launches()
    got = run(stack, hidden_states)
    assert launches() - before == LAYERS
    assert (separate.pre, separate.post) == (3 * LAYERS, 3 * LAYERS), "an attention's end is not the kernel's alone"
    assert near(got, want) and got.dtype == want.dtype and not torch.equal(got, kept)
    assert torch.equal(hidden_states, kept)
    for layer in stack:
        assert layer.input_layernorm.calls == layer.post_attention_layernorm.calls == 2, "a layernorm was lost"


def test_upstreams_own_branch_loses_the_layernorm(
    module: ModuleType, separate: Calls, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Why that branch stays closed: on gfx95, with an aiter that has the fused kernel."""
    monkeypatch.setattr(module, "_is_gfx95_supported", True)
    monkeypatch.setattr(module, "_use_aiter", False)  # it would fuse the input norm with a quantiser
    stack = make_stack(module)[:1]
    stack[0].use_fused_mhc_post_pre = True
    stack[0](None, streams_of(), None, SimpleNamespace(dp_padding_mode=None), None)
    assert separate.fused.calls == 1
    assert stack[0].post_attention_layernorm.calls == 0


@pytest.mark.parametrize(("tokens", "fused"), [(0, False), (1, True), (64, True), (65, False)])
def test_decode_is_fused_and_prefill_is_not(module: ModuleType, tokens: int, fused: bool) -> None:
    before = launches()
    layer = make_layer(module.DeepseekV4DecoderLayer)
    layer.hc_sinkhorn_iters = 2
    assert run([layer], streams_of(tokens)).shape == (tokens, STREAMS, HIDDEN)
    assert launches() - before == fused


def test_a_subclass_is_not_fused(module: ModuleType) -> None:
    """DSpark's stages inherit the methods and have a forward of their own."""
    before = launches()
    run([make_layer(type("Stage", (module.DeepseekV4DecoderLayer,), {}))], streams_of())
    assert launches() == before


@pytest.mark.parametrize("change", ["float32", "float16 weights", "two streams"])
def test_what_the_kernel_does_not_take_is_not_fused(module: ModuleType, change: str) -> None:
    layer, hidden_states = make_layer(module.DeepseekV4DecoderLayer), streams_of()
    if change == "float32":
        hidden_states = hidden_states.float()
    elif change == "float16 weights":
        layer.hc_ffn_scale.data = layer.hc_ffn_scale.data.half()
    else:
        layer.hc_mult, hidden_states = 2, hidden_states[:, :2].contiguous()
        for side in ("attn", "ffn"):
            for name, shape in (("fn", (8, 2 * HIDDEN)), ("base", (8,))):
                getattr(layer, f"hc_{side}_{name}").data = torch.randn(shape) / 10
    before = launches()
    assert run([layer], hidden_states).shape == hidden_states.shape
    assert launches() == before


class Half(NamedTuple):
    """One sublayer's start, as `hc_pre` returns it, with the streams it was made of."""

    streams: Tensor
    x: Tensor
    post: Tensor
    comb: Tensor


def start(layer: Any, side: str, streams: Tensor) -> Half:
    norm = layer.input_layernorm if side == "attn" else layer.post_attention_layernorm
    weights = (getattr(layer, f"hc_{side}_{name}") for name in ("fn", "scale", "base"))
    x, post, comb, normed = layer.hc_pre(streams, *weights, norm=norm)
    assert normed is False
    return Half(streams, x, post, comb)


def end(layer: Any, half: Half) -> Tensor:
    streams: Tensor = layer.hc_post(torch.tanh(half.x), half.streams, half.post, half.comb)
    return streams


def expected(layer: Any, half: Half) -> Half:
    """What follows an attention, by the placeholders of aiter's separate kernels."""
    streams = aiter.post(torch.tanh(half.x), half.streams, half.post, half.comb)
    weights = layer.hc_ffn_fn, layer.hc_ffn_scale, layer.hc_ffn_base
    return Half(streams, *aiter.pre(streams, *weights, 1e-6, 1e-6, 2.0, 20))


def agree(got: Half, want: Half) -> bool:
    exact = all(torch.allclose(a, b, rtol=0, atol=1e-3) for a, b in ((got.post, want.post), (got.comb, want.comb)))
    return exact and near(got.streams, want.streams) and near(got.x, want.x)


def test_interleaved_micro_batches_keep_their_own(module: ModuleType) -> None:
    """Two-batch overlap runs both through one layer in turn, here in the least favourable order."""
    layer = make_layer(module.DeepseekV4DecoderLayer)
    a, b = start(layer, "attn", streams_of()), start(layer, "attn", streams_of())
    before = launches()
    after_a, after_b = end(layer, a), end(layer, b)
    assert launches() - before == 2
    got_a, got_b = start(layer, "ffn", after_a), start(layer, "ffn", after_b)
    assert agree(got_a, expected(layer, a)) and agree(got_b, expected(layer, b))
    before = launches()
    end(layer, got_a)
    end(layer, got_b)
    assert launches() == before, "the end of a feed-forward part was taken for an attention's"


def test_the_operations_of_two_batch_overlap_are_fused(module: ModuleType) -> None:
    """`op_mhc_*` of the layer (since 0.5.15), two micro-batches in turn."""
    if not hasattr(module.DeepseekV4DecoderLayer, "op_mhc_prepare_attn"):
        pytest.skip("this release has no two-batch overlap for DeepSeek-V4")
    from sglang.srt.batch_overlap.operations import _StateDict

    layer = make_layer(module.DeepseekV4DecoderLayer)
    states = [_StateDict(), _StateDict()]
    halves = []
    for index, state in enumerate(states):
        streams = streams_of()
        layer.op_mhc_prepare_attn(state, None, streams, SimpleNamespace(), None, index)
        state.hidden_states_after_attn = torch.tanh(state.hidden_states_after_input_norm)
        halves.append((streams, state.hidden_states_after_attn, state.attn_post, state.attn_comb))
    before = launches()
    for state, (streams, x, post, comb) in zip(states, halves, strict=True):
        layer.op_mhc_post_attn_pre_mlp(state)
        want = aiter.post(x, streams, post, comb)
        y, *_ = aiter.pre(want, layer.hc_ffn_fn, layer.hc_ffn_scale, layer.hc_ffn_base, 1e-6, 1e-6, 2.0, 20)
        assert near(state.ffn_residual, want) and near(state.hidden_states_mlp_input, layer.post_attention_layernorm(y))
    assert launches() - before == 2


def test_other_streams_or_another_matrix_are_computed(module: ModuleType, separate: Calls) -> None:
    layer = make_layer(module.DeepseekV4DecoderLayer)
    after = end(layer, start(layer, "attn", streams_of()))
    counted = separate.pre
    start(layer, "ffn", after.clone())
    start(layer, "attn", after)
    assert separate.pre == counted + 2
    start(layer, "ffn", after)
    assert separate.pre == counted + 2, "what was ready is still there"
    start(layer, "ffn", after)
    assert separate.pre == counted + 3, "it was handed out twice"


class TestGuard(GuardChecks):
    @pytest.fixture
    def subject(
        self,
        module: ModuleType,
        unfused: Callable[[list[Any], Tensor], Tensor],
        monkeypatch: pytest.MonkeyPatch,
    ) -> Subject:
        stack, hidden_states = make_stack(module)[:1], streams_of()
        fusion = dsv4_fused_mhc.fusion_of("auto")
        (healthy,) = fusion._backends
        monkeypatch.setattr(fusion, "_backends", (healthy,))  # put back afterwards

        def replace(patch: pytest.MonkeyPatch, around: Callable[[Any], Any]) -> None:
            patch.setattr(fusion, "_backends", (healthy._replace(run=around(healthy.run)),))

        return Subject(
            ID,
            call=lambda: (run(stack, hidden_states),),
            upstream=lambda: (unfused(stack, hidden_states),),
            replace=replace,
            outputs=lambda _, boundary: tuple(boundary),
            methods=2,
        )

    def test_a_call_that_the_kernel_does_not_take_is_counted(
        self, module: ModuleType, subject: Subject, guard: Guard
    ) -> None:
        run(make_stack(module)[:1], streams_of(65))
        assert counters(subject) == {"calls": 0, "fallbacks": 1, "failures": 0, "shadowed": 0}


def test_uninstall_gives_the_class_back(module: ModuleType) -> None:
    """Last: it takes the patch out."""
    overlay = runtime.current()
    assert overlay is not None
    owner = module.DeepseekV4DecoderLayer
    patched = dict(vars(owner))
    overlay.uninstall(ID)
    restored = dict(vars(owner))
    assert {name for name in patched if patched[name] is not restored.get(name)} == {"hc_pre", "hc_post"}
    decision = next(d for d in overlay.plan.decisions if d.patch.id == ID)
    proofs = [Proof(sys.modules[r.slot.module]).objection(r.slot, held(r.slot), r.observed) for r in decision.slots]
    assert proofs == [None] * len(decision.slots)
    before = launches()
    run(make_stack(module), streams_of())
    assert launches() == before
