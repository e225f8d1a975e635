"""Which of the streams that were asked for a server would really run. Pure."""

from __future__ import annotations

from collections.abc import Mapping

from overlay.doctor.facts import Facts, Features
from overlay.model import Decision, State
from overlay.stream_environment import ALT_STREAM, MULTI_STREAM, StreamVariable, streams_on

#: The patch that teaches a release to obey the variable.
PATCH_OF: Mapping[str, str] = {ALT_STREAM.name: "qwen3_5-alt-stream", MULTI_STREAM.name: "deepseek-dual-stream"}
#: Whose stream it is, for people.
MODELS_OF: Mapping[str, str] = {ALT_STREAM.name: "Qwen3.5", MULTI_STREAM.name: "DeepSeek"}


def decision_of(facts: Facts, patch_id: str) -> Decision | None:
    decisions = facts.plan.decisions if facts.plan is not None else ()
    return next((decision for decision in decisions if decision.patch.id == patch_id), None)


def features(facts: Facts) -> Features:
    """Those of the sglang that was found; none without one."""
    return facts.sglang.features if facts.sglang is not None else Features()


def obeyed_by_sglang(facts: Facts, variable: StreamVariable) -> bool:
    """Whether this release reads the variable without our help."""
    has = features(facts)
    return has.alt_stream if variable is ALT_STREAM else has.multi_stream


def in_effect(facts: Facts) -> tuple[StreamVariable, ...]:
    """The variables that are on, on ROCm, and obeyed: by the release or by a planned patch."""
    if facts.platform.kind != "rocm":
        return ()
    return tuple(v for v in streams_on(facts.environ) if obeyed_by_sglang(facts, v) or patched(facts, v))


def patched(facts: Facts, variable: StreamVariable) -> bool:
    """Whether one of our patches makes this release obey the variable."""
    decision = decision_of(facts, PATCH_OF[variable.name])
    return decision is not None and decision.state is State.PLANNED


def names(variables: tuple[StreamVariable, ...]) -> str:
    return " and ".join(variable.name for variable in variables)
