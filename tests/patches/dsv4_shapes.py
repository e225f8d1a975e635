"""Hand-written trees in the shapes that DeepSeek-V4's ROCm backend had in May 2026.

Not upstream's text: each function is as short as it can be and still be patched. Digests of real sources are checked by
`python -m tests.dsv4_builds`, which needs a git history that is not on the package index.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from types import ModuleType

import pytest

from overlay.model import Image, Patch, Variant
from overlay.observer import Observer
from overlay.source import DirectoryTree, module_file
from tests.unit.engine_support import write_tree

REGISTRY = "sglang.srt.layers.attention.attention_registry"
RADIX = "sglang.srt.layers.attention.deepseek_v4_backend_hip_radix"
INDEXER = "sglang.srt.layers.attention.dsv4.indexer"
CONTEXT = "sglang.srt.model_executor.forward_context"
MODEL = "sglang.srt.models.deepseek_v4"
DRAFT = "sglang.srt.speculative.draft_utils"
DECODE = "sglang.srt.layers.attention.nsa.triton_decode.triton_mla_kernels_decode_optimized"

_RADIX = """
class DeepseekV4HipRadixBackend:
    def __init__(self, model_runner, skip_prefill=False, speculative_step_id=0, topk=0, speculative_num_steps=0):
        self.arguments = model_runner, skip_prefill
        self.topk, self.mtp_enabled = 1, True
        self.speculative_step_id, self.speculative_num_steps = speculative_step_id, speculative_num_steps
        self.speculative_num_draft_tokens = 4

    def init_forward_metadata(self, forward_batch):
        if self.mtp_enabled and forward_batch.forward_mode.is_idle():
            return
        self.forward_metadata = self.init_forward_metadata_decode(forward_batch.out_cache_loc)

    def init_forward_metadata_decode(self, out_cache_loc):
        if out_cache_loc is None:
            raise RuntimeError("no memory")
        return out_cache_loc.tolist()

    def init_forward_metadata_target_verify(
        self, max_seq_len, req_pool_indices, seq_lens, out_cache_loc=None, use_prefill_cuda_graph=False
    ):
        return "raw"

    def init_forward_metadata_target_verify_old(self, **arguments):
        return arguments

    def make_core_attn_metadata(self):
        pass


class DeepseekV4MultiStepBackend(DeepseekV4HipRadixBackend):
    def __init__(self, model_runner, topk, speculative_num_steps):
        self.arguments = model_runner, topk, speculative_num_steps
"""

_DRAFT = """
class DraftBackendFactory:
    draft_model_runner, topk, speculative_num_steps = "runner", 1, 3

    def _create_dsv4_decode_backend(self):
        import sgl_kernel.flash_mla

    def _create_dsv4_prefill_backend(self):
        import sgl_kernel.flash_mla
"""

_INDEXER = """
class C4Indexer:
    def forward(self, x, q_lora, forward_batch, attn_backend, enable_multi_stream=False, skip_compressor=False):
        attn_backend.append((x, q_lora, forward_batch, enable_multi_stream, skip_compressor))
"""

_MODEL = """
_is_hip = True


def add_prefix(name, prefix):
    return f"{prefix}.{name}"


class ReplicatedLinear:
    def __init__(self, *sizes, bias, quant_config, prefix):
        self.arguments = sizes, bias, quant_config, prefix


class MQALayer:
    def __init__(self, config, layer_id, quant_config=None, prefix="", alt_streams=None):
        self.hidden_size, self.q_lora_rank, self.head_dim = 64, 32, 512
        self.wq_a, self.wkv, self.fuse_wqa_wkv = "wq_a", "wkv", False
        self.compressor, self.indexer = layer_id, None

    def forward(self, x):
        return self._forward_prepare_multi_stream_hip(x, "positions", "batch", "backend")

    def _forward_prepare_multi_stream_hip(self, x, positions, forward_batch, attn_backend, q_out=None, x_quant=None):
        return "streams", x, positions, forward_batch, attn_backend, q_out, x_quant

    def _forward_prepare(self, x, positions, forward_batch, attn_backend, q_out=None, x_quant=None):
        return ("plain", x, positions, forward_batch, attn_backend, q_out, x_quant), "kv"

    def _compute_kv_to_cache(self):
        pass

    def _compute_kv_bf16(self):
        pass


def observe():
    return _is_hip


class DeepseekV4ForCausalLM:
    def load_weights(self, weights, is_nextn=False):
        return not _is_hip, observe(), list(weights), is_nextn


class NextN(DeepseekV4ForCausalLM):
    def load_weights(self, weights):
        return super().load_weights(weights, is_nextn=True)
"""

_DECODE = """
def triton_sparse_attn_decode(q, kv_scope, extra_kv_scope, sm_scale, d_v=512, attn_sink=None):
    return _triton_sparse_attn_decode_dsv4(q, kv_scope, extra_kv_scope, sm_scale, d_v, attn_sink)


def _should_use_fused_dual_scope(total_tokens, h_q, total_topk):
    return True


def _triton_sparse_attn_decode_dsv4(q, kv_scope, extra_kv_scope, sm_scale, d_v, attn_sink):
    return "splits", q, kv_scope, extra_kv_scope, sm_scale, d_v, attn_sink
"""

_STREAMS = "    def _forward_prepare_multi_stream_hip(self"
#: A build of 2026-05-26, which lacks all of #26383.
GATED = {
    REGISTRY: "def create_dsv4_backend(runner):\n    return 'hip_radix'\n",
    RADIX: _RADIX,
    DRAFT: _DRAFT,
    INDEXER: _INDEXER,
    CONTEXT: "current = []\n\n\ndef get_attn_backend():\n    return current\n",
    MODEL: _MODEL,
    DECODE: _DECODE,
}
#: By variant: the sources that it is to know. Every one differs from the others where its patch looks.
SHAPES: dict[str, dict[str, str]] = {
    "gated": GATED,
    "first": {
        **{name: text for name, text in GATED.items() if name != DECODE},
        MODEL: _MODEL.replace(_STREAMS, "    def _other(self").replace(" = 64, 32, 512", " = 64, 32, 576"),
    },
    "merged": {
        **GATED,
        RADIX: _RADIX.replace('return "raw"', 'return "eager"'),
        DECODE: _DECODE.replace("_should_use_fused_dual_scope", "_should_use_fused_nosplitk"),
        DRAFT: _DRAFT.replace("import sgl_kernel.flash_mla", "return 'hip_radix'"),
        MODEL: _MODEL.replace('return "streams"', 'return "all streams"').replace("= 64, 32", "= 32, 64"),
    },
    "released": {REGISTRY: "def create_dsv4_backend(runner):\n    return 'flash_mla'\n"},
}
#: Which of these shapes each variant's images are taken from; "gated" where it is not named.
_OF_VARIANT = {
    "one-stream": "first",
    "no-triton-decode": "first",
    "gated-before-#25898": "first",
    "contained": "merged",
    "no-rocm-backend": "released",
}


def write_shape(root: Path, shape: str, version: str = "0.5.12.dev20260526+g3f5e2c7") -> DirectoryTree:
    """A tree of one shape. AMD's images name their builds after the release before them."""
    files = {module_file(module)[0]: text for module, text in SHAPES[shape].items()}
    version_file = f"__version__ = version = {version!r}\n"
    return DirectoryTree(write_tree(root, {"sglang/__init__.py": "", "sglang/_version.py": version_file, **files}))


def knowing_shapes(patch: Patch, root: Path) -> Patch:
    """The patch with the digests of the hand-written sources in place of upstream's."""

    def known(variant: Variant) -> Variant:
        shape = _OF_VARIANT.get(variant.name, "gated")
        observer = Observer(write_shape(root / shape, shape), simulated=True)
        images = tuple(Image.of(image.slot, observer.observe(image.slot)) for image in variant.images)
        return replace(variant, images=images)

    return replace(patch, variants=tuple(map(known, patch.variants)))


def imported(monkeypatch: pytest.MonkeyPatch) -> dict[str, ModuleType]:
    """The modules of the shape "gated", executed, under the names that patches fill."""
    import sys

    modules = {}
    for name, text in GATED.items():
        modules[name] = ModuleType(name)
        exec(text, vars(modules[name]))
        monkeypatch.setitem(sys.modules, name, modules[name])
    return modules
