"""One case on one device: values, replay of a captured graph, and time against what the kernel replaces."""

from __future__ import annotations

import textwrap
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from overlay.bound import Measured
from overlay.verify.case import Case, Draw, Tensors
from overlay.verify.outcome import Outcome
from overlay.verify.poison import poison, poisoned, untouched

_NO_GRAPHS, _NO_CLOCK = "not captured: no graphs", "not timed: interpreter"


class WrongAnswerError(Exception):
    """A kernel whose output is not within its bound."""


def measure(case: Case, device: torch.device) -> Outcome:
    """Everything about one case; on the CPU, where Triton interprets, no graph and no time."""
    try:
        if not case.takes(*case.inputs(Draw(device, seed=0))):
            return Outcome(case.label, case.kernel, taken=False)
        share = _call(case, device).share
        if device.type == "cpu":
            return Outcome(case.label, case.kernel, share=share, graph=_NO_GRAPHS, timing=_NO_CLOCK)
        share = max(share, _replay(case, device).share)
    except Exception as error:  # noqa: BLE001 - a kernel may fail in any way, and each of them is an outcome
        return Outcome(case.label, case.kernel, failure=_said(error))
    try:
        times = _time(case, device, case.fused), _time(case, device, case.replaced)
    except Exception as error:  # noqa: BLE001 - what was replaced may not be capturable: the kernel is right all the same
        return Outcome(case.label, case.kernel, share=share, graph="replayed", timing=f"not timed: {_said(error)}")
    return Outcome(
        case.label, case.kernel, share=share, graph="replayed", microseconds=times[0], replaced_microseconds=times[1]
    )


def _call(case: Case, device: torch.device) -> Measured:
    """One eager call on poisoned memory."""
    given = case.inputs(Draw(device, seed=0))
    before = [None if tensor is None else tensor.clone() for tensor in given]
    with poisoned(device):
        made = tuple(case.fused(*given))
    return _judged(case, before, made, "")


def _replay(case: Case, device: torch.device) -> Measured:
    """A captured call, replayed on other inputs in the same memory, with its outputs poisoned before."""
    buffers = case.inputs(Draw(device, seed=1))
    stream = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]
    stream.wait_stream(torch.cuda.current_stream(device))
    with torch.cuda.stream(stream):
        case.fused(*buffers)  # compiles: no module may be loaded during a capture
    torch.cuda.current_stream(device).wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        made = tuple(case.fused(*buffers))
    for output in made:
        poison(output)
    fresh = case.inputs(Draw(device, seed=2))
    for buffer, values in zip(buffers, fresh, strict=True):
        if buffer is not None and values is not None:
            buffer.copy_(values)
    graph.replay()
    torch.cuda.synchronize(device)
    return _judged(case, fresh, made, "replayed on other inputs, ")


def _time(case: Case, device: torch.device, call: Callable[..., object]) -> float:
    """The median over replays of a graph of many calls, in microseconds: what the host does is not in it."""
    from triton.testing import do_bench_cudagraph

    given = case.inputs(Draw(device, seed=3))
    torch.cuda.synchronize(device)  # the first call is made on a stream of its own
    milliseconds: float = do_bench_cudagraph(lambda: call(*given), return_mode="median")
    return milliseconds * 1e3


def _judged(case: Case, before: Tensors, made: Sequence[Tensor], how: str) -> Measured:
    """Raises WrongAnswerError for an output beyond its bound."""
    worst = case.judge(before, made)
    if not worst.within:
        left = sum(_unwritten(got, one.want) for got, one in zip(made, case.expected(before, made), strict=True))
        raise WrongAnswerError(f"{how}{worst}" + (f"; {left} elements are NaN or were never written" if left else ""))
    return worst


def _unwritten(got: Tensor, want: Tensor) -> int:
    return int((untouched(got) & ~untouched(want)).sum()) if got.shape == want.shape else 0


def _said(error: Exception) -> str:
    words = str(error) if isinstance(error, WrongAnswerError) else f"{type(error).__name__}: {error}"
    return textwrap.shorten(words, 240, placeholder=" ...")
