"""Giving an MoE block a second stream: the one way it is done here, and the rule that makes it safe.

A block with an alternate stream runs its shared and its routed experts at once, both on the same `hidden_states`.
sglang's Triton experts write their result over `hidden_states` unless told otherwise (`MoeRunnerConfig.inplace`, true
by default: moe_runner/base.py:46, 0.5.9), while the other stream may still be reading it. aiter's experts return a new
tensor, but the unquantised ones fall back to Triton where aiter has no kernel for the shape (unquant.py:391,
0.5.12.post1). So: no stream without experts that run out of place. Imports neither torch nor sglang.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from overlay.stream_environment import ALT_STREAM, MULTI_STREAM


class UnknownExpertsError(RuntimeError):
    """The experts of a block are not built as in any release that was read, so nothing about them can be promised."""

    def __init__(self, block: object, problem: str) -> None:
        super().__init__(
            f"{type(block).__name__} (layer {getattr(block, 'layer_id', '?')}) cannot run two streams: {problem}. "
            f"Serve without {ALT_STREAM.name} and {MULTI_STREAM.name}, which ask for them."
        )


def hand_over(block: Any, stream: Any) -> None:
    """Give an MoE block a stream of its own, after its experts run out of place.

    `block` is a `Qwen2MoeSparseMoeBlock` or a `DeepseekV2MoE` of any release, `stream` a `torch.cuda.Stream`. Raises
    UnknownExpertsError, with the block as it was before except for where its experts write.
    """
    run_out_of_place(block)
    block.alt_stream = stream


def run_out_of_place(block: Any) -> None:
    """Make the routed experts of an MoE block write to a tensor of their own. Idempotent.

    To be called once the block is built and before it is captured in a graph. Raises UnknownExpertsError.
    """
    for config in _configs(block):
        config.inplace = False
    if not runs_out_of_place(block):
        raise UnknownExpertsError(block, "its experts still write over their input after being told not to")


def runs_out_of_place(block: Any) -> bool:
    """Whether the routed experts of an MoE block leave their input alone. Raises UnknownExpertsError."""
    return all(config.inplace is False for config in _configs(block))


def _configs(block: Any) -> Iterator[Any]:
    """The configuration of a block's experts, then those of the runners that were made from it.

    A runner holds the same object, except in mxfp4.py:756 (0.5.11) and quark_w4a8_mxfp4_moe.py:344 (0.5.15), which
    make it of a `dataclasses.replace()`d copy.
    """
    experts = getattr(block, "experts", None)
    config = getattr(experts, "moe_runner_config", None)
    if not isinstance(getattr(config, "inplace", None), bool):
        raise UnknownExpertsError(block, f"{type(experts).__name__} has no moe_runner_config.inplace")
    yield config
    for holder in (experts, getattr(experts, "quant_method", None), getattr(experts, "scheme", None)):
        copied = getattr(getattr(holder, "runner", None), "config", None)
        if copied is not None and copied is not config:
            if not isinstance(getattr(copied, "inplace", None), bool):
                raise UnknownExpertsError(block, f"the runner of {type(holder).__name__} has no config.inplace")
            yield copied
