"""The sglang that a launch from here would run, as far as the checks ask about it."""

from __future__ import annotations

import os
from collections.abc import Sequence
from email.parser import BytesHeaderParser
from pathlib import Path

from overlay.doctor.facts import Features, Sglang
from overlay.errors import SglangNotFoundError
from overlay.source import SourceTree, UnreadableSourceError, installed_tree
from overlay.version import read_version

_MODELS = "sglang/srt/models"


def sglang(tree: SourceTree, search: Sequence[str]) -> Sglang:
    """`search` is the path of the launch, on which `tree` was found."""
    root = Path(tree.path).parent
    versions = sorted(filter(None, map(_metadata_version, root.glob("sglang-*.dist-info/METADATA"))))
    return Sglang(tree.path, read_version(tree), tuple(versions), _hidden(root, search), features(tree))


def features(tree: SourceTree) -> Features:
    """What the source has, by the names that appear in it (releases in which each appeared: 0.5.9 to 0.5.22)."""
    qwen = _text(tree, f"{_MODELS}/qwen3_5.py")
    mori = _text(tree, "sglang/srt/layers/moe/token_dispatcher/moriep.py")
    return Features(
        qwen3_5=bool(qwen),
        alt_stream="SGLANG_ALT_STREAM" in qwen,
        gdn_projection="def _forward_input_proj" in qwen,
        fused_qk_norm="fused_qk_gemma_rmsnorm" in qwen,
        shared_expert_fusion="support_shared_expert_fusion" in _text(tree, f"{_MODELS}/qwen2_moe.py"),
        multi_stream="SGLANG_ROCM_USE_MULTI_STREAM" in _text(tree, f"{_MODELS}/deepseek_v2.py"),
        tuned_gemm="tgemm" in _text(tree, "sglang/srt/layers/quantization/unquant.py"),
        mori_async="class _MoriEPDispatcherImplLowLatency" in mori,
        mori_sdma="MORI_ENABLE_SDMA" in mori,
        mori_ep_v2="SGLANG_MORI_EP_V2" in mori,
        plugins=bool(_text(tree, "sglang/srt/plugins/__init__.py")),
        redirects_caches="def redirect_third_party_caches" in _text(tree, "sglang/srt/environ.py"),
    )


def _hidden(root: Path, search: Sequence[str]) -> str | None:
    """The sglang that would be found at another place if the first entry of the path, the working directory, were not
    there."""
    try:
        other = Path(installed_tree(search[1:]).path)
    except SglangNotFoundError:
        return None
    return None if os.path.realpath(other.parent) == os.path.realpath(root) else str(other)


def _metadata_version(path: Path) -> str:
    try:
        return str(BytesHeaderParser().parsebytes(path.read_bytes()).get("Version") or "")
    except OSError:
        return ""


def _text(tree: SourceTree, relative: str) -> str:
    try:
        return (tree.read(relative) or b"").decode("utf-8", "replace")
    except UnreadableSourceError:
        return ""
