"""The demo fails when what it shows does not hold."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

import demo.__main__ as main
from demo.server import Server


def report(monkeypatch: pytest.MonkeyPatch, state: str, role: str = "scheduler") -> None:
    processes = [{"role": role, "patches": [{"id": "gemma-rmsnorm", "state": state}]}]
    monkeypatch.setattr(main, "amd_sglang", lambda *_arguments: json.dumps({"processes": processes}))


def test_patch_applied_in_the_scheduler_is_enough(monkeypatch: pytest.MonkeyPatch) -> None:
    report(monkeypatch, "applied")
    main.show_patches()


@pytest.mark.parametrize(("state", "role"), [("planned", "scheduler"), ("applied", "http-server")])
def test_scheduler_without_a_patch_is_a_failure(monkeypatch: pytest.MonkeyPatch, state: str, role: str) -> None:
    report(monkeypatch, state, role)
    with pytest.raises(main.DemoError, match="no patch is applied"):
        main.show_patches()


def test_other_tokens_than_transformers_are_a_failure() -> None:
    with pytest.raises(main.DemoError, match=r"/generate differs from transformers:\n.*\[1, 2\]\n.*\[1, 3\]"):
        main.check("/generate", [1, 2], [1, 3])


def test_server_that_does_not_drain_is_a_failure(tmp_path: Path) -> None:
    server = Server(["sleep", "60"], log=tmp_path / "log")
    with server, pytest.raises(main.DemoError, match="status -15, not gracefully"):
        main.stop(server)


def test_missing_overlay_is_reported_without_a_traceback(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(main, "AMD_SGLANG", tmp_path / "amd-sglang")
    monkeypatch.setattr(main, "RUNS", tmp_path / "runs")
    monkeypatch.setattr(main, "LOGS", tmp_path)
    monkeypatch.setattr(main, "expected_answers", list)
    monkeypatch.setattr("signal.signal", lambda *_arguments: None)
    assert main.main([]) == 1
    assert f"cannot run {tmp_path / 'amd-sglang'}" in capsys.readouterr().err
