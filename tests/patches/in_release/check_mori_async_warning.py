"""What `mori-async-warning` does to the real `MoriEPDispatcher` of one release.

Not collected by name: `test_deepseek_dual_stream.py` runs this file under the overlay, in the simulated ROCm with
aiter, once per release. Mori itself is a fake that is never asked to move a token.
"""

from __future__ import annotations

import importlib.metadata
import sys
from types import ModuleType
from typing import Any

import pytest
import torch
from packaging.version import Version

from overlay import runtime
from overlay.model import State
from patches.mori_async_warning import PATCH

RELEASE = Version(importlib.metadata.version("sglang"))
VARIABLE = "SGLANG_ROCM_USE_MULTI_STREAM"


@pytest.fixture(scope="session")
def moriep() -> Any:
    # The registry of a server imports every model; `requires` makes the warning wait for what DeepSeek's stream needs.
    from sglang.srt.layers.moe.token_dispatcher import moriep
    from sglang.srt.models import deepseek_v2, qwen2_moe  # noqa: F401

    overlay = runtime.current()
    assert overlay is not None
    assert overlay.state(PATCH.id)[0] is State.APPLIED, overlay.state(PATCH.id)
    return moriep


@pytest.fixture
def build(moriep: Any, monkeypatch: pytest.MonkeyPatch) -> Any:
    """Builds a real dispatcher in a mode, in a process that has not warned yet."""
    monkeypatch.setitem(sys.modules, "mori", ModuleType("mori"))
    monkeypatch.setattr(moriep, "init_mori_op", lambda *_, **__: None)
    monkeypatch.setenv(VARIABLE, "1")
    installed = moriep.MoriEPDispatcher.__init__._self_wrapper
    cells = dict(zip(installed.__code__.co_freevars, installed.__closure__, strict=True))
    monkeypatch.setattr(cells["warned"], "cell_contents", False)

    def build(mode: str) -> Any:
        return moriep.MoriEPDispatcher(
            group=None,
            router_topk=4,
            num_experts=16,
            num_local_experts=16,
            hidden_size=64,
            params_dtype=torch.bfloat16,
            deepep_mode=moriep.DeepEPMode(mode),
        )

    return build


def warnings(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [record.getMessage() for record in caplog.records if "AsyncLL" in record.getMessage()]


@pytest.mark.parametrize("value", ["1", "true", "yes"])
def test_normal_mode_warns_once(
    build: Any, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch, value: str
) -> None:
    monkeypatch.setenv(VARIABLE, value)
    for _layer in range(3):
        build("normal")
    (message,) = warnings(caplog)
    assert message.startswith(f"{VARIABLE} is on, but Mori does not use its AsyncLL kernel (--deepep-mode normal)")
    assert "auto" not in message
    assert ("--deepep-mode low_latency" in message) is (Version("0.5.10") <= RELEASE)
    assert ("MORI_ENABLE_SDMA=1" in message) is (Version("0.5.11") <= RELEASE)


@pytest.mark.skipif(Version("0.5.10") > RELEASE, reason="0.5.9 has no such mode")
@pytest.mark.parametrize("mode", ["low_latency", "auto"])
def test_async_modes_do_not_warn(build: Any, caplog: pytest.LogCaptureFixture, mode: str) -> None:
    build(mode)
    assert warnings(caplog) == []


@pytest.mark.skipif(Version("0.5.10") <= RELEASE, reason="0.5.9 only")
@pytest.mark.parametrize("mode", ["low_latency", "auto"])
def test_upstreams_refusal_passes(build: Any, caplog: pytest.LogCaptureFixture, mode: str) -> None:
    with pytest.raises(NotImplementedError):
        build(mode)
    assert warnings(caplog) == []


@pytest.mark.parametrize("value", ["1", "0"])
def test_sdma_selects_async_since_0_5_11(
    build: Any, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch, value: str
) -> None:
    monkeypatch.setenv("MORI_ENABLE_SDMA", value)
    build("normal")
    selected = value == "1" and Version("0.5.11") <= RELEASE
    assert len(warnings(caplog)) == (0 if selected else 1)


@pytest.mark.parametrize("value", [None, "0", "no"])
def test_off_never_warns(
    build: Any, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch, value: str | None
) -> None:
    monkeypatch.delenv(VARIABLE)
    if value is not None:
        monkeypatch.setenv(VARIABLE, value)
    build("normal")
    assert warnings(caplog) == []
