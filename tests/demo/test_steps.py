"""Provisioning resumes where it stopped, redoes what changed, and says what went wrong."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from demo import provision
from demo.steps import ProvisionError, Step, digest, run_command, run_pending


class Recorder:
    """Makes steps that write down that they ran; the one named ``breaks`` fails."""

    def __init__(self) -> None:
        self.ran: list[str] = []
        self.breaks = ""

    def step(self, name: str, *inputs: str | Path) -> Step:
        return Step(name, name, "", inputs, self._body(name))

    def _body(self, name: str) -> Callable[[], None]:
        def body() -> None:
            self.ran.append(name)
            if name == self.breaks:
                raise ProvisionError(f"{name} broke")

        return body


def test_finished_steps_are_not_repeated(tmp_path: Path) -> None:
    recorder = Recorder()
    steps = [recorder.step("first"), recorder.step("second")]
    assert run_pending(steps, tmp_path) == 2
    assert run_pending(steps, tmp_path) == 0
    assert recorder.ran == ["first", "second"]


def test_interrupted_step_is_redone_and_the_ones_before_it_are_kept(tmp_path: Path) -> None:
    recorder = Recorder()
    steps = [recorder.step("first"), recorder.step("second"), recorder.step("third")]
    recorder.breaks = "second"
    with pytest.raises(ProvisionError, match="second broke"):
        run_pending(steps, tmp_path)
    recorder.breaks = ""
    run_pending(steps, tmp_path)
    assert recorder.ran == ["first", "second", "second", "third"]


def test_step_that_fails_when_redone_loses_its_old_stamp(tmp_path: Path) -> None:
    recorder = Recorder()
    run_pending([recorder.step("only", "old")], tmp_path)
    recorder.breaks = "only"
    with pytest.raises(ProvisionError):
        run_pending([recorder.step("only", "new")], tmp_path)
    recorder.breaks = ""
    assert run_pending([recorder.step("only", "old")], tmp_path) == 1


def test_step_without_a_stamp_redoes_the_ones_after_it(tmp_path: Path) -> None:
    recorder = Recorder()
    steps = [recorder.step("first"), recorder.step("second")]
    run_pending(steps, tmp_path)
    (tmp_path / "first").unlink()
    recorder.ran.clear()
    run_pending(steps, tmp_path)
    assert recorder.ran == ["first", "second"]


def test_changed_input_file_redoes_its_step_and_all_that_follow(tmp_path: Path) -> None:
    pins = tmp_path / "pins.txt"
    pins.write_text("a==1\n")
    recorder = Recorder()
    steps = [recorder.step("before"), recorder.step("pinned", pins), recorder.step("after")]
    run_pending(steps, tmp_path / "stamps")
    pins.write_text("a==2\n")
    recorder.ran.clear()
    run_pending(steps, tmp_path / "stamps")
    assert recorder.ran == ["pinned", "after"]


def test_missing_input_is_not_an_empty_one(tmp_path: Path) -> None:
    pins = tmp_path / "pins.txt"
    without = digest([pins])
    pins.write_text("")
    assert digest([pins]) != without


@pytest.mark.parametrize(
    ("output", "cause"),
    [
        ("OSError: [Errno 28] No space left on device", "disk is full"),
        ("NewConnectionError: Temporary failure in name resolution", "index was not reached"),
        ("ERROR: No matching distribution found for torch==2.13.0", "lacks this version"),
        ("error: something else", "finished steps are kept"),
    ],
)
def test_failed_command_names_cause_and_shows_its_output(tmp_path: Path, output: str, cause: str) -> None:
    log = tmp_path / "step.log"
    with pytest.raises(ProvisionError) as caught:
        run_command([sys.executable, "-c", f"print({output!r}); raise SystemExit(3)"], log, cwd=tmp_path)
    message = str(caught.value)
    assert "exit status 3" in message
    assert cause in message
    assert message.splitlines()[-1].strip() == output
    assert str(log) in message


@pytest.mark.parametrize("version", [(3, 10), (3, 13)])
def test_unsupported_python_is_refused_by_name(version: tuple[int, int]) -> None:
    with pytest.raises(ProvisionError, match=rf"(?s)Python {version[0]}\.{version[1]} \(/opt/py\).*PYTHON=") as caught:
        provision.check_python(version, "/opt/py")
    assert "3.11 or 3.12" in str(caught.value)


def test_this_python_is_supported() -> None:
    provision.check_python(sys.version_info[:2], sys.executable)


def test_too_little_disk_is_refused_with_both_figures(tmp_path: Path) -> None:
    with pytest.raises(ProvisionError, match=rf"GiB free at {tmp_path}, but 1048576\.0 GiB are needed"):
        provision.check_disk(1 << 50, tmp_path)


@pytest.mark.parametrize("version", ["latest", "0.5.12 --index-url x", "../0.5.9", ""])
def test_release_that_is_no_version_is_refused(version: str) -> None:
    with pytest.raises(ProvisionError, match="is no sglang version"):
        provision.release_path(version)


def test_release_appears_complete_and_is_fetched_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    calls = tmp_path / "calls"
    pip = (
        "import pathlib, sys\n"
        "package = pathlib.Path(sys.argv[sys.argv.index('--target') + 1], 'sglang')\n"
        "package.mkdir(parents=True)\n"
        "(package / '__init__.py').write_text('version = 1')\n"
        f"pathlib.Path({str(calls)!r}).open('a').write(sys.argv[-1] + '\\n')\n"
    )
    monkeypatch.setattr(provision, "RELEASES", tmp_path / "releases")
    monkeypatch.setattr(provision, "LOGS", tmp_path / "logs")
    monkeypatch.setattr(provision, "_PIP", (sys.executable, "-c", pip))
    folder = provision.release_path("0.5.12.post1")
    assert folder == provision.release_path("0.5.12.post1") == tmp_path / "releases" / "0.5.12.post1"
    assert calls.read_text() == "sglang==0.5.12.post1\n"
    assert list((folder / "sglang" / "__pycache__").glob("__init__.*.pyc"))
    assert [entry.name for entry in folder.parent.iterdir()] == ["0.5.12.post1"]


def test_failing_fetch_leaves_no_release_behind(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(provision, "RELEASES", tmp_path)
    monkeypatch.setattr(provision, "LOGS", tmp_path / "logs")
    monkeypatch.setattr(provision, "_PIP", (sys.executable, "-c", "raise SystemExit(1)"))
    with pytest.raises(ProvisionError, match="exit status 1"):
        provision.release_path("0.5.12.post1")
    assert not (tmp_path / "0.5.12.post1").exists()


@pytest.mark.parametrize(
    ("version", "companion"),
    [
        ("0.5.9", None),
        ("0.5.10", "transformers-5.6.0"),
        ("0.5.12.post1", "transformers-5.6.0"),
        ("0.6.0", "transformers-5.6.0"),
    ],
)
def test_transformers_family_of_a_release(version: str, companion: str | None) -> None:
    assert provision.transformers_for(version) == companion


def test_base_release_is_the_one_installed() -> None:
    assert (provision.release_path("0.5.9") / "sglang-0.5.9.dist-info").is_dir()
    assert provision.release_pythonpath("0.5.9") == []
