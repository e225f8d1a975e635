"""Second streams that can hang a server or give wrong numbers."""

from __future__ import annotations

import re
from collections.abc import Iterator

from overlay.doctor.check_packages import asks_for_aiter
from overlay.doctor.facts import Facts
from overlay.doctor.finding import Finding, error, info, warning
from overlay.doctor.streams_in_effect import decision_of, features, in_effect, names, obeyed_by_sglang, patched
from overlay.model import BROKEN, State
from overlay.stream_environment import ALT_STREAM, MULTI_STREAM

SEMAPHORE_FIX = "fix-aiter-semaphore"
#: The switch of deepseek-dual-stream that keeps its forks inside captured graphs.
CAPTURE_ONLY = "AMD_SGLANG_DEEPSEEK_DUAL_STREAM_CAPTURE_ONLY"
#: Patch -> the streams whose numbers depend on it, and what goes wrong without it.
NUMBERS = {
    "fix-dual-stream-scaling": ((MULTI_STREAM,), "routed experts are scaled twice"),
    "fix-dual-stream-inplace": ((ALT_STREAM, MULTI_STREAM), "experts overwrite what the other stream still reads"),
}
#: hipBLASLt did not change after 7.2.0 until 7.2.4, the last ROCm before the fix was merged. HIP's third number counts
#: builds (7.2.53211 is that of ROCm 7.2.3), so two are compared.
_WITHOUT_STREAM_K_FIX = (7, 2)


def numbers(facts: Facts) -> Iterator[Finding]:
    """A release that forks by itself, without the correction that its fork needs."""
    for patch_id, (variables, harm) in NUMBERS.items():
        decision = decision_of(facts, patch_id)
        if decision is None or (decision.state not in BROKEN and patch_id not in facts.withheld):
            continue
        for variable in in_effect(facts):
            if variable in variables and obeyed_by_sglang(facts, variable):
                yield error(
                    "wrong-numbers", f"{variable.name} is on and {patch_id} is {decision.state.value} "
                    f"({decision.reason}): {harm}",
                    f"Unset {variable.name}, or let {patch_id} be applied.",
                )  # fmt: skip


def semaphore(facts: Facts) -> Iterator[Finding]:
    """aiter's split-K GEMM counts its workgroups in one buffer per device; two streams in it at once wait for ever
    (ROCm/aiter#3288). sglang calls it for unquantised layers from 0.5.10 (unquant.py, tgemm.mm)."""
    on = in_effect(facts)
    if not on or facts.aiter is None or not facts.aiter.shared_semaphore or not _aiter_runs_gemms(facts):
        return
    decision = decision_of(facts, SEMAPHORE_FIX)
    if decision is not None and decision.state is State.PLANNED:
        return
    yield error(
        "aiter-semaphore", f"aiter {facts.aiter.version or 'as installed'} shares one split-K semaphore among all "
        f"streams: with {names(on)} two such GEMMs at once never end (ROCm/aiter#3288)",
        f"Install amd-aiter 0.1.15 or later, let {SEMAPHORE_FIX} be applied, or unset {names(on)}.",
    )  # fmt: skip


def blaslt_workspace(facts: Facts) -> Iterator[Finding]:
    """`hipb_mm` keeps one workspace for all streams. aiter's own tables never choose it; a tuned one may."""
    on = in_effect(facts)
    if on and _aiter_runs_gemms(facts) and facts.aiter is not None and facts.aiter.blaslt_shapes:
        yield error(
            "hipb_mm-workspace", f"{facts.aiter.blaslt_shapes} shapes of aiter's tuned GEMM table run in hipb_mm, "
            f"which has one workspace for all streams: with {names(on)} two of them may overwrite each other",
            "Point AITER_CONFIG_GEMM_BF16 to a table without `hipblaslt` in its libtype column, or unset "
            f"{names(on)}.",
        )  # fmt: skip


def stream_k(facts: Facts) -> Iterator[Finding]:
    """hipBLASLt's Stream-K kernels share flags per handle, so that two streams of one handle can wait for each other
    for ever (ROCm/rocm-libraries#10951, merged in August 2026, seen on gfx950)."""
    on = in_effect(facts)
    if not on or facts.platform.simulated or facts.environ.get("TORCH_BLAS_PREFER_HIPBLASLT") == "0":
        return
    fix = f"If the server stops with the GPU at 100 %, set TORCH_BLAS_PREFER_HIPBLASLT=0 or unset {names(on)}."
    hip = facts.torch.hip if facts.torch else None
    found = _minor(hip)
    if found is not None and found <= _WITHOUT_STREAM_K_FIX:
        yield warning(
            "hipblaslt-stream-k", f"the hipBLASLt of HIP {hip} can deadlock when two streams run Stream-K GEMMs at "
            "once (rocm-libraries#10951); no patch of Python can prevent it", fix,
        )  # fmt: skip
    else:
        yield info(
            "hipblaslt-stream-k", "whether this hipBLASLt has rocm-libraries#10951, without which two streams of "
            "Stream-K GEMMs can deadlock, cannot be known from here", fix,
        )  # fmt: skip


def event_waits(facts: Facts) -> Iterator[Finding]:
    """`DeepseekV2MoE.forward_deepep` forks whenever it has a stream, in eager prefill too; HIP's event waits outside
    a captured graph have been seen to hang (vllm-project/vllm#51794)."""
    backend = facts.arguments.a2a_backend
    if MULTI_STREAM not in in_effect(facts) or backend == "none":
        return
    fix = f"If prefill hangs, unset {MULTI_STREAM.name} or serve with --moe-a2a-backend none."
    if patched(facts, MULTI_STREAM):  # upstream's own stream knows no such switch
        if facts.environ.get(CAPTURE_ONLY, "").lower() in ("1", "true"):
            return
        fix = f"If prefill hangs, set {CAPTURE_ONLY}=1 or unset {MULTI_STREAM.name}."
    yield warning(
        "event-waits", f"with --moe-a2a-backend {backend}, {MULTI_STREAM.name} also forks outside captured graphs, "
        "where waiting for an event of HIP can hang (vLLM #51794)", fix,
    )  # fmt: skip


def mori(facts: Facts) -> Iterator[Finding]:
    """The overlap frees compute units only while Mori's copy-engine kernels (AsyncLL) move the tokens."""
    environ, has = facts.environ, features(facts)
    if facts.arguments.a2a_backend != "mori" or MULTI_STREAM not in in_effect(facts):
        return
    # server_args.py:2794 of 0.5.10 turns `auto` into `normal` for Mori; 0.5.9 does so with every mode.
    low_latency = facts.arguments.deepep_mode == "low_latency" and has.mori_async
    copy_engine = has.mori_sdma and environ.get("MORI_ENABLE_SDMA", "").lower() in ("1", "true")
    if low_latency or copy_engine:
        return
    message = f"Mori moves tokens on compute units in --deepep-mode {facts.arguments.deepep_mode}, where the second "
    message += f"stream of {MULTI_STREAM.name} competes with it"
    if not has.mori_async:
        yield warning("mori", f"{message}; this release has no AsyncLL kernels", f"Unset {MULTI_STREAM.name}.")
    elif has.mori_ep_v2 and environ.get("SGLANG_MORI_EP_V2", "1").lower() not in ("0", "false", "no", "n"):
        # arg_groups/moe_hook.py:807 of 0.5.23 decides by the model, which is not known here.
        yield info("mori", f"{message}, unless this model takes Mori's EPv2", "Pass --deepep-mode low_latency if not.")
    else:
        yield warning("mori", message, "Pass --deepep-mode low_latency; `auto` means `normal` for Mori.")


def _aiter_runs_gemms(facts: Facts) -> bool:
    return asks_for_aiter(facts) and facts.aiter is not None and facts.aiter.amd and features(facts).tuned_gemm


def _minor(hip: str | None) -> tuple[int, ...] | None:
    """(7, 2) of `7.2.53211-e1a6bc5663`."""
    found = re.match(r"(\d+)\.(\d+)", hip or "")
    return (int(found[1]), int(found[2])) if found else None


CHECKS = (numbers, semaphore, blaslt_workspace, stream_k, event_waits, mori)
