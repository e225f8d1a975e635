"""The configurations that the matrix decides for: those in which some patch decides differently."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from overlay.platform import Platform
from overlay.simulate.settings import AITER_HEAD


@dataclass(frozen=True)
class Scenario:
    """A machine and the environment of a server on it."""

    name: str
    title: str
    platform: Platform
    environ: Mapping[str, str] = field(default_factory=dict)


_AITER = {"SGLANG_USE_AITER": "1"}
_STREAMS = {
    **_AITER,
    "SGLANG_ALT_STREAM": "1",
    "SGLANG_GDN_QKVZ_BA_ALT_STREAM": "1",
    "SGLANG_QK_NORM_ALT_STREAM": "1",
    "SGLANG_ROCM_USE_MULTI_STREAM": "1",
}
_DEEPSEEK_V4 = {
    **_AITER,
    "SGLANG_HACK_FLASHMLA_BACKEND": "triton",
    "SGLANG_OPT_FP8_WO_A_FUSED_INVROPE": "1",
}

SCENARIOS = (
    Scenario("gfx942", "MI300X, sglang's defaults", Platform("rocm", "gfx942", AITER_HEAD)),
    Scenario(
        "gfx942-vllm", "MI300X, sglang's defaults, with vLLM beside it", Platform("rocm", "gfx942", None, vllm="0.9.2")
    ),
    Scenario("gfx942-aiter", "MI300X, SGLANG_USE_AITER=1", Platform("rocm", "gfx942", AITER_HEAD), _AITER),
    Scenario(
        "gfx942-streams",
        "MI300X, SGLANG_USE_AITER=1 and every alternative stream on",
        Platform("rocm", "gfx942", AITER_HEAD),
        _STREAMS,
    ),
    Scenario("gfx950-aiter", "MI355X, SGLANG_USE_AITER=1", Platform("rocm", "gfx950", AITER_HEAD), _AITER),
    Scenario(
        "gfx950-deepseek-v4",
        "MI355X, SGLANG_USE_AITER=1 and the Triton paths of DeepSeek-V4 on",
        Platform("rocm", "gfx950", AITER_HEAD),
        _DEEPSEEK_V4,
    ),
)
