"""What `fix-fused-mrope-guards` does to the real `Qwen3Attention` of one release.

Not collected by name: `test_fix_fused_mrope_guards.py` runs this file under the overlay, in the simulated ROCm with
aiter, once per release. Norms, rotary embedding, attention layer and KV pool are the release's own; the projections are
plain matrices and the attention backend only records the queries and writes the cache as the Triton one does. The
release's module, executed a second time out of the overlay's sight, shows what happens without the patch.
"""

from __future__ import annotations

import functools
import sys
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, nullcontext
from types import ModuleType, SimpleNamespace
from typing import Any, NamedTuple

import pytest
import torch
from torch import Tensor

from overlay import runtime, simulate
from overlay.guard import Guard
from overlay.install import MARK, held
from overlay.model import State
from overlay.preimage import Proof
from patches.kernels.qk_norm_mrope import Geometry
from tests.kernels.mrope_reference import Inputs, expected
from tests.patches.in_release.guarding import GuardChecks, Subject, counters
from tests.patches.in_release.untouched import executed_again

ID = "fix-fused-mrope-guards"
OP = "aiter.ops.fused_qk_norm_mrope_cache_quant.fused_qk_norm_mrope_3d_cache_pts_quant_shuffle"
HIDDEN, HEADS, KV_HEADS, D, SLOTS, PAGE, MAX_POSITION, TOKENS = 64, 4, 2, 128, 64, 16, 256, 5
SECTIONS = [24, 20, 20]


@pytest.fixture(scope="session")
def patched() -> ModuleType:
    from sglang.srt.models import qwen3

    overlay = runtime.current()
    assert overlay is not None and overlay.state(ID)[0] is State.APPLIED, overlay and overlay.state(ID)
    module: ModuleType = qwen3
    return module


@pytest.fixture(scope="session")
def pristine(patched: ModuleType) -> ModuleType:
    module = executed_again(patched)
    assert not hasattr(module.Qwen3Attention.forward, MARK)
    return module


class Projection(torch.nn.Module):
    """A linear layer of the server, alone on its GPU."""

    def __init__(self, columns: int, rows: int) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(torch.empty(rows, columns))

    def forward(self, x: Tensor) -> tuple[Tensor, None]:
        return torch.nn.functional.linear(x, self.weight), None


def qkv_projection(hidden: int, head: int, heads: int, kv_heads: int, **_: object) -> Projection:
    return Projection(hidden, (heads + 2 * kv_heads) * head)


def output_projection(columns: int, rows: int, **_: object) -> Projection:
    return Projection(columns, rows)


class Alone(SimpleNamespace):
    """The arguments and contexts of a server with one GPU, as far as this class asks: sizes 1, ranks 0, else None."""

    def __getattr__(self, name: str) -> object:
        if name.startswith("__"):
            raise AttributeError(name)
        return 1 if name.endswith("_size") else 0 if name.endswith("_rank") else None


#: By these names the releases ask for sizes, ranks and arguments.
#: By these names the releases ask for sizes, ranks and arguments.
GETTERS = {
    **dict.fromkeys(
        ("get_parallel", "get_exec", "get_server_args", "get_global_server_args"), Alone(deterministic=Alone())
    ),
    **dict.fromkeys(("get_attention_tp_size", "get_tensor_model_parallel_world_size"), 1),
    **dict.fromkeys(("get_attention_tp_rank", "get_tensor_model_parallel_rank"), 0),
}


@pytest.fixture(autouse=True)
def one_gpu(patched: ModuleType, pristine: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    for module in (patched, pristine):
        monkeypatch.setattr(module, "QKVParallelLinear", qkv_projection)
        monkeypatch.setattr(module, "RowParallelLinear", output_projection)
    for name, module in list(sys.modules.items()):
        if name.startswith("sglang.srt.") or name == pristine.__name__:
            for getter in GETTERS.keys() & vars(module).keys():
                monkeypatch.setattr(module, getter, functools.partial(dict.get, GETTERS, getter))


class RecordingBackend:
    """Keeps the queries, and caches keys and values where it is asked to, with the scales of the layer."""

    def __init__(self, pool: Any) -> None:
        self.token_to_kv_pool = pool
        self.q = torch.empty(0)

    def forward(self, q: Tensor, k: Tensor, v: Tensor, layer: Any, batch: Any, save_kv_cache: bool = True) -> Tensor:
        self.q = q.clone()
        if save_kv_cache:
            self.token_to_kv_pool.set_kv_buffer(layer, batch.out_cache_loc, k, v, layer.k_scale, layer.v_scale)
        return q.reshape(q.shape[0], -1)


class Setup(NamedTuple):
    """A layer and one batch for it."""

    layer: Any
    positions: Tensor
    hidden_states: Tensor
    batch: Any
    backend: RecordingBackend

    def caches(self) -> tuple[Tensor, ...]:
        """What was written, whatever form the pool holds it in."""
        pool = self.backend.token_to_kv_pool
        return pool.k_buffer[1], pool.v_buffer[1]

    def run(self) -> tuple[Tensor, ...]:
        """Output, queries and both caches."""
        with in_context(self.backend):
            output = self.layer(positions=self.positions, hidden_states=self.hidden_states, forward_batch=self.batch)
        return (output, self.backend.q.reshape(output.shape[0], -1), *(cache.clone() for cache in self.caches()))


def in_context(backend: RecordingBackend) -> AbstractContextManager[object]:
    """The context of a forward pass, where a release has one (0.5.13)."""
    try:
        from sglang.srt.model_executor import forward_context
    except ImportError:
        return nullcontext()
    context: AbstractContextManager[object] = forward_context.forward_context(forward_context.ForwardContext(backend))
    return context


def make(module: ModuleType, dtype: torch.dtype = torch.bfloat16, cache_dtype: torch.dtype | None = None) -> Setup:
    """The same layer, batch and empty cache every time, of the class in `module`."""
    from sglang.srt.layers.rotary_embedding import factory
    from sglang.srt.mem_cache.memory_pool import MHATokenToKVPool
    from sglang.srt.model_executor.forward_batch_info import ForwardMode

    torch.manual_seed(0)
    factory._ROPE_DICT.clear()  # else layers share one object, and the tests change it
    scaling = {"rope_type": "default", "mrope_section": list(SECTIONS), "mrope_interleaved": True}
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        layer = module.Qwen3Attention(
            HIDDEN, HEADS, KV_HEADS, layer_id=1, head_dim=D, rope_scaling=scaling, rms_norm_eps=1e-6,
            max_position_embeddings=MAX_POSITION,
        )  # fmt: skip
    finally:
        torch.set_default_dtype(before)
    for name, parameter in layer.named_parameters():
        parameter.data = torch.randn(parameter.shape).to(dtype) * 0.2 + ("norm" in name)
        parameter.requires_grad_(False)
    pool = MHATokenToKVPool(
        size=SLOTS - PAGE, page_size=PAGE, dtype=cache_dtype or dtype, head_num=KV_HEADS, head_dim=D, layer_num=2,
        device="cpu", enable_memory_saver=False,
    )  # fmt: skip
    for buffer in (*pool.k_buffer, *pool.v_buffer):
        buffer.fill_(9)
    backend = RecordingBackend(pool)
    batch = SimpleNamespace(
        forward_mode=ForwardMode.DECODE,
        token_to_kv_pool=pool,
        attn_backend=backend,
        out_cache_loc=torch.randperm(SLOTS)[:TOKENS],
        out_cache_loc_is_physical=True,
    )
    positions = torch.randint(0, MAX_POSITION, (3, TOKENS + 3))[:, :TOKENS]  # a slice, as of a graph's buffer
    return Setup(layer, positions, torch.randn(TOKENS, HIDDEN).to(dtype), batch, backend)


def calls() -> int:
    return simulate.calls().get(OP, 0)


def strided_aiter() -> bool:
    """Whether this aiter takes strides from the cache: since b0cc5392dd."""
    import aiter

    return "gemma_norm" in aiter.fused_qk_norm_mrope_3d_cache_pts_quant_shuffle.__signature__.parameters


def upstream_guards_the_cache(module: ModuleType) -> bool:
    """Since 0.5.23, which also passes blocks of one slot."""
    return hasattr(module, "aiter_fused_qk_norm_rope_set_kv")


@pytest.mark.parametrize("wide_table", [False, True])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=["bf16", "fp16"])
def test_what_fits_takes_the_op_and_gets_the_definition(
    patched: ModuleType, dtype: torch.dtype, wide_table: bool
) -> None:
    setup, before = make(patched, dtype), calls()
    if wide_table:  # as it stays on ROCm since 0.5.22
        setup.layer.rotary_emb.cos_sin_cache = setup.layer.rotary_emb.cos_sin_cache.float()
    output, q, k_cache, v_cache = setup.run()
    assert calls() == before + 1
    layer, slots = setup.layer, setup.batch.out_cache_loc
    geometry = Geometry(HEADS, KV_HEADS, D, (24, 20, 20), True, layer.rotary_emb.is_neox_style, 1e-6)
    qkv, _ = layer.qkv_proj(setup.hidden_states)
    table = layer.rotary_emb.cos_sin_cache.to(dtype)
    weights = layer.q_norm.weight.data, layer.k_norm.weight.data
    want_q, want_k, want_v = expected(geometry, Inputs(qkv, *weights, table, setup.positions, k_cache, v_cache, slots))
    unit = 2.0**-7 if dtype == torch.bfloat16 else 2.0**-10
    torch.testing.assert_close(q.view(want_q.value.shape), want_q.value, rtol=unit, atol=unit)
    torch.testing.assert_close(k_cache[slots], want_k.value, rtol=unit, atol=unit)
    assert torch.equal(v_cache[slots], want_v)
    others = torch.ones(len(k_cache), dtype=torch.bool).index_fill_(0, slots, False)
    assert bool((k_cache[others] == 9).all() and (v_cache[others] == 9).all())
    assert torch.equal(output, layer.o_proj(q)[0])


def test_without_the_patch_a_plain_cache_is_right_until_aiter_takes_strides(
    patched: ModuleType, pristine: ModuleType
) -> None:
    right, before = make(patched).run(), calls()
    upstream = make(pristine).run()
    assert calls() == before + 1
    same = [torch.equal(a, b) for a, b in zip(upstream, right, strict=True)]
    misread = strided_aiter() and not upstream_guards_the_cache(pristine)
    assert same == [True, True, not misread, not misread]


def change(do: Callable[[Setup], object]) -> Callable[[Setup], Setup]:
    def changed(setup: Setup) -> Setup:
        do(setup)
        return setup

    return changed


def batch(**changes: Callable[[Setup], object]) -> Callable[[Setup], Setup]:
    return change(lambda setup: vars(setup.batch).update({name: value(setup) for name, value in changes.items()}))


def retype(instance: Any, **members: object) -> None:
    """Make an object an instance of a subclass."""
    instance.__class__ = type("Sub", (type(instance),), members)


def dequantising(setup: Setup) -> None:
    """A pool that gives out copies of what it holds, as the 4-bit ones do."""
    kept = type(setup.backend.token_to_kv_pool).get_kv_buffer
    retype(
        setup.backend.token_to_kv_pool, get_kv_buffer=lambda pool, layer: tuple(t.clone() for t in kept(pool, layer))
    )


def glm(setup: Setup) -> None:
    """GLM's rotary embedding, as its constructor would make it."""
    from sglang.srt.layers.rotary_embedding.mrope import MRotaryEmbedding

    rope = setup.layer.rotary_emb
    setup.layer.rotary_emb = MRotaryEmbedding(
        D, D, MAX_POSITION, 1e6, rope.is_neox_style, rope.dtype,
        mrope_section=list(SECTIONS), mrope_interleaved=True, mrope_interleaved_glm=True,
    )  # fmt: skip


def scaled_layer(setup: Setup) -> None:
    setup.layer.attn.k_scale, setup.layer.attn.v_scale = torch.tensor(0.25), torch.tensor(0.5)


class Defect(NamedTuple):
    """A call that the op does not serve, and what the release does with it by itself.

    `alone` is "wrong" results, "raises", or either by the version of aiter; `fixed_upstream` in 0.5.23.
    """

    change: Callable[[Setup], Setup]
    alone: str = "wrong"
    fixed_upstream: bool = False
    cache_dtype: torch.dtype | None = None


DEFECTS = {
    "fp8 cache with scales": Defect(change(scaled_layer), fixed_upstream=True, cache_dtype=torch.float8_e4m3fnuz),
    "cache of a subclass": Defect(change(dequantising)),
    "text positions": Defect(lambda s: s._replace(positions=s.positions[0].contiguous()), "raises"),
    "GLM's interleaving": Defect(change(glm)),
    "int32 positions": Defect(lambda s: s._replace(positions=s.positions.int().contiguous()), "raises"),
    "int32 slots": Defect(batch(out_cache_loc=lambda s: s.batch.out_cache_loc.int()), "raises"),
    "fp32 norm weights": Defect(
        change(lambda s: [norm.float() for norm in (s.layer.q_norm, s.layer.k_norm)]),
        "wrong or raises",
    ),
    "two eps": Defect(change(lambda s: setattr(s.layer.k_norm, "variance_epsilon", 1.0))),
}


def outcome(setup: Setup) -> tuple[Tensor, ...] | Exception:
    try:
        return setup.run()
    except (RuntimeError, IndexError) as error:
        return error


def same(a: tuple[Tensor, ...], b: tuple[Tensor, ...]) -> bool:
    return all(torch.equal(x.view(torch.uint8), y.view(torch.uint8)) for x, y in zip(a, b, strict=True))


def stepwise(setup: Setup) -> tuple[Tensor, ...]:
    """The release's own path without aiter's op."""
    setup.layer.use_fused_qk_norm_mrope = False
    before = calls()
    result = setup.run()
    assert calls() == before
    return result


def prove(defect: Defect, patched: ModuleType, pristine: ModuleType) -> None:
    right = stepwise(defect.change(make(pristine, cache_dtype=defect.cache_dtype)))
    alone = outcome(defect.change(make(pristine, cache_dtype=defect.cache_dtype)))
    if defect.fixed_upstream and upstream_guards_the_cache(pristine):
        assert not isinstance(alone, Exception) and same(alone, right)
    elif isinstance(alone, Exception):
        assert "raises" in defect.alone, alone
    else:
        assert "wrong" in defect.alone and not same(alone, right)

    setup, before = defect.change(make(patched, cache_dtype=defect.cache_dtype)), calls()
    assert same(setup.run(), right)
    assert calls() == before and setup.layer.use_fused_qk_norm_mrope


@pytest.mark.parametrize("name", DEFECTS)
def test_the_defect_is_there_and_gone(patched: ModuleType, pristine: ModuleType, name: str) -> None:
    prove(DEFECTS[name], patched, pristine)


def test_a_cache_in_blocks_of_vectors(
    patched: ModuleType, pristine: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The layout of aiter's decode kernels, since 0.5.13."""
    if not hasattr(pristine, "get_token_to_kv_pool"):
        pytest.skip("this release has no other layout")
    monkeypatch.setenv("SGLANG_AITER_KV_CACHE_LAYOUT", "vectorized_5d")
    assert make(pristine).caches()[0].dim() == 5
    prove(Defect(lambda setup: setup, "wrong or raises", fixed_upstream=True), patched, pristine)


def recache(index: int, to: Callable[[Tensor], Tensor]) -> Callable[[Setup], Setup]:
    """Change the K (0) or V (1) buffer of the layer."""

    def do(setup: Setup) -> None:
        pool = setup.backend.token_to_kv_pool
        buffers = (pool.k_buffer, pool.v_buffer)[index]
        buffers[1] = to(buffers[1])

    return change(do)


def strided(t: Tensor) -> Tensor:
    return t.repeat_interleave(2, -1)[..., ::2]


def rope(**changes: object) -> Callable[[Setup], Setup]:
    return change(lambda setup: vars(setup.layer.rotary_emb).update(changes))


FITS_NOT: dict[str, Callable[[Setup], Setup]] = {
    "no tokens": lambda s: batch(out_cache_loc=lambda s: s.batch.out_cache_loc[:0])(
        s._replace(hidden_states=s.hidden_states[:0], positions=s.positions[:, :0])
    ),
    "positions of more tokens": lambda s: s._replace(positions=s.positions.repeat(1, 2)),
    "strided slots": batch(out_cache_loc=lambda s: strided(s.batch.out_cache_loc)),
    "another rotary embedding": change(lambda s: retype(s.layer.rotary_emb)),
    "two sections": rope(mrope_section=[32, 32]),
    "sections of another sum": rope(mrope_section=[24, 20, 19]),
    "partial rotation": rope(rotary_dim=64),
    "fp32 query norm": change(lambda s: s.layer.q_norm.float()),
    "fp32 key norm": change(lambda s: s.layer.k_norm.float()),
    "strided query norm": change(lambda s: setattr(s.layer.q_norm.weight, "data", strided(s.layer.q_norm.weight.data))),
    "keys held as bytes": change(lambda s: setattr(s.backend.token_to_kv_pool, "store_dtype", torch.uint8)),
    "keys of another dtype": recache(0, Tensor.float),
    "values of another dtype": recache(1, Tensor.float),
    "strided keys": recache(0, strided),
    "strided values": recache(1, strided),
    "keys in HND order": recache(0, lambda t: t.view(-1, PAGE, KV_HEADS, D).transpose(1, 2).contiguous()),
    "heads of another size": recache(0, lambda t: t.view(SLOTS, 1, KV_HEADS * D)),
}


def prepared(setup: Setup) -> list[str]:
    """Which of upstream's two preparations a call asks for; both are stubbed."""
    taken: list[str] = []

    def prepare(name: str) -> Callable[..., tuple[Tensor, None, None]]:
        def stub(*_: object, **__: object) -> tuple[Tensor, None, None]:
            taken.append(name)
            return setup.hidden_states.new_zeros(setup.hidden_states.shape[0], HEADS * D), None, None

        return stub

    setup.layer.forward_prepare_native = prepare("native")
    setup.layer.forward_prepare_aiter_fused_mrope = setup.layer.forward_prepare_aiter_fused = prepare("fused")
    setup.layer.attn.forward = lambda q, *_, **__: q
    setup.layer.o_proj.forward = lambda x: (x, None)
    with in_context(setup.backend):
        setup.layer(positions=setup.positions, hidden_states=setup.hidden_states, forward_batch=setup.batch)
    return taken


def test_what_fits_is_prepared_by_the_op(patched: ModuleType) -> None:
    assert prepared(make(patched)) == ["fused"]


@pytest.mark.parametrize("name", FITS_NOT)
def test_every_other_guard_falls_back(patched: ModuleType, name: str) -> None:
    assert prepared(FITS_NOT[name](make(patched))) == ["native"]


def test_a_model_in_fp32_falls_back(patched: ModuleType) -> None:
    assert prepared(make(patched, torch.float32)) == ["native"]


def test_yarn_fits(patched: ModuleType) -> None:
    """It rotates alike, by a scaled table."""
    from sglang.srt.layers.rotary_embedding.mrope import YaRNScalingMRotaryEmbedding

    setup = make(patched)
    setup.layer.rotary_emb.__class__ = YaRNScalingMRotaryEmbedding
    assert prepared(setup) == ["fused"]


@pytest.mark.parametrize("mode", ["EXTEND", "TARGET_VERIFY"])
def test_other_modes_are_left_to_upstream(patched: ModuleType, monkeypatch: pytest.MonkeyPatch, mode: str) -> None:
    """Without a look at the pool."""
    setup = make(patched)
    monkeypatch.setattr(type(setup.backend.token_to_kv_pool), "get_kv_buffer", None)
    setup.batch.forward_mode = type(setup.batch.forward_mode)[mode]
    assert prepared(setup) == ["native"]


def test_an_error_in_the_stepwise_path_leaves_the_layer_as_it_was(patched: ModuleType) -> None:
    setup = FITS_NOT["two sections"](make(patched))

    def fails(*_: object, **__: object) -> None:
        raise ZeroDivisionError

    setup.layer.forward_prepare_native = fails
    with pytest.raises(ZeroDivisionError), in_context(setup.backend):
        setup.layer(positions=setup.positions, hidden_states=setup.hidden_states, forward_batch=setup.batch)
    assert setup.layer.use_fused_qk_norm_mrope is True


class TestGuard(GuardChecks):
    """In the releases whose op is called by a method that the patch fills."""

    @pytest.fixture
    def setup(self, patched: ModuleType) -> Setup:
        if upstream_guards_the_cache(patched):
            pytest.skip("the op is called by upstream's own method, which fails as ever")
        return make(patched)

    @pytest.fixture
    def subject(self, patched: ModuleType, setup: Setup) -> Subject:
        slots = setup.batch.out_cache_loc
        slots[0] = 0  # a padded token's

        def call() -> tuple[Tensor, ...]:
            output, _, *caches = setup.run()
            return (output, *(cache[slots] for cache in caches))

        def upstream() -> tuple[Tensor, ...]:
            output, _, *caches = stepwise(setup)
            setup.layer.use_fused_qk_norm_mrope = True
            return (output, *(cache[slots] for cache in caches))

        name = OP.rpartition(".")[2]
        return Subject(
            ID,
            call=call,
            upstream=upstream,
            replace=lambda patch, around: patch.setattr(patched, name, around(getattr(patched, name))),
            outputs=lambda arguments, _: (arguments[14], *(cache[int(slots[-1])] for cache in arguments[15:17])),
        )

    def test_a_call_that_does_not_fit_is_counted(self, setup: Setup, subject: Subject, guard: Guard) -> None:
        DEFECTS["two eps"].change(setup).run()
        assert counters(subject) == {"calls": 0, "fallbacks": 1, "failures": 0, "shadowed": 0}


def test_uninstall_gives_the_class_back(patched: ModuleType) -> None:
    """Last: it takes the patch out."""
    overlay = runtime.current()
    assert overlay is not None
    filled = {name for name, value in vars(patched.Qwen3Attention).items() if hasattr(value, MARK)}
    overlay.uninstall(ID)
    decision = next(d for d in overlay.plan.decisions if d.patch.id == ID)
    assert filled == {target.slot.qualname.rpartition(".")[2] for target in decision.targets}
    proofs = [Proof(sys.modules[r.slot.module]).objection(r.slot, held(r.slot), r.observed) for r in decision.slots]
    assert proofs == [None] * len(decision.slots)


@pytest.fixture(autouse=True)
def no_gradients() -> Iterator[None]:
    with torch.no_grad():
        yield
