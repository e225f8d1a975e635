"""What `qwen3-fused-attention` does to the real `Qwen3Attention` of one release.

Not collected by name: `test_qwen3_fused_attention.py` runs this file under the overlay, in the simulated ROCm, once per
release. The layer, its rotary embedding and its KV pool are the release's own; the attention backend only records the
queries and writes the cache as every real one does.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterator
from types import SimpleNamespace
from typing import Any, NamedTuple

import pytest
import torch
from torch import Tensor

from overlay import runtime, simulate
from overlay.guard import Guard
from overlay.install import held
from overlay.model import State
from overlay.preimage import Proof
from patches.kernels import qk_norm_mrope as kernel
from patches.kernels.qk_norm_mrope import Geometry
from tests.kernels.mrope_reference import Inputs, assert_rotated, expected
from tests.patches.in_release import one_rank
from tests.patches.in_release.guarding import GuardChecks, Subject, counters
from tests.patches.in_release.vllm_placeholder import provide_vllm

AITER = "aiter.ops.fused_qk_norm_mrope_cache_quant.fused_qk_norm_mrope_3d_cache_pts_quant_shuffle"
BY_AITER = os.environ.get("AMD_SGLANG_QWEN3_ATTENTION_BACKEND") == "aiter"
FUSED = AITER if BY_AITER else "triton:patches.kernels.qk_norm_mrope._qk_norm_mrope_kernel"
HIDDEN, HEADS, KV_HEADS, D, SLOTS, MAX_POSITION = 64, 4, 2, 128, 32, 256


@pytest.fixture(scope="session")
def server_args() -> Any:
    """One gloo process, and the arguments of its server."""
    provide_vllm()
    return one_rank.start()


@pytest.fixture(scope="session")
def attention_class(server_args: Any) -> type[Any]:
    from sglang.srt.models.qwen3 import Qwen3Attention

    overlay = runtime.current()
    assert overlay is not None
    assert overlay.state("qwen3-fused-attention")[0] is State.APPLIED, overlay.state("qwen3-fused-attention")
    found: type[Any] = Qwen3Attention
    return found


@pytest.fixture(autouse=True)
def seeded() -> Iterator[None]:
    torch.manual_seed(0)
    yield


class Setup(NamedTuple):
    """A layer and one batch for it."""

    layer: Any
    positions: Tensor
    hidden_states: Tensor
    batch: Any

    def run(self) -> Tensor:
        output: Tensor = self.layer(
            positions=self.positions, hidden_states=self.hidden_states, forward_batch=self.batch
        )
        return output


class RecordingBackend:
    """Keeps the queries, and caches keys and values where it is asked to, as in every `forward_decode`."""

    def __init__(self) -> None:
        self.q = torch.empty(0)
        self.cached = False

    def forward(self, q: Tensor, k: Tensor, v: Tensor, layer: Any, batch: Any, save_kv_cache: bool = True) -> Tensor:
        self.q, self.cached = q, save_kv_cache
        if save_kv_cache:
            batch.token_to_kv_pool.set_kv_buffer(layer, batch.out_cache_loc, k, v)
        return q.reshape(q.shape[0], -1)


def make(
    attention_class: type[Any],
    dtype: torch.dtype = torch.bfloat16,
    tokens: int = 5,
    interleaved: bool = True,
    cache_dtype: torch.dtype | None = None,
) -> Setup:
    from sglang.srt.layers import rotary_embedding
    from sglang.srt.mem_cache.memory_pool import MHATokenToKVPool
    from sglang.srt.model_executor.forward_batch_info import ForwardMode

    scaling = {"rope_type": "default", "mrope_section": [24, 20, 20], "mrope_interleaved": interleaved}
    rotary_embedding._ROPE_DICT.clear()  # else layers share one object, and the tests change it
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        layer = attention_class(
            HIDDEN, HEADS, KV_HEADS, layer_id=1, head_dim=D, rope_scaling=scaling, rms_norm_eps=1e-6,
            max_position_embeddings=MAX_POSITION,
        )  # fmt: skip
    finally:
        torch.set_default_dtype(before)
    for name, parameter in layer.named_parameters():
        parameter.data = torch.randn(parameter.shape).to(dtype) * 0.2 + ("norm" in name)
    pool = MHATokenToKVPool(
        size=SLOTS - 1, page_size=1, dtype=cache_dtype or dtype, head_num=KV_HEADS, head_dim=D, layer_num=2,
        device="cpu", enable_memory_saver=False,
    )  # fmt: skip
    for buffer in (*pool.k_buffer, *pool.v_buffer):
        buffer.fill_(1 if buffer.dtype == torch.uint8 else float("nan"))
    batch = SimpleNamespace(
        forward_mode=ForwardMode.DECODE,
        token_to_kv_pool=pool,
        out_cache_loc=torch.randperm(SLOTS)[:tokens],
        attn_backend=RecordingBackend(),
    )
    positions = torch.randint(0, MAX_POSITION, (3, tokens + 3))[:, :tokens]  # a slice, as of a graph's buffer
    return Setup(layer, positions, torch.randn(tokens, HIDDEN).to(dtype), batch)


def launches() -> int:
    return simulate.calls().get(FUSED, 0)


def caches(setup: Setup) -> tuple[Tensor, Tensor]:
    k, v = setup.batch.token_to_kv_pool.get_kv_buffer(1)
    return k, v


@pytest.fixture
def stepwise(monkeypatch: pytest.MonkeyPatch) -> Callable[[Setup], tuple[Tensor, Tensor, Tensor, Tensor]]:
    """Runs the release's own forward: output, queries and both caches, which are left as they were."""

    def run(setup: Setup) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        kept = [t.clone() for t in caches(setup)]
        before = launches()
        with monkeypatch.context() as patch:
            patch.setattr(torch.compiler, "is_compiling", lambda: True)
            output = setup.run()
        assert launches() == before and setup.batch.attn_backend.cached
        result = (output, setup.batch.attn_backend.q, *(t.clone() for t in caches(setup)))
        for cache, copy in zip(caches(setup), kept, strict=True):
            cache.copy_(copy)
        return result

    return run


@pytest.mark.parametrize("tokens", [1, 5])
@pytest.mark.parametrize("interleaved", [True, False], ids=["interleaved", "runs"])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=["bf16", "fp16"])
def test_fused_is_the_definition_and_near_the_stepwise_path(
    attention_class: type[Any],
    stepwise: Callable[[Setup], tuple[Tensor, Tensor, Tensor, Tensor]],
    dtype: torch.dtype,
    interleaved: bool,
    tokens: int,
) -> None:
    setup = make(attention_class, dtype, tokens, interleaved)
    old_output, old_q, old_k, old_v = stepwise(setup)
    before = launches()
    output = setup.run()
    assert launches() > before and not setup.batch.attn_backend.cached

    layer, slots = setup.layer, setup.batch.out_cache_loc
    geometry = Geometry(HEADS, KV_HEADS, D, (24, 20, 20), interleaved, layer.rotary_emb.is_neox_style, 1e-6)
    (k_cache, v_cache), q = caches(setup), setup.batch.attn_backend.q
    qkv, _ = layer.qkv_proj(setup.hidden_states)
    table = layer.rotary_emb.cos_sin_cache
    weights = layer.q_norm.weight.data, layer.k_norm.weight.data
    want_q, want_k, want_v = expected(geometry, Inputs(qkv, *weights, table, setup.positions, k_cache, v_cache, slots))
    if BY_AITER:
        assert torch.allclose(q.view(want_q.value.shape), want_q.value, rtol=2**-6, atol=2**-6)
        assert torch.allclose(k_cache[slots], want_k.value, rtol=2**-6, atol=2**-6)
    else:
        assert_rotated(q, want_q)
        assert_rotated(k_cache[slots], want_k)
    assert torch.equal(v_cache[slots], want_v) and torch.equal(v_cache[slots], old_v[slots])
    others = torch.ones(SLOTS, dtype=torch.bool).index_fill_(0, slots, False)
    assert bool(k_cache[others].isnan().all() and v_cache[others].isnan().all())
    other_layer = setup.batch.token_to_kv_pool.get_kv_buffer(0)
    assert all(bool(buffer.isnan().all()) for buffer in other_layer)

    # The stepwise path rounds the rotation's products to 16 bits too: a few units of the largest value.
    unit = 2.0 ** (-6 if dtype == torch.bfloat16 else -9)
    for new, old in ((q.view(old_q.shape), old_q), (k_cache[slots], old_k[slots])):
        assert float((new.float() - old.float()).abs().max()) <= unit * float(old.float().abs().max())
    assert output.shape == old_output.shape and output.dtype == old_output.dtype
    assert float((output.float() - old_output.float()).abs().max()) <= unit * float(old_output.float().abs().max())


def retype(instance: Any) -> None:
    """Make an object an instance of a subclass, which may compute anything."""
    instance.__class__ = type("Sub", (type(instance),), {})


def change_batch(**changes: Callable[[Setup], object]) -> Callable[[Setup], Setup]:
    def change(setup: Setup) -> Setup:
        for name, value in changes.items():
            setattr(setup.batch, name, value(setup))
        return setup

    return change


def in_place(change: Callable[[Setup], object]) -> Callable[[Setup], Setup]:
    def changed(setup: Setup) -> Setup:
        change(setup)
        return setup

    return changed


def mode(name: str) -> Callable[[Setup], object]:
    return lambda setup: type(setup.batch.forward_mode)[name]


def project(change: Callable[[Tensor], Tensor]) -> Callable[[Setup], Setup]:
    """Change what the projection returns."""

    def changed(setup: Setup) -> Setup:
        inner = setup.layer.qkv_proj.forward
        setup.layer.qkv_proj.forward = lambda hidden_states: (change(inner(hidden_states)[0]), None)
        return setup

    return changed


def recache(index: int, change: Callable[[Tensor], Tensor]) -> Callable[[Setup], Setup]:
    """Change the K (0) or V (1) buffer of the layer."""

    def changed(setup: Setup) -> Setup:
        pool = setup.batch.token_to_kv_pool
        buffers = (pool.k_buffer, pool.v_buffer)[index]
        buffers[1] = change(buffers[1])
        return setup

    return changed


def strided(t: Tensor) -> Tensor:
    return t.repeat_interleave(2, -1)[..., ::2]


GUARDS: dict[str, Callable[[Setup], Setup]] = {
    "prefill": change_batch(forward_mode=mode("EXTEND")),
    "verification of a draft": change_batch(forward_mode=mode("TARGET_VERIFY")),
    "another pool": in_place(lambda s: retype(s.batch.token_to_kv_pool)),
    "no tokens": lambda s: change_batch(out_cache_loc=lambda s: s.batch.out_cache_loc[:0])(
        s._replace(hidden_states=s.hidden_states[:0], positions=s.positions[:, :0])
    ),
    "text positions": lambda s: s._replace(positions=s.positions[0]),
    "int32 positions": lambda s: s._replace(positions=s.positions.int()),
    "positions of more tokens": lambda s: s._replace(positions=s.positions.repeat(1, 2)),
    "int32 slots": change_batch(out_cache_loc=lambda s: s.batch.out_cache_loc.int()),
    "strided slots": change_batch(out_cache_loc=lambda s: strided(s.batch.out_cache_loc)),
    "another rotary embedding": in_place(lambda s: retype(s.layer.rotary_emb)),
    "GLM's interleaving": in_place(lambda s: setattr(s.layer.rotary_emb, "mrope_interleaved_glm", True)),
    "no sections": in_place(lambda s: setattr(s.layer.rotary_emb, "mrope_section", None)),
    "two sections": in_place(lambda s: setattr(s.layer.rotary_emb, "mrope_section", [32, 32])),
    "sections of another sum": in_place(lambda s: setattr(s.layer.rotary_emb, "mrope_section", [24, 20, 19])),
    "partial rotation": in_place(lambda s: setattr(s.layer.rotary_emb, "rotary_dim", 64)),
    "rotation of another head size": in_place(lambda s: setattr(s.layer.rotary_emb, "head_size", 64)),
    "another query norm": in_place(lambda s: retype(s.layer.q_norm)),
    "another key norm": in_place(lambda s: retype(s.layer.k_norm)),
    "two eps": in_place(lambda s: setattr(s.layer.k_norm, "variance_epsilon", 1e-5)),
    "another attention": in_place(lambda s: retype(s.layer.attn)),
    "values of another size": in_place(lambda s: setattr(s.layer.attn, "v_head_dim", 64)),
    "fp32 query norm": in_place(lambda s: s.layer.q_norm.float()),
    "fp32 key norm": in_place(lambda s: s.layer.k_norm.float()),
    "fp32 projection": project(Tensor.float),
    "strided projection": project(strided),
    "strided keys": recache(0, strided),
    "strided values": recache(1, strided),
    "keys of another dtype": recache(0, Tensor.float),
    "values of another dtype": recache(1, Tensor.float),
    "keys in blocks": recache(0, lambda t: t.view(4, SLOTS // 4, KV_HEADS, D)),
}


def takes_fused(setup: Setup) -> bool:
    """Whether one call goes through the kernel; else it must go through the release's own preparation, stubbed here."""
    taken = []

    def prepare(positions: Tensor, hidden_states: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        taken.append(True)
        tokens = hidden_states.shape[0]
        q = hidden_states.new_zeros(tokens, HEADS * D)
        return q, q[:, : KV_HEADS * D], q[:, : KV_HEADS * D]

    setup.layer.forward_prepare_native = prepare
    setup.batch.attn_backend = SimpleNamespace(forward=lambda q, *_, **__: q.reshape(q.shape[0], -1))
    setup.layer.attn.forward = lambda q, *_, **__: q
    before = launches()
    setup.run()
    fused = launches() > before
    assert fused is not bool(taken)
    return fused


def test_without_any_change_the_kernel_is_taken(attention_class: type[Any]) -> None:
    assert takes_fused(make(attention_class)), "the original was taken"


@pytest.mark.parametrize("name", GUARDS)
def test_every_guard_falls_back(attention_class: type[Any], name: str) -> None:
    assert not takes_fused(GUARDS[name](make(attention_class)))


def test_a_head_size_that_the_kernel_has_not_falls_back(attention_class: type[Any]) -> None:
    setup = make(attention_class)
    layer, rope = setup.layer, setup.layer.rotary_emb
    layer.head_dim = rope.head_size = rope.rotary_dim = layer.attn.qk_head_dim = layer.attn.v_head_dim = 96
    rope.mrope_section = [16, 16, 16]
    assert not takes_fused(setup)


def test_an_fp8_cache_falls_back(attention_class: type[Any]) -> None:
    assert not takes_fused(make(attention_class, cache_dtype=torch.float8_e4m3fn))


def test_training_on_policy_falls_back(
    attention_class: type[Any], server_args: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    setup = make(attention_class)
    monkeypatch.setattr(server_args, "rl_on_policy_target", "fsdp")
    setup.layer.o_proj.forward = lambda x: (x, None)  # its weight is not what a training run would have
    assert not takes_fused(setup)


def test_being_compiled_falls_back(attention_class: type[Any], monkeypatch: pytest.MonkeyPatch) -> None:
    setup = make(attention_class)
    monkeypatch.setattr(torch.compiler, "is_compiling", lambda: True)
    assert not takes_fused(setup)


def test_a_table_in_fp32_is_converted_for_good(attention_class: type[Any]) -> None:
    """A release may build it in fp32. The stepwise path replaces it on its first call too."""
    setup = make(attention_class)
    rope = setup.layer.rotary_emb
    rope.cos_sin_cache = rope.cos_sin_cache.float()
    assert takes_fused(setup)
    assert rope.cos_sin_cache.dtype == torch.bfloat16


def test_what_a_layer_cannot_do_is_found_out_once(attention_class: type[Any]) -> None:
    """After the projection was seen to be unfit, no later call projects for nothing."""
    setup = make(attention_class)
    calls = []
    inner = setup.layer.qkv_proj.forward

    def projected(hidden_states: Tensor) -> tuple[Tensor, None]:
        calls.append(1)
        return inner(hidden_states)[0].float(), None

    setup.layer.qkv_proj.forward = projected
    assert [takes_fused(setup), takes_fused(setup)] == [False, False]
    assert len(calls) == 1


class Launcher:
    """Stands in for a Triton kernel, which is indexed by its grid before it is called."""

    def __init__(self, launch: Callable[[Any], Callable[..., Any]]) -> None:
        self._launch = launch

    def __getitem__(self, grid: Any) -> Callable[..., Any]:
        return self._launch(grid)


@pytest.mark.skipif(BY_AITER, reason="the stub of aiter's op is not within our bound")
class TestGuard(GuardChecks):
    @pytest.fixture
    def setup(self, attention_class: type[Any]) -> Setup:
        setup = make(attention_class)
        setup.batch.out_cache_loc[0] = 0  # a padded token's
        return setup

    @pytest.fixture
    def subject(self, setup: Setup, stepwise: Callable[[Setup], tuple[Tensor, ...]]) -> Subject:
        slots = setup.batch.out_cache_loc

        def call() -> tuple[Tensor, ...]:
            output = setup.run()
            return (output, *(cache[slots] for cache in caches(setup)))

        def upstream() -> tuple[Tensor, ...]:
            output, _, *caches = stepwise(setup)
            return (output, *(cache[slots] for cache in caches))

        def replace(patch: pytest.MonkeyPatch, around: Callable[[Any], Any]) -> None:
            triton = kernel._qk_norm_mrope_kernel
            patch.setattr(kernel, "_qk_norm_mrope_kernel", Launcher(lambda grid: around(triton[grid])))

        return Subject(
            "qwen3-fused-attention",
            call=call,
            upstream=upstream,
            replace=replace,
            outputs=lambda arguments, _: (arguments[0], *(cache[int(slots[-1])] for cache in arguments[1:3])),
        )

    def test_a_call_that_the_kernel_does_not_take_is_counted(
        self, setup: Setup, subject: Subject, guard: Guard
    ) -> None:
        GUARDS["another pool"](setup).run()
        assert counters(subject) == {"calls": 0, "fallbacks": 1, "failures": 0, "shadowed": 0}


def test_uninstall_gives_the_class_back(attention_class: type[Any]) -> None:
    """Last: it takes the patch out."""
    overlay = runtime.current()
    assert overlay is not None
    patched = dict(vars(attention_class))
    overlay.uninstall("qwen3-fused-attention")
    restored = dict(vars(attention_class))
    assert {name for name in patched if patched[name] is not restored.get(name)} == {"forward"}
    decision = next(d for d in overlay.plan.decisions if d.patch.id == "qwen3-fused-attention")
    proofs = [Proof(sys.modules[r.slot.module]).objection(r.slot, held(r.slot), r.observed) for r in decision.slots]
    assert proofs == [None] * len(decision.slots)
    assert not takes_fused(make(attention_class))
