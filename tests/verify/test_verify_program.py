"""The program that measures, around the measuring: what it prints, what it writes, how it ends."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from overlay import denylist
from overlay.errors import OverlayError
from overlay.registry import builtin
from overlay.verify import __main__ as program
from overlay.verify import device
from overlay.verify.outcome import Device, Outcome, Result
from overlay.verify.request import Request
from overlay.verify.supervise import Supervisor

GPU = Device("AMD Instinct MI300X", "gfx942", False, {"torch": "2.9"})
RIGHT = Outcome("1 x 96", "triton", share=0.5, graph="replayed", microseconds=2.0, replaced_microseconds=9.0)
WRONG = Outcome("3 x 96", "triton", failure="the norm is off by 2 (ulps), bound 1")


@pytest.fixture
def path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    found = tmp_path / "denylist.json"
    monkeypatch.setenv("AMD_SGLANG_DENYLIST", str(found))
    monkeypatch.delenv("AMD_SGLANG_SIMULATE", raising=False)
    return found


class Measured(Supervisor):
    """One whose worker has found this."""

    def __init__(self, *outcomes: Outcome, problem: str | None) -> None:
        super().__init__(builtin())
        self._found = outcomes, problem

    def results(self, request: Request, *, together: bool) -> Iterator[Result]:
        assert not together, "on a GPU every patch has a process of its own"
        self.device, self.sizes = GPU, "models that are widely served"
        for one in request.ids:
            yield Result(builtin().get(one, "here"), *self._found)


def main(*outcomes: Outcome, problem: str | None = None, **asked: object) -> int:
    request = Request(("gemma-rmsnorm",), **asked)  # type: ignore[arg-type]
    return program.main(request.arguments()[-1], Measured(*outcomes, problem=problem))


def test_what_passes_ends_well_and_denies_nothing(path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    picture = path.with_name("out.svg")
    assert main(RIGHT, plot=str(picture)) == 0
    said = capsys.readouterr().out
    assert "AMD Instinct MI300X (gfx942) | torch 2.9 | sizes of models that are widely served" in said
    assert "gemma-rmsnorm: passed" in said
    assert "x4.50" in picture.read_text()
    assert not path.exists()


def test_what_fails_is_denied_and_ends_with_1(path: Path) -> None:
    assert main(RIGHT, WRONG) == 1
    (entry,) = denylist.read(path)
    assert (entry.patch, entry.arch, entry.simulated) == ("gemma-rmsnorm", "gfx942", False)
    assert entry.reason == "3 x 96: the norm is off by 2 (ulps), bound 1"


def test_what_could_not_be_run_ends_with_1_and_is_not_denied(path: Path) -> None:
    assert main(problem="ImportError: no aiter") == 1
    assert not path.exists()


def test_json_stands_alone_on_standard_output(path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    main(WRONG, as_json=True)
    captured = capsys.readouterr()
    assert json.loads(captured.out)["denied"] == ["gemma-rmsnorm"]
    assert "gemma-rmsnorm: failed" in captured.err


def test_a_denylist_that_cannot_be_written_is_said_after_the_results(
    monkeypatch: pytest.MonkeyPatch, path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("AMD_SGLANG_DENYLIST", "/proc/absent/denylist.json")  # where root cannot write either
    with pytest.raises(OverlayError, match=r"the denylist /proc/absent/denylist.json cannot be written"):
        main(WRONG)
    assert "FAILED: the norm is off by 2" in capsys.readouterr().out


def test_a_denylist_that_cannot_be_read_ends_it_before_anything_runs(
    path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path.write_text("{")
    with pytest.raises(OverlayError, match="line 1"):
        main(RIGHT)
    assert capsys.readouterr().out == ""


def test_without_a_gpu_both_ways_are_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(OverlayError, match=r"sees no GPU. Run .* where the server will run, or .*--simulate gfx942"):
        device.find({})
