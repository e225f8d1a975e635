"""DeepSeek-V4's MTP on ROCm, builds of 2026-05-18 to 05-27: metadata that can be captured, and slots for each step.

What is wrong upstream. Two things, both in hip_radix, both changed by #26383.
1. With SGLANG_PREP_IN_CUDA_GRAPH, the default, a target verify leaves its metadata raw, to be made inside the graph,
   where the planner of the compressors asserts what does not hold for a captured batch. #26383 makes it at once.
2. A draft step that runs outside a graph is given the slots of all steps, and `init_forward_metadata_decode` asserts
   that there is one for each request. CUDA's backend takes its step's share since #26239; #26383 copied that.
Beside them, the defect that `fix-verify-page-table` fixes in 0.5.13 to 0.5.19: the page table of an eager verify is cut
before the draft tokens.

How we know it is right. The slots are laid out as `EagleWorker.draft_forward` writes them. A verify calls the release's
own eager function, with the length that 0.5.20 calls it with. Upstream also hardened the function that completes raw
verify metadata; after 1. nothing makes any.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from overlay.model import Image, Method, Need, Patch, Slot, Target, Variant, always
from patches import dsv4_window as window

if TYPE_CHECKING:
    from torch import Tensor

_CLASS = "DeepseekV4HipRadixBackend"
_VERIFY = Slot(window.RADIX, f"{_CLASS}.init_forward_metadata_target_verify")
_METADATA = Slot(window.RADIX, f"{_CLASS}.init_forward_metadata")


def slots_of_step(out_cache_loc: Tensor, batch: int, topk: int, steps: int, step: int) -> Tensor:
    """The slots (batch * topk,) that one draft step writes, out of those of all steps (batch * topk * steps,), which
    hold the steps of one branch side by side. Raises ValueError if they are not that many.
    """
    if out_cache_loc.shape[0] != batch * topk * steps:
        raise ValueError(
            f"a draft of {batch} requests x top-{topk} x {steps} steps writes {batch * topk * steps} slots, and "
            f"forward_batch.out_cache_loc has {out_cache_loc.shape[0]}"
        )
    return out_cache_loc.reshape(batch, topk, steps)[:, :, step].reshape(-1)


def make_target_verify(_original: object) -> Callable[..., Any]:
    """The metadata of a target verify, complete. seq_lens int32 (requests,), without the draft tokens."""

    def init_forward_metadata_target_verify(
        self: Any,
        max_seq_len: int,
        req_pool_indices: Tensor,
        seq_lens: Tensor,
        out_cache_loc: Tensor | None = None,
        use_prefill_cuda_graph: bool = False,
    ) -> Any:
        return self.init_forward_metadata_target_verify_old(
            max_seq_len=max_seq_len + self.speculative_num_draft_tokens,
            req_pool_indices=req_pool_indices,
            seq_lens=seq_lens,
            seq_lens_cpu=seq_lens.tolist(),
            out_cache_loc=out_cache_loc,
            use_prefill_cuda_graph=use_prefill_cuda_graph,
        )

    return init_forward_metadata_target_verify


def make_init_forward_metadata(original: Any) -> Callable[..., None]:
    """The metadata of one forward pass outside a graph; a draft step sees its own slots while they are made."""

    def init_forward_metadata(self: Any, forward_batch: Any) -> None:
        drafts = self.topk > 0 and self.speculative_num_steps > 1
        idle = self.mtp_enabled and forward_batch.forward_mode.is_idle()
        if idle or not drafts or not forward_batch.forward_mode.is_decode_or_idle():
            original(self, forward_batch)
            return
        of_all_steps = forward_batch.out_cache_loc
        forward_batch.out_cache_loc = slots_of_step(
            of_all_steps, forward_batch.batch_size, self.topk, self.speculative_num_steps, self.speculative_step_id
        )
        try:
            original(self, forward_batch)
        finally:
            forward_batch.out_cache_loc = of_all_steps

    return init_forward_metadata


_needed = always(
    Need(
        True,
        "back-port of #26383: this build leaves the metadata of a target verify to the captured graph, whose planner "
        "cannot make it, and gives each draft step outside a graph the slots of all steps, which it refuses",
    )
)


PATCH = Patch(
    id="dsv4-verify-eager",
    title="DeepSeek-V4's speculative decoding under graph capture, and without graphs",
    why="In builds of 2026-05-18 to 05-27 MTP of DeepSeek-V4 fails on ROCm with graphs, because a target verify is "
    "prepared inside the graph, and without them from two draft steps on, because every step gets the slots of all. "
    "The page table of an eager verify misses the page that its draft tokens begin.",
    upstream=(window.UPSTREAM, "#26239"),
    contained_since="0.5.13",
    versions=window.VERSIONS,
    variants=(
        Variant(
            name="raw-verify",
            images=(
                window.HIP_RADIX,
                Image.of(_VERIFY, "fe45e8958556ca23"),
                Image.of(_METADATA, "e4e9202c429a0be2", "bcb33fad4567fb0b"),
                Image.of(Slot(window.RADIX, f"{_CLASS}.init_forward_metadata_target_verify_old"), "656a4016c7559105"),
                Image.of(Slot(window.RADIX, f"{_CLASS}.init_forward_metadata_decode"), "b57e439890474375"),
                Image.of(Slot(window.RADIX, f"{_CLASS}.make_core_attn_metadata"), "484d0a7c452edacd"),
            ),
            need=_needed,
            targets=(
                Target(_VERIFY, Method.REPLACE, make_target_verify),
                Target(_METADATA, Method.REPLACE, make_init_forward_metadata),
            ),
        ),
        window.contained(
            "verifies eagerly and slices the slots of a draft step",
            Image.of(_VERIFY, "7c82e2e1631fff22"),
        ),
        window.NO_BACKEND,
    ),
    verified_by="the real backend of five builds: raw metadata, an AssertionError and a cut page table without the "
    "patch; complete metadata, the slots of each step and the whole table with it",
    remove_when=window.REMOVE_WHEN,
)
