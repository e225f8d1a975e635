"""What the patches for DeepSeek-V4's development builds do to the real modules of one build, and what it does without.

Not collected by name: `python -m tests.dsv4_builds` runs this file under the overlay, in the simulated gfx950, over the
source of a commit. A check of a patch that the build does not need is skipped.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Iterator
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

from overlay import runtime
from overlay.model import State
from patches import dsv4_nosplitk_decode
from patches.kernels.sparse_mla import Scope
from tests.kernels.sparse_mla_reference import attend, make_keys, pack
from tests.patches.in_release import one_rank
from tests.patches.in_release.tilelang_placeholder import provide_tilelang

PAGE, PAGES, DRAFT = 256, 6, 4
#: The slots of three requests, whose pages are numbered 100 * (request + 1) + position // 256.
SLOTS = torch.stack([(torch.arange(PAGES * PAGE) + 100 * (request + 1) * PAGE).to(torch.int32) for request in range(3)])
HIDDEN, Q_LORA, HEAD = 64, 32, 512
DECODE = "sglang.srt.layers.attention.nsa.triton_decode"


@pytest.fixture(scope="module", params=["with", "without"])
def patched(request: pytest.FixtureRequest) -> Callable[[str], bool]:
    """Whether a patch is in place; skips where the build has no need of it. All are taken out for the second round."""
    provide_tilelang()
    for name in ("layers.attention.attention_registry", "speculative.draft_utils", "models.deepseek_v4"):
        importlib.import_module(f"sglang.srt.{name}")
    importlib.import_module("sglang.srt.layers.attention.deepseek_v4_backend_hip_radix")
    overlay = runtime.current()
    assert overlay is not None
    planned = {decision.patch.id for decision in overlay.plan.decisions if decision.state is State.PLANNED}
    if "dsv4-nosplitk-decode" in planned:
        importlib.import_module(DECODE)

    def ask(patch_id: str) -> bool:
        if patch_id not in planned:
            pytest.skip(f"this build needs no {patch_id}")
        if request.param == "with":
            assert overlay.state(patch_id)[0] is State.APPLIED, overlay.state(patch_id)
        elif overlay.state(patch_id)[0] is State.APPLIED:
            overlay.uninstall(patch_id)
        return bool(request.param == "with")

    return ask


class TestDraftDispatch:
    @pytest.fixture
    def built(self, monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, str, tuple[Any, ...], dict[str, Any]]]:
        """Which classes of which backend were built, with what."""
        made: list[tuple[str, str, tuple[Any, ...], dict[str, Any]]] = []
        names = {
            "deepseek_v4_backend": ("DeepseekV4MultiStepBackend", "DeepseekV4AttnBackend"),
            "deepseek_v4_backend_hip_radix": ("DeepseekV4MultiStepBackend", "DeepseekV4HipRadixBackend"),
        }
        for short, classes in names.items():
            module = importlib.import_module(f"sglang.srt.layers.attention.{short}")
            for cls in classes:
                monkeypatch.setattr(
                    module, cls, lambda *a, _w=(short, cls), **k: made.append((*_w, a, k)), raising=True
                )
        return made

    @pytest.fixture
    def factory(self) -> Any:
        from sglang.srt.speculative.draft_utils import DraftBackendFactory

        made = DraftBackendFactory.__new__(DraftBackendFactory)
        vars(made).update(draft_model_runner="runner", topk=1, speculative_num_steps=3)
        return made

    def test_draft_steps_use_the_backend_of_rocm(
        self, patched: Callable[[str], bool], factory: Any, built: list[Any]
    ) -> None:
        where = "deepseek_v4_backend_hip_radix" if patched("dsv4-draft-dispatch") else "deepseek_v4_backend"
        factory._create_dsv4_decode_backend()
        assert built == [(where, "DeepseekV4MultiStepBackend", ("runner", 1, 3), {})]

    def test_the_draft_is_extended_by_the_backend_of_rocm(
        self, patched: Callable[[str], bool], factory: Any, built: list[Any]
    ) -> None:
        there = patched("dsv4-draft-dispatch")
        factory._create_dsv4_prefill_backend()
        ((where, name, arguments, options),) = built
        assert where == ("deepseek_v4_backend_hip_radix" if there else "deepseek_v4_backend")
        assert name == ("DeepseekV4HipRadixBackend" if there else "DeepseekV4AttnBackend")
        assert (arguments, options) == (("runner",), {"skip_prefill": False})


class TestVerifyEager:
    @pytest.fixture
    def there(self, patched: Callable[[str], bool]) -> bool:
        return patched("dsv4-verify-eager")

    @pytest.fixture
    def radix(self, there: bool, monkeypatch: pytest.MonkeyPatch) -> ModuleType:
        """What the backend builds beside page tables (compressed pages, plans for kernels) is left out."""
        module = importlib.import_module("sglang.srt.layers.attention.deepseek_v4_backend_hip_radix")
        monkeypatch.setattr(module, "create_paged_compressor_data", lambda **_: None)
        for name in ("init_compression_metadata", "init_flashmla_related"):
            monkeypatch.setattr(module.DSV4AttnMetadata, name, lambda self: None)
        monkeypatch.setattr(
            module.DeepseekV4HipRadixBackend, "init_forward_metadata_indexer", lambda self, metadata: None
        )
        for name in ("c4_sparse_topk_lengths", "c4_sparse_page_indices"):
            monkeypatch.setattr(module.DSV4AttnMetadata, name, None, raising=False)
        for ratio in (1, 4, 128):
            monkeypatch.setattr(module.DSV4AttnMetadata, f"c{ratio}_flashmla_metadata", None, raising=False)
        return module

    @pytest.fixture(params=["prepared in the graph", "prepared eagerly"])
    def in_graph(self, request: pytest.FixtureRequest, radix: ModuleType) -> Iterator[bool]:
        wanted = request.param == "prepared in the graph"
        with radix.envs.SGLANG_PREP_IN_CUDA_GRAPH.override(wanted):
            yield wanted

    @staticmethod
    def backend(radix: ModuleType, **differently: object) -> Any:
        made = radix.DeepseekV4HipRadixBackend.__new__(radix.DeepseekV4HipRadixBackend)
        vars(made).update(
            req_to_token=SLOTS,
            req_to_token_pool=SimpleNamespace(req_to_token=SLOTS),
            MAX_SEQ_LEN_FOR_CAPTURE=SLOTS.shape[1],
            page_size=PAGE,
            swa_page_size=128,
            c4_topk=512,
            device="cpu",
            cuda_int32_kwargs={"device": "cpu", "dtype": torch.int32},
            token_to_kv_pool=SimpleNamespace(translate_loc_from_full_to_swa=lambda slots: slots),
            topk=1,
            mtp_enabled=True,
            speculative_num_steps=0,
            speculative_step_id=0,
            speculative_num_draft_tokens=DRAFT,
            _move_to_device=torch.tensor,
            _replay_forward_batch=None,
        )
        vars(made).update(differently)
        return made

    @staticmethod
    def batch(mode: str, seq_lens: list[int], out_cache_loc: list[int]) -> Any:
        from sglang.srt.model_executor.forward_batch_info import ForwardMode

        lengths = torch.tensor(seq_lens)
        return SimpleNamespace(
            forward_mode=ForwardMode[mode],
            batch_size=len(seq_lens),
            req_pool_indices=torch.arange(len(seq_lens)),
            seq_lens=lengths,
            seq_lens_cpu=lengths,
            out_cache_loc=torch.tensor(out_cache_loc),
            req_to_token_pool=SimpleNamespace(req_to_token=SLOTS),  # the first builds look there
        )

    @pytest.mark.parametrize(
        ("seq_lens", "pages_cut"), [([256, 17], 1), ([252], 0), ([300, 1022, 5], 1)], ids=["full", "fits", "three"]
    )
    def test_a_verify_is_prepared_at_once_with_the_pages_of_its_draft_tokens(
        self, radix: ModuleType, there: bool, in_graph: bool, seq_lens: list[int], pages_cut: int
    ) -> None:
        verifier = self.backend(radix)
        verifier.init_forward_metadata(self.batch("TARGET_VERIFY", seq_lens, [7] * (DRAFT * len(seq_lens))))
        made = verifier.forward_metadata
        if in_graph and not there:
            assert type(made) is radix.DSV4RawVerifyMetadata
            return
        assert type(made) is radix.DSV4Metadata
        pages = -(-(max(seq_lens) + DRAFT) // PAGE) - (0 if there else pages_cut)
        rows = made.core_attn_metadata.page_table.tolist()
        assert rows == [[100 * (row // DRAFT + 1) + page for page in range(pages)] for row in range(len(rows))]
        assert len(rows) == DRAFT * len(seq_lens)
        expected = [length + 1 + token for length in seq_lens for token in range(DRAFT)]
        assert made.core_attn_metadata.seq_lens_casual.tolist() == expected

    def test_a_captured_verify_is_replayed_with_another_batch(
        self, radix: ModuleType, there: bool, in_graph: bool
    ) -> None:
        from sglang.srt.model_executor.forward_batch_info import ForwardMode

        verifier = self.backend(radix)
        verifier.init_cuda_graph_state(max_bs=2, max_num_tokens=2 * DRAFT)
        common: dict[str, Any] = {
            "bs": 2,
            "req_pool_indices": torch.tensor([0, 1]),
            "encoder_lens": None,
            "forward_mode": ForwardMode.TARGET_VERIFY,
            "spec_info": None,
        }
        verifier.init_forward_metadata_capture_cuda_graph(
            num_tokens=2 * DRAFT, seq_lens=torch.tensor([1, 1], dtype=torch.int32), **common
        )
        captured = verifier.forward_metadata
        raw = in_graph and not there
        assert type(captured) is (radix.DSV4RawVerifyMetadata if raw else radix.DSV4Metadata)
        assert (verifier._current_capture_raw is captured) is raw
        if raw:
            return
        table = captured.core_attn_metadata.page_table
        verifier._replay_forward_batch = self.batch("TARGET_VERIFY", [256, 40], list(range(2 * DRAFT)))
        verifier.init_forward_metadata_replay_cuda_graph(
            seq_lens=torch.tensor([256, 40], dtype=torch.int32),
            seq_lens_sum=296,
            seq_lens_cpu=torch.tensor([256, 40]),
            **common,
        )
        assert verifier.forward_metadata is captured and captured.core_attn_metadata.page_table is table
        assert table.shape == (2 * DRAFT, PAGES) and table[0].tolist() == [100 + page for page in range(PAGES)]
        lengths = captured.core_attn_metadata.seq_lens_casual.tolist()
        assert lengths == [257, 258, 259, 260, 41, 42, 43, 44]
        assert captured.core_attn_metadata.raw_out_loc.tolist() == list(range(2 * DRAFT))

    @staticmethod
    def slots(made: Any) -> list[int]:
        of = made.out_cache_loc if hasattr(made, "out_cache_loc") else made.core_attn_metadata.raw_out_loc
        return of.tolist()  # type: ignore[no-any-return]

    def test_each_draft_step_gets_its_own_slots(self, radix: ModuleType, there: bool, in_graph: bool) -> None:
        draft = self.batch("DECODE", [5, 9], [100, 101, 200, 201])
        given, found = draft.out_cache_loc, []
        for step in range(2):
            drafter = self.backend(radix, speculative_num_steps=2, speculative_step_id=step)
            if not there:
                with pytest.raises(AssertionError):
                    drafter.init_forward_metadata(draft)
                return
            drafter.init_forward_metadata(draft)
            found.append(self.slots(drafter.forward_metadata))
        assert found == [[100, 200], [101, 201]]
        assert draft.out_cache_loc is given

    def test_the_slots_are_those_that_the_worker_of_the_build_writes(self, radix: ModuleType, there: bool) -> None:
        utils = importlib.import_module("sglang.srt.speculative.eagle_utils")
        if not hasattr(utils, "per_step_draft_out_cache_loc"):
            pytest.skip("this build has no function for it")
        if not there:
            pytest.skip("nothing to compare")
        given = torch.randperm(3 * 4)
        expected = utils.per_step_draft_out_cache_loc(given, 3, 1, 4)
        for step in range(4):
            drafter = self.backend(radix, speculative_num_steps=4, speculative_step_id=step)
            drafter.init_forward_metadata(self.batch("DECODE", [5, 9, 1], given.tolist()))
            assert self.slots(drafter.forward_metadata) == expected[step].tolist()

    def test_the_slots_are_given_back_after_a_failure(
        self, radix: ModuleType, there: bool, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        def fails(self: object, **_: object) -> None:
            raise RuntimeError("no memory")

        monkeypatch.setattr(radix.DeepseekV4HipRadixBackend, "init_forward_metadata_decode", fails)
        draft = self.batch("DECODE", [5, 9], [100, 101, 200, 201])
        given = draft.out_cache_loc
        with pytest.raises(RuntimeError, match="no memory"):
            self.backend(radix, speculative_num_steps=2).init_forward_metadata(draft)
        assert draft.out_cache_loc is given

    def test_too_few_slots_are_told(self, radix: ModuleType, there: bool) -> None:
        draft = self.batch("DECODE", [5, 9], [100, 101, 200])
        drafter = self.backend(radix, speculative_num_steps=2)
        if there:
            with pytest.raises(ValueError, match=r"2 requests x top-1 x 2 steps writes 4 slots, .* has 3"):
                drafter.init_forward_metadata(draft)
        else:
            with pytest.raises(AssertionError):
                drafter.init_forward_metadata(draft)

    @pytest.mark.parametrize("steps", [0, 1])
    def test_a_step_that_is_alone_is_left_as_it_is(self, radix: ModuleType, there: bool, steps: int) -> None:
        decoder = self.backend(radix, speculative_num_steps=steps)
        decoder.init_forward_metadata(self.batch("DECODE", [5, 9], [100, 200]))
        assert self.slots(decoder.forward_metadata) == [100, 200]

    def test_an_idle_draft_prepares_nothing(self, radix: ModuleType, there: bool) -> None:
        drafter = self.backend(radix, speculative_num_steps=2, forward_metadata="before")
        drafter.init_forward_metadata(self.batch("IDLE", [5], [1]))
        assert drafter.forward_metadata == "before"


def config() -> SimpleNamespace:
    return SimpleNamespace(
        hidden_size=HIDDEN,
        qk_rope_head_dim=64,
        head_dim=HEAD,
        num_attention_heads=2,
        num_key_value_heads=1,
        num_hidden_layers=1,
        n_routed_experts=2,
        o_groups=1,
        o_lora_rank=16,
        q_lora_rank=Q_LORA,
        rms_norm_eps=1e-6,
        compress_ratios=[4, 128, 0],
        compress_rope_theta=160000,
        max_position_embeddings=512,
        index_n_heads=2,
        index_head_dim=128,
        index_topk=512,
        rope_theta=10000,
        rope_parameters=None,
        rope_scaling={
            "rope_type": "deepseek_yarn",
            "factor": 4.0,
            "original_max_position_embeddings": 128,
            "beta_fast": 32,
            "beta_slow": 1,
        },
    )


@pytest.fixture
def model(patched: Callable[[str], bool]) -> ModuleType:
    module = importlib.import_module("sglang.srt.models.deepseek_v4")
    one_rank.start().device = "cpu"
    return module


def layer_of(model: ModuleType, monkeypatch: pytest.MonkeyPatch, layer_id: int) -> Any:
    """The release's attention, with normal weights. `wo_a` in FP8, the default, needs DeepGEMM."""
    monkeypatch.setattr(model, "_FP8_WO_A_GEMM", False)
    torch.manual_seed(layer_id)
    torch.set_default_dtype(torch.bfloat16)
    try:
        layer = model.MQALayer(config(), layer_id, None, "model.layers.0.self_attn")
    finally:
        torch.set_default_dtype(torch.float32)
    for parameter in layer.parameters():
        parameter.data = (torch.randn(parameter.shape) * 0.2).to(parameter.dtype)
    return layer


class Stores:
    """In place of the kernel that normalises, rotates and stores: what it was given."""

    q: Tensor
    kv: Tensor

    def __init__(self, model: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
        store = importlib.import_module("sglang.srt.layers.fused_qk_norm_rope_store")
        monkeypatch.setattr(store, "fused_qk_norm_rope_swa_store", self)
        monkeypatch.setattr(model, "_is_gfx95_supported", False)
        pool = SimpleNamespace(
            translate_loc_from_full_to_swa=lambda slots: slots,
            swa_kv_pool=SimpleNamespace(kv_buffer=[None] * 3, page_size=128),
        )
        monkeypatch.setattr(model, "get_token_to_kv_pool", lambda: pool)

    def __call__(self, *, q: Tensor, kv: Tensor, **_: object) -> Tensor:
        self.q, self.kv = q, kv
        return q


BATCH = SimpleNamespace(out_cache_loc=torch.arange(5))


def tokens() -> Tensor:
    return torch.randn(5, HIDDEN, generator=torch.Generator().manual_seed(1)).to(torch.bfloat16)


class Backend:
    """In place of an attention backend: what it is asked to compress and index."""

    def __init__(self) -> None:
        self.asked: list[str] = []

    def forward_core_compressor(self, *_: object) -> None:
        self.asked.append("compressor")

    def forward_indexer_compressor(self, **_: object) -> None:
        self.asked.append("indexer's compressor")

    def forward_c4_indexer(self, *, skip_compressor: bool, **_: object) -> None:
        self.asked.append(f"indexer {skip_compressor=}")


class TestAltStream:
    @pytest.fixture
    def there(self, patched: Callable[[str], bool]) -> bool:
        return patched("dsv4-alt-stream")

    @pytest.fixture
    def backend(self, there: bool) -> Iterator[Backend]:
        """The backend of the current forward pass."""
        from sglang.srt.model_executor import forward_context

        made = Backend()
        context = forward_context.ForwardContext(attn_backend=made)
        with forward_context.forward_context(context):
            yield made

    @pytest.fixture
    def prepare(
        self, model: ModuleType, backend: Backend, monkeypatch: pytest.MonkeyPatch
    ) -> Callable[[int], tuple[Tensor, Stores]]:
        def run(layer_id: int) -> tuple[Tensor, Stores]:
            layer, stores = layer_of(model, monkeypatch, layer_id), Stores(model, monkeypatch)
            layer.alt_streams = [torch.cuda.Stream() for _ in range(2)]  # type: ignore[no-untyped-call]
            q = layer._forward_prepare_multi_stream_hip(tokens(), torch.arange(5), BATCH, backend)
            return q, stores

        return run

    def test_the_indexer_gets_the_backend_of_the_pass(
        self, prepare: Callable[[int], Any], backend: Backend, there: bool
    ) -> None:
        if not there:
            with pytest.raises(TypeError, match="attn_backend"):
                prepare(0)
            return
        prepare(0)
        assert backend.asked == ["compressor", "indexer's compressor", "indexer skip_compressor=True"]

    def test_the_indexer_keeps_the_backend_it_is_given(
        self, model: ModuleType, there: bool, backend: Backend, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        layer, given = layer_of(model, monkeypatch, 0), Backend()
        layer.indexer(x=None, q_lora=None, forward_batch=BATCH, attn_backend=given)
        assert given.asked == ["indexer skip_compressor=False"] and not backend.asked

    def test_a_layer_without_an_indexer_is_prepared_as_before(
        self, prepare: Callable[[int], Any], backend: Backend, there: bool
    ) -> None:
        prepare(1)
        assert backend.asked == ["compressor"]

    def test_a_layer_without_a_compressor_takes_the_plain_form(
        self,
        prepare: Callable[[int], tuple[Tensor, Stores]],
        model: ModuleType,
        there: bool,
        monkeypatch: pytest.MonkeyPatch,
    ) -> None:
        plain: list[object] = []
        original = model.MQALayer._forward_prepare

        def counted(self: object, *args: Any, **kwargs: Any) -> Any:
            plain.append(self)
            return original(self, *args, **kwargs)

        monkeypatch.setattr(model.MQALayer, "_forward_prepare", counted)
        q, stores = prepare(2)
        assert len(plain) == there and q is stores.q


class TestWqkvFusion:
    @pytest.fixture
    def there(self, patched: Callable[[str], bool]) -> bool:
        return patched("dsv4-wqkv-fusion")

    @pytest.fixture
    def layer(self, model: ModuleType, there: bool, monkeypatch: pytest.MonkeyPatch) -> Any:
        return layer_of(model, monkeypatch, 2)

    @staticmethod
    def load(model: ModuleType, layer: Any, weights: dict[str, Tensor]) -> None:
        """Give the release's loader a model of this one layer."""
        whole = model.DeepseekV4ForCausalLM.__new__(model.DeepseekV4ForCausalLM)
        torch.nn.Module.__init__(whole)
        whole.model = torch.nn.Module()
        whole.model.layers = torch.nn.ModuleList([torch.nn.Module()])
        whole.model.layers[0].self_attn = layer
        whole.model.start_layer, whole.model.end_layer = 0, 1
        whole.config, whole.quant_config, whole.num_fused_shared_experts = config(), None, 0
        whole.pp_group = SimpleNamespace(is_first_rank=True, is_last_rank=True)
        whole.load_weights((name, weight) for name, weight in weights.items())

    def test_one_projection_takes_the_place_of_two(self, layer: Any, there: bool) -> None:
        names = {name.split(".")[0] for name, _ in layer.named_parameters()}
        assert ({"wqkv_a"} if there else {"wq_a", "wkv"}) <= names
        assert not ({"wq_a", "wkv"} if there else {"wqkv_a"}) & names
        assert layer.fuse_wqa_wkv is there
        if there:
            assert layer.wqkv_a.weight.shape == (Q_LORA + HEAD, HIDDEN)
            assert layer.wqkv_a.weight.dtype == torch.bfloat16

    def test_it_is_quantised_like_the_two_under_its_own_name(
        self, model: ModuleType, there: bool, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        built: dict[str, Any] = {}
        linear = model.ReplicatedLinear

        def build(*args: Any, quant_config: Any = None, prefix: str = "", **kwargs: Any) -> Any:
            built[prefix] = quant_config
            return linear(*args, prefix=prefix, **kwargs)

        monkeypatch.setattr(model, "ReplicatedLinear", build)
        monkeypatch.setattr(model, "_FP8_WO_A_GEMM", False)
        for name in ("ColumnParallelLinear", "RowParallelLinear"):
            original = getattr(model, name)
            monkeypatch.setattr(model, name, lambda *a, _o=original, **k: _o(*a, **{**k, "quant_config": None}))
        monkeypatch.setattr(model, "RadixAttention", lambda *_, **__: None)
        model.MQALayer(config=config(), layer_id=2, prefix="p", quant_config="fp8")
        assert built == {f"p.{name}": "fp8" for name in ("wq_a", "wkv", *(["wqkv_a"] if there else []))}

    def test_the_loader_fills_it_and_the_outputs_stay(
        self, model: ModuleType, layer: Any, there: bool, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        draw = torch.Generator().manual_seed(3)
        wq_a, wkv = (torch.randn(rows, HIDDEN, generator=draw).to(torch.bfloat16) for rows in (Q_LORA, HEAD))
        norm = torch.ones(Q_LORA, dtype=torch.bfloat16)
        prefix = "layers.0.attn"
        self.load(
            model,
            layer,
            {f"{prefix}.wkv.weight": wkv, f"{prefix}.q_norm.weight": norm, f"{prefix}.wq_a.weight": wq_a},
        )
        if there:
            assert torch.equal(layer.wqkv_a.weight, torch.cat([wq_a, wkv]))
        else:
            assert torch.equal(layer.wq_a.weight, wq_a) and torch.equal(layer.wkv.weight, wkv)
        stores, x = Stores(model, monkeypatch), tokens()
        layer._forward_prepare(x, torch.arange(5), BATCH, Backend())
        q_lora = layer.q_norm(x @ wq_a.T)
        torch.testing.assert_close(stores.kv, x @ wkv.T, rtol=1e-2, atol=1e-2)
        torch.testing.assert_close(stores.q, q_lora @ layer.wq_b.weight.T, rtol=2e-2, atol=2e-2)

    def test_the_loader_says_which_platform_this_is_to_nobody_else(
        self, model: ModuleType, layer: Any, there: bool, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        seen: list[bool] = []
        monkeypatch.setattr(
            model.DeepseekV4ForCausalLM, "post_load_weights", lambda self, **_: seen.append(model._is_hip)
        )
        self.load(model, layer, {})
        assert seen == [True] and model._is_hip is True


class TestNosplitkDecode:
    def test_a_large_batch_is_attended_in_one_pass(
        self, patched: Callable[[str], bool], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """Over the release's entry, with a batch of two requests of two tokens that is called large."""
        there = patched("dsv4-nosplitk-decode")
        entry = importlib.import_module(DECODE)
        kernels = importlib.import_module(f"{DECODE}.triton_mla_kernels_decode_optimized")

        def old_way(*_: object, **__: object) -> None:
            raise RuntimeError("split")

        for name in ("fused_gather_attn_decode_dsv4_dual_scope_low_overhead", "_fallback_gather_attention"):
            monkeypatch.setattr(kernels, name, old_way)
        monkeypatch.setattr(dsv4_nosplitk_decode, "in_one_pass", lambda *_: True)
        draw = torch.Generator().manual_seed(0)
        pages, counts = (128, 64), (128, 64)
        keys = [make_keys(2 * page, draw) for page in pages]
        indices = [
            torch.randint(0, 2 * page, (4, count), generator=draw) for page, count in zip(pages, counts, strict=True)
        ]
        indices[1][:, 40:] = -1
        lengths = [torch.tensor([128, 100], dtype=torch.int32), torch.tensor([64, 1], dtype=torch.int32)]
        scopes = tuple(
            Scope(pack(all_keys, page), index.int(), length)
            for all_keys, page, index, length in zip(keys, pages, indices, lengths, strict=True)
        )
        q = torch.randn(4, 8, HEAD, generator=draw).to(torch.bfloat16)
        sink = torch.randn(8, generator=draw)

        def run() -> tuple[Tensor, Tensor]:
            main, extra = scopes
            made: tuple[Tensor, Tensor] = entry.triton_fp8_attention_fwd(
                q=q.view(2, 2, 8, HEAD),
                k_cache=main.pages,
                head_dim_v=HEAD,
                softmax_scale=HEAD**-0.5,
                indices=main.indices.view(2, 2, -1),
                attn_sink=sink,
                extra_k_cache=extra.pages,
                extra_indices_in_kvcache=extra.indices.view(2, 2, -1),
                topk_length=main.lengths,
                extra_topk_length=extra.lengths,
            )
            return made

        if not there:
            with pytest.raises(RuntimeError, match="split"):
                run()
            return
        out, lse = run()
        expected = attend(q, keys, scopes, HEAD**-0.5, sink, 2)
        assert out.shape == (2, 2, 8, HEAD) and lse.shape == (2, 2, 8)
        bound = (2**-8 + expected.score_error[..., None]) * (expected.out.abs() + expected.magnitude) + 1e-6
        assert ((out.view(4, 8, HEAD).double() - expected.out).abs() <= bound).all()
        torch.testing.assert_close(lse.view(4, 8).double(), expected.lse, rtol=1e-4, atol=1e-4)
