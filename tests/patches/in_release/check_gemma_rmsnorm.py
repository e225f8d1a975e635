"""What `gemma-rmsnorm` does to the real `GemmaRMSNorm` of one release.

Not collected by name: `test_gemma_rmsnorm.py` runs this file under the overlay, in the simulated ROCm, once per
release. The oracle is the release's own `forward_native`.
"""

from __future__ import annotations

import pickle
import sys
from collections.abc import Iterator
from typing import Any

import pytest
import torch
import torch._dynamo.testing

from overlay import guard as guards
from overlay import runtime, simulate
from overlay.guard import Guard
from overlay.install import held
from overlay.model import State
from overlay.preimage import Proof
from patches.kernels import gemma_rmsnorm as kernel
from tests.patches.in_release.guarding import GuardChecks, Subject, counters, renew
from tests.patches.in_release.vllm_placeholder import provide_vllm

KERNEL = "triton:patches.kernels.gemma_rmsnorm._gemma_rmsnorm_kernel"
SIZES = [64, 128, 256, 2048, 5120]


@pytest.fixture(scope="module")
def norm_class() -> type[Any]:
    from sglang.srt.layers.layernorm import GemmaRMSNorm

    overlay = runtime.current()
    assert overlay is not None
    assert overlay.state("gemma-rmsnorm")[0] is State.APPLIED, overlay.state("gemma-rmsnorm")
    found: type[Any] = GemmaRMSNorm
    return found


@pytest.fixture(autouse=True)
def seeded() -> Iterator[None]:
    torch.manual_seed(0)
    yield


def layer(norm_class: type[Any], n: int, dtype: torch.dtype) -> Any:
    made = norm_class(n, eps=1e-6).to(dtype)
    made.weight.data.normal_(std=0.5)
    return made


def native(norm: Any, x: torch.Tensor, residual: torch.Tensor | None, post: torch.Tensor | None) -> Any:
    """The release's own unfused path. The third argument is added here: it is missing or ignored before 0.5.9."""
    if residual is not None and post is not None:
        residual = residual + post
    return norm.forward_native(x, residual)


def launches() -> int:
    return simulate.calls().get(KERNEL, 0)


def ulps(a: torch.Tensor, b: torch.Tensor) -> int:
    """The largest distance between two 16-bit float tensors, in units in the last place."""
    if a.numel() == 0:
        return 0
    bits = [t.contiguous().view(torch.int16).int() for t in (a, b)]
    ordered = [torch.where(t < 0, -(t & 0x7FFF), t) for t in bits]
    return int((ordered[0] - ordered[1]).abs().max())


def compare(
    norm: Any,
    x: torch.Tensor,
    residual: torch.Tensor | None = None,
    post: torch.Tensor | None = None,
    in_place: bool = False,
) -> None:
    """`in_place`: the outputs must be the inputs, as on CUDA; else no input may be written to or returned."""
    inputs = [t for t in (x, residual, post) if t is not None]
    before = [t.clone() for t in inputs]
    extra = () if post is None else (post,)
    expected = native(norm, x, residual, post)
    got = norm(x, residual, *extra) if residual is not None else norm(x)
    if in_place:
        assert got[0] is x and got[1] is residual, "fresh outputs where the inputs' storage was free"
    else:
        assert all(torch.equal(t, kept) for t, kept in zip(inputs, before, strict=True)), "an input was written to"
        outputs = (got,) if residual is None else got
        mine = {t.untyped_storage().data_ptr() for t in inputs if t.numel()}
        assert not mine & {t.untyped_storage().data_ptr() for t in outputs if t.numel()}, "an output aliases an input"
    if residual is not None:
        assert torch.equal(got[1], expected[1]) and got[1].dtype == expected[1].dtype
        got, expected = got[0], expected[0]
    assert got.shape == expected.shape and got.dtype == expected.dtype
    assert ulps(got, expected) <= 1


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=["bf16", "fp16"])
@pytest.mark.parametrize("weight", ["same", "fp32"])
@pytest.mark.parametrize("extra", ["none", "residual", "residual+post"])
@pytest.mark.parametrize("m", [0, 1, 3])
@pytest.mark.parametrize("n", SIZES)
def test_equals_native(norm_class: type[Any], n: int, m: int, extra: str, weight: str, dtype: torch.dtype) -> None:
    norm = layer(norm_class, n, torch.float32 if weight == "fp32" else dtype)
    x, residual, post = torch.randn(3, m, n).to(dtype).unbind(0)
    before = launches()
    addends = None if extra == "none" else residual, post if extra == "residual+post" else None
    compare(norm, x, *addends, in_place=extra == "residual")
    assert launches() == before + (m > 0)


@pytest.mark.parametrize("case", ["apart", "fp32 residual", "overlap", "x is the residual", "expanded", "trained"])
def test_in_place_only_where_the_cuda_op_is(norm_class: type[Any], case: str) -> None:
    """Neighbours in one storage are apart; what sgl_kernel's op does not take stays as it is."""
    n = 128
    pool = torch.randn(7, n).bfloat16()
    x, residual = {
        "apart": (pool[:3], pool[3:6]),
        "fp32 residual": (pool[:3], torch.randn(3, n)),
        "overlap": (pool[:3], pool[2:5]),
        "x is the residual": (pool[:3], pool[:3]),
        "expanded": (pool[:3], pool[3].expand(3, n)),
        "trained": (pool[:3].clone().requires_grad_(), pool[3:6]),
    }[case]
    with torch.no_grad():
        compare(layer(norm_class, n, torch.bfloat16), x, residual, in_place=case == "apart")


def test_three_dimensions(norm_class: type[Any]) -> None:
    x, residual = torch.randn(2, 2, 5, 128).bfloat16().unbind(0)
    compare(layer(norm_class, 128, torch.bfloat16), x, residual)


def test_rows_of_a_wider_matrix(norm_class: type[Any]) -> None:
    """A slice of a qkv projection: adjacent columns, distant rows."""
    qkv = torch.randn(3, 512).bfloat16()
    compare(layer(norm_class, 128, torch.bfloat16), qkv[:, 128:256])


def test_columns_apart(norm_class: type[Any]) -> None:
    transposed = torch.randn(128, 3).bfloat16().t()
    compare(layer(norm_class, 128, torch.bfloat16), transposed, torch.randn(3, 128).bfloat16())


def test_weight_update_is_seen_without_rebinding(norm_class: type[Any]) -> None:
    norm = layer(norm_class, 64, torch.bfloat16)
    x = torch.randn(2, 64).bfloat16()
    norm(x)
    norm.weight.data.fill_(3.0)
    compare(norm, x)


@pytest.mark.parametrize("kind", ["fp32 activations", "row too long"])
def test_what_the_kernel_does_not_take_goes_to_native(norm_class: type[Any], kind: str) -> None:
    n, dtype = (64, torch.float32) if kind == "fp32 activations" else (16640, torch.bfloat16)
    norm = layer(norm_class, n, dtype)
    x, residual, post = torch.randn(3, 2, n).to(dtype).unbind(0)
    before = launches()
    got = norm(x, residual, post)
    expected = native(norm, x, residual, post)
    assert launches() == before
    assert all(torch.equal(a, b) for a, b in zip(got, expected, strict=True))


def test_piecewise_compile_mode_takes_native_and_comes_back(norm_class: type[Any]) -> None:
    norm = layer(norm_class, 64, torch.bfloat16)
    x = torch.randn(2, 64).bfloat16()
    norm.enter_torch_compile(num_tokens=2)
    before = launches()
    norm(x)
    assert launches() == before
    norm.leave_torch_compile()
    norm(x)
    assert launches() == before + 1


def test_torch_compile_fullgraph_equals_eager(norm_class: type[Any], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("TORCHDYNAMO_DISABLE", raising=False)  # the simulation's
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)  # else dynamo saves the simulated GPU's random state
    norm = layer(norm_class, 128, torch.bfloat16)
    x, residual = torch.randn(2, 3, 128).bfloat16().unbind(0)
    kept = x.clone(), residual.clone()
    counter = torch._dynamo.testing.CompileCounterWithBackend("aot_eager")
    with torch._dynamo.config.patch(disable=False):
        compiled: Any = torch.compile(norm.forward_hip, fullgraph=True, backend=counter)
        before = launches()
        got = compiled(x, residual)
        assert launches() == before + 1, "dynamo traced something else than the kernel"
    assert counter.frame_count == 1, "nothing was compiled"
    assert torch.equal(x, kept[0]) and torch.equal(residual, kept[1]), "compiled code is functional"
    expected = norm.forward_hip(x, residual)
    assert all(torch.equal(a, b) for a, b in zip(got, expected, strict=True))


def test_the_targets_of_sglangs_processes_can_be_pickled(norm_class: type[Any]) -> None:
    """sglang spawns its children: a wrapped target could not be sent to them."""
    provide_vllm()
    from sglang.srt.managers.data_parallel_controller import run_data_parallel_controller_process
    from sglang.srt.managers.detokenizer_manager import run_detokenizer_process
    from sglang.srt.managers.scheduler import run_scheduler_process

    for target in (run_scheduler_process, run_detokenizer_process, run_data_parallel_controller_process):
        assert pickle.loads(pickle.dumps(target)) is target


@pytest.mark.parametrize("with_residual", [False, True])
class TestGuard(GuardChecks):
    @pytest.fixture
    def subject(self, norm_class: type[Any], with_residual: bool) -> Subject:
        norm = layer(norm_class, 64, torch.bfloat16)
        x, residual = torch.randn(2, 3, 64).bfloat16().unbind(0)

        def call(forward: Any) -> tuple[torch.Tensor, ...]:
            return forward(x.clone(), residual.clone()) if with_residual else (forward(x.clone()),)

        return Subject(
            "gemma-rmsnorm",
            call=lambda: call(norm),
            upstream=lambda: call(norm.forward_native),
            replace=lambda patch, around: patch.setattr(kernel, "_launch", around(kernel._launch)),
            outputs=lambda arguments, _: arguments[: 1 + with_residual],
        )

    def test_a_call_that_the_kernel_does_not_take_is_counted(
        self, norm_class: type[Any], subject: Subject, guard: Guard
    ) -> None:
        layer(norm_class, 64, torch.float32)(torch.randn(2, 64))
        assert counters(subject) == {"calls": 0, "fallbacks": 1, "failures": 0, "shadowed": 0}


def test_a_compiled_method_counts_nothing_and_reads_the_flag(
    norm_class: type[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("TORCHDYNAMO_DISABLE", raising=False)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    guard = guards.guard("gemma-rmsnorm")
    guard.shadow_runs = 1
    counted = list(guard.counts)
    norm = layer(norm_class, 64, torch.bfloat16)
    torch._dynamo.reset()
    graphs = torch._dynamo.testing.CompileCounterWithBackend("aot_eager")
    forward: Any = torch.compile(norm.forward_hip, fullgraph=True, backend=graphs)
    x, before = torch.randn(2, 64).bfloat16(), launches()
    for given in (x, x.float()):
        forward(given)
    assert graphs.frame_count == 2 and launches() == before + 1
    assert list(guard.counts) == counted and guard.shadow_runs == 1
    guard.on = False
    assert torch.equal(forward(x), norm.forward_native(x)) and launches() == before + 1
    renew(guard)


def test_uninstall_gives_the_class_back(norm_class: type[Any]) -> None:
    """Last: it takes the patch out."""
    overlay = runtime.current()
    assert overlay is not None
    patched = dict(vars(norm_class))
    built_before = layer(norm_class, 64, torch.bfloat16)
    overlay.uninstall("gemma-rmsnorm")
    before = launches()
    built_before(torch.randn(2, 64).bfloat16())
    assert launches() == before, "its constructor has bound a method that still takes the kernel"
    restored = dict(vars(norm_class))
    decision = next(d for d in overlay.plan.decisions if d.patch.id == "gemma-rmsnorm")
    names = {target.slot.qualname.rpartition(".")[2] for target in decision.targets}
    assert {name for name in patched if patched[name] is not restored.get(name)} == names
    proof = Proof(sys.modules[norm_class.__module__])
    assert [proof.objection(r.slot, held(r.slot), r.observed) for r in decision.slots] == [None] * len(decision.slots)
