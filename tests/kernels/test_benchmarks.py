"""Every suite of the benchmarks, at sizes of the interpreter: inputs, definitions and errors, without times."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator

import pytest
import torch
from triton.runtime.autotuner import Autotuner

from benchmarks import argmax, gemma_rmsnorm, mhc, qk_norm_mrope, sparse_mla
from benchmarks.__main__ import SUITES, main
from benchmarks.case import Case, Group, Place
from benchmarks.measure import measure_case
from benchmarks.peers import autotuning
from benchmarks.results import CaseResult, Machine, Timing
from tests.kernels.conftest import ON_GPU

PLACE = Place("cuda" if ON_GPU else "cpu", torch.float16)
MACHINE = Machine("", "", 1, 1, 1, {}, 1e12, 1e15)
PEERS = {"sglang", "aiter", "liger_kernel", "sgl_kernel", "sglang_dev"}


@pytest.fixture(autouse=True)
def no_peer_stays() -> Iterator[None]:
    """What a suite finds installed, such as a whole sglang, is not for the tests after it."""
    before = set(sys.modules)
    yield
    for name in sys.modules.keys() - before:
        if name.partition(".")[0] in PEERS:
            del sys.modules[name]


def measured(case: Case) -> CaseResult:
    """Everything but torch.compile, which takes seconds to say what the operations it compiles say too."""
    calls = []

    def timer(call: Callable[[], object]) -> Timing:
        call()
        calls.append(call)
        return Timing(1.0, 1.0, 1.0)

    result = measure_case(case, timer, lambda _: Timing(1.0, 1.0, 1.0), MACHINE, ["torch.compile"])
    assert len(calls) == len(result.results)
    assert all(result.absent.values())
    return result


def errors(case: Case, name: str) -> dict[str, float]:
    found = measured(case).of(name)
    assert found is not None
    return dict(found.errors)


@pytest.mark.parametrize("of", [gemma_rmsnorm.added, gemma_rmsnorm.alone])
def test_gemma_rmsnorm(of: Callable[[int, int, Place], Case]) -> None:
    result = measured(of(96, 3, PLACE))
    assert [one.implementation for one in result.results[:2]] == ["ours", "unfused"]
    for one in result.results[:2]:
        assert one.errors["largest error"] < 2**-8 and one.errors["not nearest"] < 0.02
        assert one.errors.get("sum differs", 0.0) == 0.0
    assert {*result.absent, *(one.implementation for one in result.results)} >= {
        "SGLang 0.5.23",
        "Liger",
        "aiter Triton",
    }


def test_gemma_rmsnorm_in_place_overwrites_copies_and_not_the_inputs_of_the_others() -> None:
    case = gemma_rmsnorm.added_in_place(96, 3, PLACE)
    assert errors(case, "ours, in place")["sum differs"] == 0.0
    makers = case.makers()
    first, second = makers["ours, in place"](), makers["ours, in place"]()
    assert first.errors == second.errors  # the second starts from what the first started from
    for _ in range(2000):
        first.call()
    made = first.call()
    assert isinstance(made, tuple) and all(torch.isfinite(tensor).all() for tensor in made)


def test_argmax() -> None:
    assert errors(argmax.case(2, 300, PLACE), "ours") == {"wrong ids": 0}
    assert "aiter HIP" in measured(argmax.case(2, 300, PLACE)).absent


def test_qk_norm_mrope() -> None:
    case = qk_norm_mrope.case(4, 2, 3, PLACE)
    ours, unfused = errors(case, "ours"), errors(case, "unfused")
    assert ours["not nearest"] < 0.02 and ours["largest error"] < 2**-8
    assert unfused["largest error"] < 2**-5  # it rounds between the steps of the rotation


def test_mhc() -> None:
    case = mhc.case(128, 2, PLACE)
    for name in ("ours", "unfused"):
        found = errors(case, name)
        assert found["layer input, relative"] < 2**-10 and found["post and comb"] < 1e-5


def test_sparse_mla() -> None:
    case = sparse_mla.case(16, 2, PLACE)
    for name in ("ours", "unfused"):
        found = errors(case, name)
        assert found["output, relative"] < 2**-7 and found["logarithm"] < 2**-7
    assert found.get("replay differs", 0.0) == 0.0


def test_bytes_and_operations_are_those_of_the_tensors() -> None:
    """Against a count by hand at sizes that differ in every factor."""
    assert gemma_rmsnorm.added(10, 3, PLACE).bytes_moved == 2 * 10 * (3 * 4 + 1)
    assert gemma_rmsnorm.alone(10, 3, PLACE).bytes_moved == 2 * 10 * (3 * 2 + 1)
    assert argmax.case(3, 10, PLACE).bytes_moved == 3 * 10 * 2 + 3 * 8
    assert qk_norm_mrope.case(4, 2, 3, PLACE).bytes_moved == 3 * (2 * 2 * 8 * 128 + 2 * 128 + 3 * 8 + 8)
    streams, weights = 3 * 10 * 2 * (4 + 4 + 1 + 1), 24 * 40 + 24 + 3
    assert mhc.case(10, 3, PLACE).bytes_moved == streams + 4 * (weights + 2 * 3 * (4 + 16))
    assert mhc.case(10, 3, PLACE).operations == 2 * 3 * 24 * 40
    decode = sparse_mla.case(5, 3, PLACE)
    assert decode.bytes_moved == 3 * 5 * (2 * 512 * 2 + 4) + 3 * (640 * (584 + 4) + 2 * 4)
    assert decode.operations == 2 * 2 * 3 * 5 * 640 * 512


@pytest.mark.parametrize("quick", [True, False])
def test_every_suite_names_its_cases_apart(quick: bool) -> None:
    groups: list[Group] = [group for of in SUITES.values() for group in of(quick)]
    assert len({group.title for group in groups}) == len(groups)
    for group in groups:
        assert len({case.label for case in group.cases}) == len(group.cases) > 0


def test_the_command_names_a_wrong_suite_and_a_wrong_picture(capsys: pytest.CaptureFixture[str]) -> None:
    for arguments, said in ((["norm"], "no suite is called norm"), (["--plot", "a.png"], "ends in .svg, not a.png")):
        with pytest.raises(SystemExit):
            main(arguments)
        assert said in capsys.readouterr().err


@pytest.mark.skipif(ON_GPU, reason="there is a GPU")
def test_the_command_needs_a_gpu(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["argmax"]) == 2
    assert "no CUDA or HIP GPU" in capsys.readouterr().err


def test_configurations_are_compiled_together_before_the_first_call_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[tuple[str, dict[str, object]]] = []
    monkeypatch.setattr("triton.knobs.runtime.interpret", False)
    monkeypatch.setattr(Autotuner, "run", lambda _self, **options: seen.append(("run", options)))
    monkeypatch.setattr(Autotuner, "warmup", lambda _self, **options: seen.append(("compile", options)))
    plain, kernel = Autotuner.run, object.__new__(Autotuner)
    decode = autotuning.compiled_at_once(lambda: kernel.run(grid=(1,), warmup=False))
    decode()
    decode()
    launched = {"grid": (1,), "warmup": False}
    assert seen == [("compile", {"grid": (1,)}), ("run", launched), ("run", launched)]
    assert Autotuner.run is plain
