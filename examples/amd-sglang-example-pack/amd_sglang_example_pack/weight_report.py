"""One line in the log of every rank: what the weights it has loaded weigh, by data type.

sglang logs the data type it was asked for and the memory that is left. Of a quantised checkpoint neither tells how much
stayed in 16 bits, which is what decides whether a GEMM runs on the quantised kernels.
"""

from __future__ import annotations

import logging
import os
from collections import defaultdict
from collections.abc import Callable
from typing import Any

from overlay.gates import Gate, OneOf
from overlay.model import Image, Method, Need, Patch, Slot, Target, Variant, always

_LOADER = Slot("sglang.srt.model_loader.loader", "DefaultModelLoader.load_model")

DETAIL = Gate(
    "AMD_SGLANG_EXAMPLE_WEIGHTS",
    "`total` weighs the model as a whole, `parts` each child of it as well",
    "total",
    OneOf(("total", "parts")),
)


def make_load_model(_original: object) -> Callable[..., Any]:
    """Around the loader of every checkpoint on disk, which a rank calls once for its model and once for a draft's."""
    detail = DETAIL.read(os.environ)

    def load_model(
        wrapped: Callable[..., Any], _instance: object, args: tuple[object, ...], kwargs: dict[str, object]
    ) -> Any:
        model = wrapped(*args, **kwargs)
        log = logging.getLogger(_LOADER.module)
        log.info("weights of %s: %s", type(model).__name__, weigh(model))
        if detail == "parts":
            for name, part in model.named_children():
                log.info("weights of %s.%s: %s", type(model).__name__, name, weigh(part))
        return model

    return load_model


def weigh(module: Any) -> str:
    """The bytes and the number of the parameters of a `torch.nn.Module` for each data type, heaviest first. What is
    shared counts once."""
    sizes: defaultdict[str, int] = defaultdict(int)
    counts: defaultdict[str, int] = defaultdict(int)
    for parameter in module.parameters():
        kind = str(parameter.dtype).removeprefix("torch.")
        sizes[kind] += parameter.numel() * parameter.element_size()
        counts[kind] += 1
    ordered = sorted(sizes, key=lambda kind: -sizes[kind])
    return ", ".join(f"{kind} {sizes[kind] / 1e6:.2f} MB in {counts[kind]}" for kind in ordered) or "none"


#: `amd-sglang patches fingerprint sglang.srt.model_loader.loader:DefaultModelLoader.load_model --sglang WHEEL...`
_THROUGH_0_5_8 = "708874a5fd7e3acc"
_SINCE_0_5_9 = "3c3b30c00e59227b"

PATCH = Patch(
    id="example-weight-report",
    title="the weights of every model, by data type, in the log",
    why="Nothing in sglang's log tells how much of a quantised checkpoint was left in 16 bits.",
    upstream=(),
    contained_since="no release",
    versions=">=0.5.6.post2,<0.5.24",
    gates=(DETAIL,),
    variants=(
        Variant(
            name="loader",
            images=(Image.of(_LOADER, _THROUGH_0_5_8, _SINCE_0_5_9),),
            need=always(Need(True, "no release says what its weights weigh")),
            # A cold seam, called once: wrapped, so that sglang's own loader runs inside.
            targets=(Target(_LOADER, Method.WRAP, make_load_model),),
        ),
    ),
    verified_by="the loader of real releases with a model of known weights, in the simulated ROCm",
    remove_when="sglang logs it",
)
