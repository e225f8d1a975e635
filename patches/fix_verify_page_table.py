"""DeepSeek-V4's speculative decoding on ROCm: the page table of an eager verify covers the draft tokens it verifies.

What is wrong upstream. #26383 (0.5.13) builds the metadata of a target verify for `seq_lens` plus the draft tokens, and
cuts its page table to the longest `seq_len` without them (deepseek_v4_backend_hip_radix.py:545, :1199). When the draft
tokens cross into a new page of 256, that page is not in the table of the longest request. A verify in a CUDA graph is
not concerned: its table is as wide as a request can get. 0.5.20 adds the draft tokens.

How we know it is right. The same addition as 0.5.20's, at the same place.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from overlay.model import Image, Method, Need, Patch, Slot, Target, Variant, always

_MODULE = "sglang.srt.layers.attention.deepseek_v4_backend_hip_radix"
_EAGER = Slot(_MODULE, "DeepseekV4HipRadixBackend.init_forward_metadata_target_verify_old")
_VERIFY = Slot(_MODULE, "DeepseekV4HipRadixBackend.init_forward_metadata_target_verify")
_CORE = Slot(_MODULE, "DeepseekV4HipRadixBackend.make_core_attn_metadata")


def make_eager_verify(original: Any) -> Callable[..., Any]:
    """The eager verify with `max_seq_len` counting the draft tokens (through 0.5.17)."""
    return _widened(original, "speculative_num_draft_tokens")


def make_eager_verify_of_target(original: Any) -> Callable[..., Any]:
    """The same where a DSpark draft worker verifies one token less than the server was told (0.5.18, 0.5.19)."""
    return _widened(original, "target_verify_num_draft_tokens")


def _widened(original: Callable[..., Any], draft_tokens: str) -> Callable[..., Any]:
    def init_forward_metadata_target_verify_old(self: Any, max_seq_len: int, *args: Any, **kwargs: Any) -> Any:
        return original(self, max_seq_len + getattr(self, draft_tokens), *args, **kwargs)

    return init_forward_metadata_target_verify_old


_needed = always(
    Need(True, "back-port of 0.5.20: an eager verify loses the page that the draft tokens of the longest request begin")
)


_TABLE = Image.of(_CORE, "484d0a7c452edacd", "9e468c0fe400aaae")

PATCH = Patch(
    id="fix-verify-page-table",
    title="an eager verify sees the page its draft tokens begin",
    why="Where the draft tokens of the longest request begin a new page, the eager target verify of DeepSeek-V4 cuts "
    "that page off its page table, so that what looks a page up there reads past the table's row.",
    upstream=("#26383",),
    contained_since="0.5.20",
    versions=">=0.5.13,<0.5.20",
    variants=(
        Variant(
            name="draft-tokens-of-the-server",
            images=(
                Image.of(_EAGER, "656a4016c7559105"),
                Image.of(_VERIFY, "7c82e2e1631fff22", "4e488e5c3632a558"),
                _TABLE,
            ),
            need=_needed,
            targets=(Target(_EAGER, Method.REPLACE, make_eager_verify),),
        ),
        Variant(
            name="draft-tokens-of-the-target",
            images=(Image.of(_EAGER, "8a3a1a01b9d15fbb"), Image.of(_VERIFY, "ab9b7c6b1de7822e"), _TABLE),
            need=_needed,
            targets=(Target(_EAGER, Method.REPLACE, make_eager_verify_of_target),),
        ),
    ),
    verified_by="the real backend of the releases, whose page table lacks the new page without the patch and has it "
    "with the patch, and is unchanged where a CUDA graph is captured",
    remove_when="0.5.20 is the oldest supported release",
)
