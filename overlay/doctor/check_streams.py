"""Second streams that were asked for and will not run, or not as was meant."""

from __future__ import annotations

from collections.abc import Iterator

from overlay.doctor.check_packages import asks_for_aiter
from overlay.doctor.facts import Facts
from overlay.doctor.finding import Finding, error, ok, warning
from overlay.doctor.streams_in_effect import (
    MODELS_OF,
    PATCH_OF,
    decision_of,
    features,
    in_effect,
    names,
    patched,
)
from overlay.errors import MalformedSwitchError
from overlay.stream_environment import (
    ALT_STREAM,
    GDN_STREAM,
    MIN_QUEUES,
    MULTI_STREAM,
    QK_NORM_STREAM,
    QUEUES,
    STREAM_VARIABLES,
    queue_shortage,
    streams_on,
)

_FUSION_FLAG = "--disable-shared-experts-fusion"


def values(facts: Facts) -> Iterator[Finding]:
    """Words that one of sglang's parsers takes for something else than they say."""
    for variable in STREAM_VARIABLES:
        try:
            misreading = variable.misreading(facts.environ)
        except MalformedSwitchError as problem:
            # A patch that reads the variable as its own switch has complained already.
            if not any(variable.name in text for text in facts.unanswered.values()):
                yield error("stream-values", f"{problem}", f"Write {variable.name}=1, or unset it.")
        else:
            if misreading:
                yield warning("stream-values", misreading, f"Write {variable.name}=1.")
    if not any(variable.is_on(facts.environ) for variable in STREAM_VARIABLES):
        yield ok("streams", "no second stream is asked for")


def without_parent(facts: Facts) -> Iterator[Finding]:
    for variable in STREAM_VARIABLES:
        if variable.needs == ALT_STREAM.name and variable.is_on(facts.environ) and not ALT_STREAM.is_on(facts.environ):
            yield warning(
                "stream-without-parent", f"{variable.name} does nothing while {variable.needs} is off",
                f"Set {variable.needs}=1, or unset {variable.name}.",
            )  # fmt: skip


def without_effect(facts: Facts) -> Iterator[Finding]:
    """A variable that is on, and no code that obeys it."""
    for variable in streams_on(facts.environ):
        if variable in in_effect(facts):
            continue
        decision = decision_of(facts, PATCH_OF[variable.name])
        models = MODELS_OF[variable.name]
        if facts.platform.kind != "rocm":
            reason = f"this is not ROCm but {facts.platform.kind}"
        elif decision is not None:
            reason = f"sglang's {models} does not read it, and {decision.patch.id} is {decision.state.value}: "
            reason += decision.reason
        elif facts.sglang is not None:
            reason = f"sglang {facts.sglang.version.text} has no second stream for {models} on ROCm"
        else:
            continue
        yield warning("stream-without-effect", f"{variable.name} does nothing: {reason}", f"Unset {variable.name}.")


def gdn_projection(facts: Facts) -> Iterator[Finding]:
    """0.5.9 computes the GDN projections in one piece; `_forward_input_proj` came with 0.5.10."""
    if ALT_STREAM in in_effect(facts) and GDN_STREAM.is_on(facts.environ) and not features(facts).gdn_projection:
        yield warning(
            "gdn-stream", f"{GDN_STREAM.name} does nothing: this release's gated delta net has no separate input "
            "projections to overlap",
            f"Unset {GDN_STREAM.name}, or use sglang 0.5.10 or later.",
        )  # fmt: skip


def fused_qk_norm(facts: Facts) -> Iterator[Finding]:
    """From 0.5.11 `_apply_qk_norm` has a fused kernel for HIP, and tries the stream first (qwen3_5.py:746, 0.5.11)."""
    if ALT_STREAM in in_effect(facts) and QK_NORM_STREAM.is_on(facts.environ) and features(facts).fused_qk_norm:
        yield warning(
            "qk-norm-stream", f"{QK_NORM_STREAM.name}=1 replaces one fused QK-norm kernel by two norms on two streams "
            "in every captured graph, which is slower",
            f"Unset {QK_NORM_STREAM.name}.",
        )  # fmt: skip


def shared_expert_fusion(facts: Facts) -> Iterator[Finding]:
    """A shared expert that is fused into the routed ones is not there to run beside them."""
    if facts.arguments.disables_shared_expert_fusion:
        return
    on = in_effect(facts)
    has = features(facts)
    block_forks = facts.arguments.a2a_backend == "none" or not patched(facts, ALT_STREAM)
    if ALT_STREAM in on and has.shared_expert_fusion and block_forks:
        if asks_for_aiter(facts):
            yield warning(
                "shared-expert-fusion", "with aiter, Qwen3.5's MoE blocks fuse their shared expert where its size "
                f"allows: those get no second stream from {ALT_STREAM.name}",
                f"Add {_FUSION_FLAG} to the server's arguments.",
            )  # fmt: skip
        elif has.alt_stream:
            # qwen3_5.py:584 of 0.5.13: `alt_stream if _disable_shared_experts_fusion() else None`
            yield warning(
                "shared-expert-fusion", f"this release gives an MoE block its stream only under {_FUSION_FLAG}, even "
                "where nothing is fused",
                f"Add {_FUSION_FLAG} to the server's arguments.",
            )  # fmt: skip
    if MULTI_STREAM in on and facts.arguments.a2a_backend == "none":
        yield warning(
            "shared-expert-fusion", "DeepSeek-V3 and R1 fuse their shared expert on gfx942 and later: those MoE blocks "
            f"get no second stream from {MULTI_STREAM.name}",
            f"Add {_FUSION_FLAG} to the server's arguments.",
        )  # fmt: skip


def all_to_all(facts: Facts) -> Iterator[Finding]:
    """The patch gives MoE blocks no stream beside a dispatcher that has streams of its own."""
    backend = facts.arguments.a2a_backend
    if ALT_STREAM in in_effect(facts) and patched(facts, ALT_STREAM) and backend != "none":
        yield warning(
            "all-to-all", f"with --moe-a2a-backend {backend}, {ALT_STREAM.name} does not reach Qwen3.5's MoE blocks",
            "Serve with --moe-a2a-backend none, or count on the other overlaps only.",
        )  # fmt: skip


def graphs(facts: Facts) -> Iterator[Finding]:
    """Every fork but that of `forward_deepep` asks `get_is_capture_mode()`."""
    on = in_effect(facts)
    idle = tuple(v for v in on if v is ALT_STREAM or facts.arguments.a2a_backend == "none")
    if idle and facts.arguments.disables_graphs:
        yield warning(
            "graphs", f"{names(idle)} takes effect only inside captured graphs, and --disable-cuda-graph is given",
            f"Drop --disable-cuda-graph, or unset {names(idle)}.",
        )  # fmt: skip


def queues(facts: Facts) -> Iterator[Finding]:
    on = in_effect(facts)
    if not on:
        return
    shortage = queue_shortage(facts.environ)
    if shortage:
        yield warning("queues", shortage, f"Set {QUEUES}={MIN_QUEUES}, or unset it: a launch then sets it.")
    elif facts.environ.get(QUEUES):
        yield ok("queues", f"{QUEUES}={facts.environ[QUEUES]}")
    else:
        yield ok("queues", f"`amd-sglang launch` sets {QUEUES}={MIN_QUEUES}")


def serialization(facts: Facts) -> Iterator[Finding]:
    """Debugging variables of HIP that wait after every launch."""
    for name in ("AMD_SERIALIZE_KERNEL", "HIP_LAUNCH_BLOCKING", "CUDA_LAUNCH_BLOCKING"):
        value = facts.environ.get(name, "0")
        if value not in ("", "0") and in_effect(facts):
            yield warning("serialization", f"{name}={value} lets nothing overlap", f"Unset {name}.")


def config_file(facts: Facts) -> Iterator[Finding]:
    if facts.arguments.config_file and in_effect(facts):
        yield warning(
            "config-file", f"{facts.arguments.config_file} was not read: arguments in it are unknown to these checks",
            "Pass its MoE and graph arguments to doctor on the command line.",
        )  # fmt: skip


CHECKS = (
    values,
    without_parent,
    without_effect,
    gdn_projection,
    fused_qk_norm,
    shared_expert_fusion,
    all_to_all,
    graphs,
    queues,
    serialization,
    config_file,
)
