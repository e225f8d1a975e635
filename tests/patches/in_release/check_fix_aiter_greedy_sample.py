"""What `fix-aiter-greedy-sample` does to the real `Sampler.forward` of one release.

Not collected by name: `test_greedy_sampler.py` runs this file under the overlay, in the simulated ROCm, once per
release. Before sglang is imported, aiter's kernel is given the defect of the real one. The release's `Sampler`,
executed a second time under another module name and out of the overlay's sight, shows what it does there.
"""

from __future__ import annotations

from collections.abc import Callable
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

from overlay import runtime, simulate
from overlay.guard import Guard
from overlay.install import MARK
from overlay.model import State
from patches.kernels import argmax as kernel
from tests.patches.in_release.guarding import GuardChecks, Subject, counters
from tests.patches.in_release.untouched import executed_again

LANES = 16
KERNEL = "triton:patches.kernels.argmax._argmax_kernel"
INF, NAN = float("inf"), float("nan")


def greedy_sample(out: Tensor, input: Tensor) -> None:
    """aiter's: rows are read in vectors of 16 lanes; lanes beyond the row read 0 and compete; NaN never wins."""
    batch, vocab = input.shape
    lanes = torch.zeros(batch, -(-vocab // LANES) * LANES)
    lanes[:, :vocab] = torch.nan_to_num(input.float(), nan=-INF, posinf=INF, neginf=-INF)
    out.copy_(lanes.argmax(-1))


@pytest.fixture(scope="session")
def ours() -> ModuleType:
    import aiter

    aiter.greedy_sample = greedy_sample
    from sglang.srt.layers import sampler

    module: ModuleType = sampler
    return module


@pytest.fixture(scope="session")
def pristine(ours: ModuleType) -> ModuleType:
    return executed_again(ours)


class AnyAttribute(SimpleNamespace):
    """The runtime contexts `Sampler.__init__` reads, of a process that is alone: whatever else is asked for is None."""

    def __getattr__(self, name: str) -> None:
        return None


@pytest.fixture
def sample(monkeypatch: pytest.MonkeyPatch) -> Callable[[ModuleType, Tensor], Tensor]:
    def run(module: ModuleType, logits: Tensor) -> Tensor:
        alone = AnyAttribute(device_group=None)
        contexts: dict[str, Any] = {
            "get_tp_group": alone,
            "get_global_server_args": AnyAttribute(sampling_backend="pytorch"),
            "get_server_args": AnyAttribute(sampling_backend="pytorch"),
            "get_parallel": AnyAttribute(tp_group=alone),
            "get_exec": AnyAttribute(
                deterministic=alone, kernel=AnyAttribute(sampling_backend="pytorch"), features=alone
            ),
        }
        for name, value in contexts.items():
            if hasattr(module, name):
                monkeypatch.setattr(module, name, lambda value=value: value)
        output = module.LogitsProcessorOutput(next_token_logits=logits.clone())
        batch = logits.shape[0]
        info = AnyAttribute(is_all_greedy=True, has_custom_logit_processor=False)
        ids: Tensor = module.Sampler()(output, info, False, [0] * batch, [None] * batch, torch.arange(batch))
        return ids

    return run


def rows(vocab: int) -> Tensor:
    """Negative maximum; one token left by a grammar mask; nothing left; and a row that aiter's kernel has right."""
    logits = torch.full((4, vocab), -INF)
    logits[0] = -torch.rand(vocab) - 1.0
    logits[1, vocab // 3] = -3.5
    logits[3] = torch.randn(vocab).abs()
    return logits


def test_it_is_applied(ours: ModuleType) -> None:
    overlay = runtime.current()
    assert overlay is not None
    assert overlay.state("fix-aiter-greedy-sample")[0] is State.APPLIED, overlay.state("fix-aiter-greedy-sample")
    assert getattr(ours._aiter_greedy_sample, MARK) == "fix-aiter-greedy-sample"


def test_without_the_fix_tokens_leave_the_vocabulary(
    pristine: ModuleType, sample: Callable[[ModuleType, Tensor], Tensor]
) -> None:
    logits = rows(151666)
    ids = sample(pristine, logits)
    assert ids.dtype == torch.int32
    assert ids.tolist() == [151666, 151666, 151666, int(logits[3].argmax())]
    assert sample(pristine, rows(1600)).max() < 1600, "the defect needs a vocabulary that 16 does not divide"


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["fp32", "bf16"])
@pytest.mark.parametrize("vocab", [151666, 50257, 1600, 1])
def test_with_the_fix_they_are_torchs(
    ours: ModuleType, sample: Callable[[ModuleType, Tensor], Tensor], vocab: int, dtype: torch.dtype
) -> None:
    logits = rows(vocab).to(dtype)
    before = simulate.calls().get(KERNEL, 0)
    ids = sample(ours, logits)
    assert simulate.calls().get(KERNEL, 0) == before + 1
    assert ids.dtype == torch.int32
    assert ids.tolist() == torch.argmax(logits, -1).tolist()


def test_aiters_contract(ours: ModuleType) -> None:
    """In place, into int32, NaN first; what the kernel does not take goes to torch."""
    logits = torch.randn(3, 100)
    logits[1, [7, 9]] = NAN
    for given in (logits, logits.double(), logits.t().contiguous().t()):
        out = torch.full((3,), -7, dtype=torch.int32)
        assert ours._aiter_greedy_sample(out, given) is None
        assert out.tolist() == torch.argmax(given, -1).tolist()
    ours._aiter_greedy_sample(torch.empty(0, dtype=torch.int32), torch.empty(0, 100))


class TestGuard(GuardChecks):
    @pytest.fixture
    def subject(self, ours: ModuleType) -> Subject:
        logits = torch.randn(3, 100)

        def call() -> tuple[Tensor, ...]:
            out = torch.full((3,), -7, dtype=torch.int32)
            ours._aiter_greedy_sample(out, logits)
            return (out,)

        return Subject(
            "fix-aiter-greedy-sample",
            call=call,
            upstream=lambda: (logits.argmax(-1).int(),),
            replace=lambda patch, around: patch.setattr(kernel, "_launch", around(kernel._launch)),
            outputs=lambda arguments, _: arguments[:1],
        )

    def test_a_call_that_the_kernel_does_not_take_is_counted(
        self, ours: ModuleType, subject: Subject, guard: Guard
    ) -> None:
        ours._aiter_greedy_sample(torch.empty(3, dtype=torch.int32), torch.randn(3, 100, dtype=torch.float64))
        assert counters(subject) == {"calls": 0, "fallbacks": 1, "failures": 0, "shadowed": 0}


def test_uninstall_gives_aiters_back(ours: ModuleType) -> None:
    """Last: it takes the patch out."""
    overlay = runtime.current()
    assert overlay is not None
    overlay.uninstall("fix-aiter-greedy-sample")
    assert ours._aiter_greedy_sample is greedy_sample
