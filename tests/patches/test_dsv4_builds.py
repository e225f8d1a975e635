"""The patches for DeepSeek-V4's development builds: decisions and behaviour over hand-written trees in their shapes.

`python -m tests.dsv4_builds GIT_DIR` does the same over the real sources.
"""

from __future__ import annotations

from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
import torch
from packaging.version import Version

from overlay import guard as guards
from overlay.counters import SHADOWED
from overlay.install import Ledger
from overlay.model import Decision, Patch, State
from overlay.plan import make_plan
from overlay.platform import Platform
from overlay.registry import Registry
from overlay.source import DirectoryTree, SourceTree
from patches.dsv4_verify_eager import slots_of_step
from tests.dsv4_builds import PATCHES, TRITON
from tests.patches.dsv4_shapes import (
    CONTEXT,
    DECODE,
    DRAFT,
    INDEXER,
    MODEL,
    RADIX,
    imported,
    knowing_shapes,
    write_shape,
)
from tests.unit.engine_support import RELEASES

IDS = {patch.id: patch for patch in PATCHES}
ALL = set(IDS)
MTP = {"dsv4-draft-dispatch", "dsv4-verify-eager"}


def decide(patches: tuple[Patch, ...], tree: SourceTree, **environ: str) -> dict[str, Decision]:
    plan = make_plan(Registry(patches), tree, Platform("rocm", "gfx950"), {**TRITON, **environ})
    return {decision.patch.id: decision for decision in plan.decisions}


@pytest.mark.parametrize("version", ["0.5.12.dev20260526+g3f5e2c7", "0.0.0.dev0", "0.5.12.post1.dev3+g3f5e2c7", ""])
@pytest.mark.parametrize(("shape", "needed"), [("gated", ALL), ("first", MTP), ("merged", set()), ("released", set())])
def test_a_build_is_told_by_its_source_whatever_it_calls_itself(
    tmp_path: Path, version: str, shape: str, needed: set[str]
) -> None:
    known = tuple(knowing_shapes(patch, tmp_path / "known") for patch in PATCHES)
    made = decide(known, write_shape(tmp_path / "this", shape, version))
    assert {name for name, decision in made.items() if decision.state is State.PLANNED} == needed
    for name, decision in made.items():
        assert "decided by fingerprint" in decision.reason
        if name not in needed:
            assert decision.state is (State.UNSUPPORTED_VERSION if shape == "released" else State.CONTAINED)
            told = {"first": "this build", "merged": "has it: ", "released": "has no ROCm DeepSeek-V4 backend"}
            assert told[shape] in decision.reason


def test_a_build_that_nobody_has_read_is_left_alone(tmp_path: Path) -> None:
    made = decide(PATCHES, write_shape(tmp_path, "gated"))
    assert {decision.state for decision in made.values()} == {State.SOURCE_MISMATCH}


@pytest.mark.parametrize(
    ("patch_id", "switch"),
    [
        ("dsv4-alt-stream", "SGLANG_OPT_USE_MULTI_STREAM_OVERLAP"),
        ("dsv4-wqkv-fusion", "SGLANG_OPT_FUSE_WQA_WKV"),
    ],
)
@pytest.mark.parametrize(("value", "planned"), [("0", False), ("No", False), ("1", True), ("yes", True)])
def test_a_switch_of_sglang_leaves_nothing_to_do(
    tmp_path: Path, patch_id: str, switch: str, value: str, planned: bool
) -> None:
    known = knowing_shapes(IDS[patch_id], tmp_path / "known")
    decision = decide((known,), write_shape(tmp_path / "this", "gated"), **{switch: value})[patch_id]
    assert decision.state is (State.PLANNED if planned else State.CONTAINED)
    assert planned or f"{switch} is off" in decision.reason


@pytest.mark.parametrize(("value", "planned"), [("triton", True), ("tilelang", False), ("", False)])
def test_the_decode_is_patched_where_it_runs(tmp_path: Path, value: str, planned: bool) -> None:
    known = knowing_shapes(IDS["dsv4-nosplitk-decode"], tmp_path / "known")
    tree = write_shape(tmp_path / "this", "gated")
    decision = decide((known,), tree, SGLANG_HACK_FLASHMLA_BACKEND=value)[known.id]
    assert decision.state is (State.PLANNED if planned else State.CONTAINED)
    other = make_plan(Registry((known,)), tree, Platform("rocm", "gfx942"), TRITON).decisions[0]
    assert other.state is State.UNSUPPORTED_PLATFORM


@pytest.mark.parametrize("release", RELEASES)
def test_no_release_needs_them(release: str) -> None:
    version = Version(release)
    for decision in decide(PATCHES, DirectoryTree(RELEASES[release])).values():
        if version < Version("0.5.12"):
            assert decision.state is State.UNSUPPORTED_VERSION
        elif version >= Version("0.5.14"):
            assert decision.state in (State.UNSUPPORTED_VERSION, State.CONTAINED)
        elif version < Version("0.5.13"):
            assert decision.state is State.UNSUPPORTED_VERSION
            assert decision.reason.startswith("this release has no ROCm DeepSeek-V4 backend")
        else:
            assert decision.state is State.CONTAINED
            assert decision.reason.startswith("has it: ") and "fingerprint" not in decision.reason


@pytest.fixture
def modules(monkeypatch: pytest.MonkeyPatch) -> dict[str, ModuleType]:
    return imported(monkeypatch)


def install(patch_id: str) -> Ledger:
    """Fill the slots of the first variant, as in a process whose modules have executed."""
    ledger = Ledger()
    ledger.install(patch_id, IDS[patch_id].variants[0].targets)
    return ledger


class TestDraftDispatch:
    def test_both_backends_are_those_of_rocm(self, modules: dict[str, ModuleType]) -> None:
        factory, radix = modules[DRAFT].DraftBackendFactory(), modules[RADIX]
        ledger = install("dsv4-draft-dispatch")
        steps, extend = factory._create_dsv4_decode_backend(), factory._create_dsv4_prefill_backend()
        assert type(steps) is radix.DeepseekV4MultiStepBackend and steps.arguments == ("runner", 1, 3)
        assert type(extend) is radix.DeepseekV4HipRadixBackend and extend.arguments == ("runner", False)
        ledger.uninstall("dsv4-draft-dispatch")
        with pytest.raises(ImportError, match="sgl_kernel"):
            factory._create_dsv4_decode_backend()


class TestVerifyEager:
    @pytest.fixture
    def radix(self, modules: dict[str, ModuleType]) -> Any:
        install("dsv4-verify-eager")
        return modules[RADIX].DeepseekV4HipRadixBackend

    @staticmethod
    def batch(out_cache_loc: Any, mode: str = "decode") -> Any:
        mode_ = SimpleNamespace(is_idle=lambda: mode == "idle", is_decode_or_idle=lambda: mode in ("decode", "idle"))
        return SimpleNamespace(forward_mode=mode_, batch_size=2, out_cache_loc=out_cache_loc)

    def test_the_slots_of_a_step_lie_beside_those_of_the_next(self) -> None:
        slots = torch.tensor([100, 101, 110, 111, 200, 201, 210, 211])
        assert slots_of_step(slots, 2, 2, 2, 0).tolist() == [100, 110, 200, 210]
        assert slots_of_step(slots, 2, 2, 2, 1).tolist() == [101, 111, 201, 211]
        with pytest.raises(ValueError, match=r"3 requests x top-1 x 2 steps writes 6 slots, .* has 8"):
            slots_of_step(slots, 3, 1, 2, 0)

    @pytest.mark.parametrize(("step", "slots"), [(0, [100, 200]), (1, [101, 201])])
    def test_a_draft_step_sees_its_own_slots(self, radix: Any, step: int, slots: list[int]) -> None:
        drafter, given = radix("runner", False, step, 1, 2), torch.tensor([100, 101, 200, 201])
        batch = self.batch(given)
        drafter.init_forward_metadata(batch)
        assert drafter.forward_metadata == slots
        assert batch.out_cache_loc is given

    def test_the_slots_are_given_back_after_a_failure(self, radix: Any, monkeypatch: pytest.MonkeyPatch) -> None:
        def fails(self: object, out_cache_loc: object) -> None:
            raise RuntimeError("no memory")

        monkeypatch.setattr(radix, "init_forward_metadata_decode", fails)
        given = torch.tensor([100, 101, 200, 201])
        batch = self.batch(given)
        with pytest.raises(RuntimeError, match="no memory"):
            radix("runner", False, 0, 1, 2).init_forward_metadata(batch)
        assert batch.out_cache_loc is given

    @pytest.mark.parametrize(("steps", "mode"), [(0, "decode"), (1, "decode"), (2, "verify")])
    def test_other_passes_keep_all_slots(self, radix: Any, steps: int, mode: str) -> None:
        backend = radix("runner", False, 0, 1, steps)
        backend.init_forward_metadata(self.batch(torch.tensor([1, 2, 3, 4]), mode))
        assert backend.forward_metadata == [1, 2, 3, 4]

    def test_an_idle_draft_step_needs_no_slots(self, radix: Any) -> None:
        backend = radix("runner", False, 0, 1, 2)
        backend.init_forward_metadata(self.batch(torch.tensor([]), "idle"))
        assert not hasattr(backend, "forward_metadata")

    def test_a_verify_is_prepared_at_once_with_room_for_its_draft_tokens(self, radix: Any) -> None:
        lengths = torch.tensor([5, 9])
        made = radix("runner").init_forward_metadata_target_verify(9, "requests", lengths, "slots", True)
        assert made == {
            "max_seq_len": 13,
            "req_pool_indices": "requests",
            "seq_lens": lengths,
            "seq_lens_cpu": [5, 9],
            "out_cache_loc": "slots",
            "use_prefill_cuda_graph": True,
        }


class TestAltStream:
    def test_only_a_layer_with_a_compressor_uses_streams(self, modules: dict[str, ModuleType]) -> None:
        layer = modules[MODEL].MQALayer(None, layer_id="compressor")
        install("dsv4-alt-stream")
        arguments = ("x", "positions", "batch", "backend", None, None)
        assert layer.forward("x") == ("streams", *arguments)
        layer.compressor = None
        assert layer.forward("x") == ("plain", *arguments)
        assert layer._forward_prepare_multi_stream_hip("x", 1, 2, 3, "out", x_quant="q")[-2:] == ("out", "q")

    def test_an_indexer_that_is_given_no_backend_takes_the_current_one(self, modules: dict[str, ModuleType]) -> None:
        indexer, current, given = modules[INDEXER].C4Indexer(), modules[CONTEXT].current, list[Any]()
        install("dsv4-alt-stream")
        indexer.forward(x="x", q_lora="q", forward_batch="batch", skip_compressor=True)
        assert current == [("x", "q", "batch", False, True)]
        indexer.forward("x", "q", "batch", given, enable_multi_stream=True)
        assert given == [("x", "q", "batch", True, False)] and len(current) == 1


class TestWqkvFusion:
    def test_one_projection_takes_the_place_of_two(self, modules: dict[str, ModuleType]) -> None:
        cls = modules[MODEL].MQALayer
        ledger = install("dsv4-wqkv-fusion")
        for layer in (cls("config", 2, "fp8", "layer"), cls("config", layer_id=2, prefix="layer", quant_config="fp8")):
            assert layer.fuse_wqa_wkv and not hasattr(layer, "wq_a") and not hasattr(layer, "wkv")
            assert layer.wqkv_a.arguments == ((64, 544), False, "fp8", "layer.wqkv_a")
        assert cls("config", 2).wqkv_a.arguments == ((64, 544), False, None, ".wqkv_a")
        ledger.uninstall("dsv4-wqkv-fusion")
        assert cls("config", 2).wkv == "wkv"

    def test_the_loader_fuses_and_nobody_else_takes_the_platform_for_another(
        self, modules: dict[str, ModuleType], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        model = modules[MODEL]
        install("dsv4-wqkv-fusion")
        assert model.DeepseekV4ForCausalLM().load_weights(iter("ab")) == (True, True, ["a", "b"], False)
        assert model.NextN().load_weights(["a"]) == (True, True, ["a"], True)
        monkeypatch.setattr(model, "observe", lambda: "patched later")
        assert model.NextN().load_weights([])[1] == "patched later"
        assert model._is_hip is True


class TestNosplitkDecode:
    @pytest.fixture
    def calls(self, modules: dict[str, ModuleType], monkeypatch: pytest.MonkeyPatch) -> list[tuple[Any, ...]]:
        """What reaches our kernel, which answers with the number of the head; it fails once asked to."""
        made: list[tuple[Any, ...]] = []

        def run(q: Any, *rest: Any) -> tuple[Any, Any]:
            made.append((q.shape, *rest))
            if rest[1] == "fail":
                raise RuntimeError("no such instruction")
            return q, torch.arange(q.shape[1]).expand(q.shape[:2]).float()

        monkeypatch.setattr("patches.kernels.sparse_mla.sparse_decode", run)
        monkeypatch.setattr("overlay.guard._guards", {})  # of another test
        install("dsv4-nosplitk-decode")
        return made

    @staticmethod
    def scope(rows: int, keys: int, page: int) -> SimpleNamespace:
        pages = torch.zeros(1, page, 1, 584, dtype=torch.uint8)
        indices = torch.zeros(rows, 1, keys, dtype=torch.int32)
        return SimpleNamespace(blocked_k_quantized=pages, blocked_k=pages, indices_in_kvcache=indices, topk_length=None)

    def decode(
        self, modules: dict[str, ModuleType], rows: int, heads: int, keys: int, scale: Any = 0.5, **changed: Any
    ) -> Any:
        arguments = {
            "q": torch.zeros(rows, 1, heads, 512, dtype=torch.bfloat16),
            "kv_scope": self.scope(rows, 128, 128),
            "extra_kv_scope": self.scope(rows, keys, 64),
            "attn_sink": "sink",
            **changed,
        }
        return modules[DECODE].triton_sparse_attn_decode(sm_scale=scale, **arguments)

    @pytest.mark.parametrize(
        ("rows", "heads", "keys", "once"),
        [
            (256, 128, 72, True),
            (256, 128, 71, False),
            (255, 128, 1024, False),
            (256, 64, 512, False),
            (1023, 64, 512, False),
            (1024, 8, 64, True),
        ],
    )
    def test_large_batches_take_one_pass(
        self, modules: dict[str, ModuleType], calls: list[Any], rows: int, heads: int, keys: int, once: bool
    ) -> None:
        made = self.decode(modules, rows, heads, keys)
        assert isinstance(made[0], str) is not once
        assert len(calls) == once
        if once:
            shape, scopes, scale, sink, per_request = calls[0]
            assert shape == (rows, heads, 512) and (scale, sink, per_request) == (0.5, "sink", 1)
            assert [scope.indices.shape for scope in scopes] == [(rows, 128), (rows, keys)]
            out, lse = made
            assert out.shape == (rows, 1, heads, 512) and lse.shape == (rows, heads, 1)
            assert lse[7, :, 0].tolist() == list(range(heads))

    def test_what_the_kernel_does_not_take_is_left(self, modules: dict[str, ModuleType], calls: list[Any]) -> None:
        assert self.decode(modules, 1024, 8, 64, extra_kv_scope=None)[0] == "splits"
        assert self.decode(modules, 1024, 8, 64, d_v=448)[0] == "splits"
        assert self.decode(modules, 1024, 8, 64, q=torch.zeros(1024, 1, 8, 576))[0] == "splits"
        assert not calls

    def test_a_failure_switches_it_off_once_and_aloud(
        self, modules: dict[str, ModuleType], calls: list[Any], capsys: pytest.CaptureFixture[str]
    ) -> None:
        assert self.decode(modules, 1024, 8, 64, "fail")[0] == "splits"
        assert self.decode(modules, 1024, 8, 64)[0] == "splits"
        assert len(calls) == 1
        assert capsys.readouterr().err.count("upstream's path serves: RuntimeError: no such instruction") == 1
        assert list(guards.guard("dsv4-nosplitk-decode").counts) == [0, 0, 1, 0]

    @pytest.mark.parametrize(("out", "lse", "kept"), [(3e-2, 1e-4, True), (4e-2, 0, False), (0, 2e-3, False)])
    def test_a_shadow_run_compares_both_results_with_the_releases(
        self, modules: dict[str, ModuleType], monkeypatch: pytest.MonkeyPatch, out: float, lse: float, kept: bool
    ) -> None:
        """The largest value of a head is 1, whose eps is 2**-7: four of them are 3.1e-2."""
        theirs = torch.ones(1024, 1, 8, 512).bfloat16(), torch.zeros(1024, 8, 1)

        def run(q: Any, *_: Any) -> tuple[Any, Any]:
            return (theirs[0].view(q.shape) - out).bfloat16(), theirs[1].view(q.shape[:2]) + lse

        monkeypatch.setattr("patches.kernels.sparse_mla.sparse_decode", run)
        monkeypatch.setattr(modules[DECODE], "_triton_sparse_attn_decode_dsv4", lambda *_: theirs)
        monkeypatch.setattr("overlay.guard._guards", {})
        install("dsv4-nosplitk-decode")
        guard = guards.guard("dsv4-nosplitk-decode")
        guard.shadow_runs = 1
        made = self.decode(modules, 1024, 8, 64)
        assert (made[0] is not theirs[0]) is guard.on is kept
        assert made[0].shape == theirs[0].shape and made[1].shape == theirs[1].shape
        assert guard.shadow_runs == 0 and guard.counts[SHADOWED] == 1

    def test_a_large_batch_that_the_kernel_does_not_take_is_counted(
        self, modules: dict[str, ModuleType], calls: list[Any]
    ) -> None:
        self.decode(modules, 1024, 8, 64, q=torch.zeros(1024, 1, 8, 576))
        self.decode(modules, 1, 8, 64)
        assert list(guards.guard("dsv4-nosplitk-decode").counts) == [0, 1, 0, 0]

    def test_the_bound_between_the_old_ways_moves(self, modules: dict[str, ModuleType]) -> None:
        install("dsv4-nosplitk-decode")
        fuses = modules[DECODE]._should_use_fused_dual_scope
        most = {
            (128, 640): 32,
            (128, 399): 128,
            (64, 800): 256,
            (64, 1024): 128,
        }
        for (heads, keys), tokens in most.items():
            assert fuses(tokens, heads, keys) and not fuses(tokens + 1, heads, keys)
        assert fuses(10000, 64, 900) and fuses(4, 128, 640)
