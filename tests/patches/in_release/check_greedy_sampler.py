"""What `greedy-sampler` does to the real `Sampler.forward` of one release.

Not collected by name: `test_greedy_sampler.py` runs this file under the overlay, in the simulated ROCm, once per
release. The oracle is the same release's `Sampler`, executed a second time under another module name, out of the
overlay's sight.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

from overlay import runtime, simulate
from overlay.guard import Guard
from overlay.install import held
from overlay.model import State
from overlay.preimage import Proof
from patches.kernels import argmax as kernel
from tests.patches.in_release.guarding import GuardChecks, Subject, counters
from tests.patches.in_release.untouched import executed_again
from tests.patches.in_release.vllm_placeholder import provide_vllm

KERNEL = "triton:patches.kernels.argmax._argmax_kernel"
VOCABS = [151666, 50257, 151936, 1]
INF, NAN = float("inf"), float("nan")

Step = Callable[..., tuple[Tensor, Any]]


@pytest.fixture(scope="session")
def ours() -> ModuleType:
    provide_vllm()
    from sglang.srt.layers import sampler

    overlay = runtime.current()
    assert overlay is not None
    assert overlay.state("greedy-sampler")[0] is State.APPLIED, overlay.state("greedy-sampler")
    module: ModuleType = sampler
    return module


@pytest.fixture(scope="session")
def pristine(ours: ModuleType) -> ModuleType:
    return executed_again(ours)


@pytest.fixture(scope="session")
def group() -> Iterator[Any]:
    store = torch.distributed.HashStore()  # type: ignore[attr-defined]
    torch.distributed.init_process_group("gloo", store=store, rank=0, world_size=1)
    yield torch.distributed.group.WORLD
    torch.distributed.destroy_process_group()


@pytest.fixture(autouse=True)
def reduced(monkeypatch: pytest.MonkeyPatch) -> list[tuple[Any, ...]]:
    """Every all-reduce of token ids; each also changes them, as one with another rank would."""
    seen: list[tuple[Any, ...]] = []

    def all_reduce(tensor: Tensor, op: Any = None, group: Any = None) -> None:
        seen.append((tensor.clone().tolist(), tensor.dtype, op, group))
        tensor.sub_(1)

    monkeypatch.setattr(torch.distributed, "all_reduce", all_reduce)
    return seen


def make_sampler(module: ModuleType, group: Any, monkeypatch: pytest.MonkeyPatch, **server: object) -> Any:
    arguments = SimpleNamespace(
        **{
            "enable_nan_detection": False,
            "rl_on_policy_target": None,
            "enable_deterministic_inference": False,
            "sampling_backend": "pytorch",
            **server,
        }
    )
    monkeypatch.setattr(module, "get_global_server_args", lambda: arguments)
    monkeypatch.setattr(module, "get_tp_group", lambda: SimpleNamespace(device_group=group))
    return module.Sampler()


def batch_info(module: ModuleType, batch: int, vocab: int, **changed: object) -> Any:
    info_class = module.SamplingBatchInfo
    values: dict[str, object] = {
        "temperatures": torch.ones(batch, 1),
        "top_ps": torch.ones(batch),
        "top_ks": torch.ones(batch, dtype=torch.int32),
        "min_ps": torch.zeros(batch),
        "is_all_greedy": True,
        "need_top_p_sampling": False,
        "need_top_k_sampling": False,
        "need_min_p_sampling": False,
        "vocab_size": vocab,
        "device": "cpu",
        **changed,
    }
    known = {field.name for field in dataclasses.fields(info_class)}
    return info_class(**{name: value for name, value in values.items() if name in known})


@pytest.fixture
def step(ours: ModuleType, pristine: ModuleType, group: Any, monkeypatch: pytest.MonkeyPatch) -> Step:
    """One call of the patched and of the pristine sampler with equal inputs: ids, dtype and outputs must agree."""

    def run(
        logits: Tensor,
        *,
        info: dict[str, object] | None = None,
        server: dict[str, object] | None = None,
        logprob: bool = False,
        top: list[int] | None = None,
        token_ids: list[Any] | None = None,
    ) -> tuple[Tensor, Any]:
        outcomes = []
        for module in (pristine, ours):
            output = module.LogitsProcessorOutput(next_token_logits=logits.clone())
            if not logits.is_contiguous():
                output.next_token_logits = torch.empty_strided(logits.shape, logits.stride()).to(logits.dtype)
                output.next_token_logits.copy_(logits)
            sampler = make_sampler(module, group, monkeypatch, **(server or {}))
            batch = logits.shape[0]
            torch.manual_seed(7)
            ids = sampler(
                output,
                batch_info(module, batch, logits.shape[-1], **(info or {})),
                logprob,
                top or [0] * batch,
                token_ids or [None] * batch,
                torch.arange(batch),
            )
            outcomes.append((ids, output))
        (want, want_output), (got, got_output) = outcomes
        assert got.dtype == want.dtype and got.shape == want.shape
        assert torch.equal(got, want), f"{got.tolist()} instead of {want.tolist()}"
        same(vars(got_output), vars(want_output))
        return got, got_output

    return run


def same(a: Any, b: Any) -> None:
    """Deep equality, bit for bit in tensors."""
    assert type(a) is type(b)
    if isinstance(a, Tensor):
        assert a.dtype == b.dtype and torch.equal(torch.nan_to_num(a, nan=12.5), torch.nan_to_num(b, nan=12.5))
    elif isinstance(a, dict | list | tuple):
        assert len(a) == len(b)
        for key in a if isinstance(a, dict) else range(len(a)):
            same(a[key], b[key])
    else:
        assert a == b


def launches() -> int:
    return simulate.calls().get(KERNEL, 0)


def awkward_rows(vocab: int, dtype: torch.dtype) -> Tensor:
    """One row of each kind that a maximum can go wrong on."""
    torch.manual_seed(vocab)
    rows = torch.randn(8, vocab)
    last = vocab - 1
    rows[1] = -rows[1].abs() - 1.0  # all negative
    rows[2] = -INF  # a grammar mask that leaves one negative token
    rows[2, vocab // 3] = -3.5
    rows[3] = -INF  # nothing left
    rows[4, [vocab // 2, last]] = NAN  # the first NaN wins
    rows[5, [vocab // 4, vocab // 2, last]] = 50.0  # ties
    rows[6] = -rows[6].abs()
    rows[6, [vocab // 5, last]] = torch.tensor([-0.0, 0.0])  # zeros tie
    rows[7, last] = INF
    return rows.to(dtype)


@pytest.mark.parametrize(
    ("vocab", "dtype"), [*((vocab, torch.float32) for vocab in VOCABS), (50257, torch.bfloat16), (1, torch.bfloat16)]
)
def test_ids_are_the_originals(step: Step, vocab: int, dtype: torch.dtype) -> None:
    logits = awkward_rows(vocab, dtype)
    before = launches()
    ids, output = step(logits)
    assert launches() == before + 1
    assert ids.dtype == torch.int64
    assert int(ids.max()) < vocab
    same(output.next_token_logits, logits)


def test_rows_apart(step: Step) -> None:
    """Logits that are a slice of a padded vocabulary."""
    before = launches()
    step(torch.randn(3, 1024)[:, :1000])
    assert launches() == before + 1


def test_empty_batch(step: Step) -> None:
    ids, _ = step(torch.empty(0, 1000))
    assert ids.shape == (0,) and ids.dtype == torch.int64


def test_what_the_kernel_does_not_take_goes_to_torch(step: Step) -> None:
    before = launches()
    step(torch.randn(3, 100, dtype=torch.float64))
    step(torch.randn(100, 3).t())
    assert launches() == before


@pytest.mark.parametrize("grammars", [None, [], [object()]], ids=["none", "empty", "one"])
@pytest.mark.parametrize("always", [False, True])
def test_token_sync(
    step: Step,
    reduced: list[tuple[Any, ...]],
    ours: ModuleType,
    pristine: ModuleType,
    group: Any,
    monkeypatch: pytest.MonkeyPatch,
    always: bool,
    grammars: list[object] | None,
) -> None:
    for module in (ours, pristine):
        monkeypatch.setattr(module, "SYNC_TOKEN_IDS_ACROSS_TP", always)
    ids, _ = step(torch.randn(2, 100), info={"grammars": grammars})
    assert len(reduced) == (2 if always or grammars else 0)
    if reduced:
        assert reduced[0] == reduced[1]
        sent, dtype, op, within = reduced[1]
        assert (dtype, op, within) == (torch.int64, torch.distributed.ReduceOp.MIN, group)
        assert ids.tolist() == [token - 1 for token in sent], "what came back from the other ranks was dropped"


class OnlyTokenFive:
    """A custom logit processor that works in place of the user's."""

    def __call__(self, logits: Tensor, parameters: list[Any]) -> Tensor:
        masked = torch.full_like(logits, -INF)
        masked[:, 5] = torch.tensor([parameter["bias"] for parameter in parameters])
        return masked


def test_custom_logit_processor(step: Step) -> None:
    info = {
        "has_custom_logit_processor": True,
        "custom_params": [{"bias": -2.0}, {"bias": 0.0}, {"bias": -7.0}],
        "custom_logit_processor": {1: (OnlyTokenFive(), torch.tensor([True, False, True]))},
    }
    logits = torch.randn(3, 100)
    logits[:, 9] = 20.0
    before = launches()
    ids, _ = step(logits, info=info)
    assert ids.tolist() == [5, 9, 5]
    assert launches() == before + 1


def test_nan_detection(step: Step) -> None:
    logits = torch.randn(2, 100)
    logits[0, 4] = NAN
    logits[0, 6] = 9.0
    assert step(logits)[0][0] == 4
    assert step(logits, server={"enable_nan_detection": True})[0][0] == 6


def test_deterministic_inference(step: Step) -> None:
    server = {"enable_deterministic_inference": True}
    before = launches()
    step(torch.randn(3, 100), server=server, info={"sampling_seed": torch.arange(3)})
    assert launches() == before + 1


def test_log_probabilities_are_the_releases_own(step: Step) -> None:
    before = launches()
    _, output = step(torch.randn(2, 100), logprob=True, top=[3, 0], token_ids=[[1, 2], None])
    assert launches() == before
    assert output.next_token_logprobs.shape == (2,)
    assert output.next_token_top_logprobs_val and output.next_token_token_ids_logprobs_val


def test_batches_that_sample_are_the_releases_own(step: Step) -> None:
    before = launches()
    step(torch.randn(4, 100), info={"is_all_greedy": False})
    assert launches() == before


class TestGuard(GuardChecks):
    @pytest.fixture
    def subject(self, ours: ModuleType, group: Any, monkeypatch: pytest.MonkeyPatch) -> Subject:
        sampler = make_sampler(ours, group, monkeypatch)
        logits = torch.randn(3, 100)

        def call() -> tuple[Tensor, ...]:
            output = ours.LogitsProcessorOutput(next_token_logits=logits.clone())
            return (sampler(output, batch_info(ours, 3, 100), False, [0] * 3, [None] * 3, torch.arange(3)),)

        return Subject(
            "greedy-sampler",
            call=call,
            upstream=lambda: (logits.argmax(-1),),
            replace=lambda patch, around: patch.setattr(kernel, "_launch", around(kernel._launch)),
            outputs=lambda arguments, _: arguments[:1],
        )

    def test_a_call_that_the_kernel_does_not_take_is_counted(self, step: Step, subject: Subject, guard: Guard) -> None:
        step(torch.randn(3, 100, dtype=torch.float64))
        assert counters(subject) == {"calls": 0, "fallbacks": 1, "failures": 0, "shadowed": 0}


def test_uninstall_gives_the_method_back(ours: ModuleType) -> None:
    """Last: it takes the patch out."""
    overlay = runtime.current()
    assert overlay is not None
    overlay.uninstall("greedy-sampler")
    decision = next(d for d in overlay.plan.decisions if d.patch.id == "greedy-sampler")
    proof = Proof(ours)
    assert [proof.objection(r.slot, held(r.slot), r.observed) for r in decision.slots] == [None] * len(decision.slots)
