"""The development builds that have a ROCm DeepSeek-V4 backend and not yet #26383.

#24933 (2026-05-18) brought `deepseek_v4_backend_hip_radix`, #26383 (2026-05-27) what its patches here back-port, and
0.5.13 was the first release with either. AMD's images of those days call themselves `0.5.12.dev<date>+g<sha>`, which
sorts before 0.5.12, or `0.0.0.dev0`: the version says nothing, so the source decides. The range below ends with the
first release that has the changes.
"""

from __future__ import annotations

from overlay.model import Facts, Image, Need, Slot, State, Variant, always

VERSIONS = ">=0.5.12,<0.5.14"
UPSTREAM = "#26383"
REMOVE_WHEN = "no image with a build of 2026-05-18 to 2026-05-27 is in use any more"

RADIX = "sglang.srt.layers.attention.deepseek_v4_backend_hip_radix"
MODEL = "sglang.srt.models.deepseek_v4"

_BACKEND = Slot("sglang.srt.layers.attention.attention_registry", "create_dsv4_backend")
#: The registry of a build hands out hip_radix on ROCm.
HIP_RADIX = Image.of(_BACKEND, "332e08bf311ddafa")


_no_backend = always(
    Need(
        False,
        "this release has no ROCm DeepSeek-V4 backend. It knows one attention backend, which imports CUDA's FlashMLA, "
        "and TileLang, DeepGEMM and CUDA-only JIT kernels; hip_radix (#24933) came with the builds of 2026-05-18",
        State.UNSUPPORTED_VERSION,
    )
)


#: 0.5.12, 0.5.12.post1 and the builds before 2026-05-18.
NO_BACKEND = Variant(name="no-rocm-backend", images=(Image.of(_BACKEND, "648cd44f30a9d69a"),), need=_no_backend)


def contained(what: str, *images: Image) -> Variant:
    """The sources that have #26383's change; `what` they do, as a sentence without its subject."""
    return Variant("contained", images, always(Need(False, f"has it: this source {what} (#26383)")))


def switched_off(facts: Facts, name: str) -> bool:
    """Whether an `EnvBool` of sglang that is on by default was switched off."""
    return facts.environ.get(name, "").lower() in ("false", "0", "no", "n")
