"""What `fix-mhc-import-cache` does to the real lookup of one release, and what the release does without it.

Not collected by name: `test_deepseek_v4_fixes.py` runs this file under the overlay, in the simulated gfx950.
"""

from __future__ import annotations

import logging
import sys
from collections.abc import Sequence
from importlib.machinery import ModuleSpec
from types import ModuleType
from typing import Any

import pytest
import torch

from tests.patches.in_release import mhc_placeholders as aiter
from tests.patches.in_release.rounds import WITH_AND_WITHOUT, in_force

ID = "fix-mhc-import-cache"
CALLS = 50


@pytest.fixture(scope="module", params=WITH_AND_WITHOUT)
def patched(request: pytest.FixtureRequest) -> bool:
    from sglang.srt.models.deepseek_common.amd import deepseek_v4_fused_mhc  # noqa: F401

    return in_force(request, ID)


@pytest.fixture
def mhc(patched: bool, monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    from sglang.srt.models.deepseek_common.amd import deepseek_v4_fused_mhc as module

    monkeypatch.setattr(module, "_TRITON_MHC_POST_PRE_OPS", None)
    monkeypatch.setattr(module, "_TRITON_MHC_POST_PRE_RUNTIME_DISABLED", False)
    found: ModuleType = module
    return found


class Lacking:
    """An aiter without the kernel: counts how often it is looked for."""

    def __init__(self) -> None:
        self.imports = 0

    def find_spec(self, name: str, path: Sequence[str] | None = None, target: object = None) -> ModuleSpec | None:
        if name == aiter.KERNEL:
            self.imports += 1
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)
        return None


def fuse(mhc: ModuleType, tokens: int = 2, hidden: int = 64) -> Any:
    """One call of the release's `try_fused_hc_post_pre` with arguments that it takes, on gfx95."""
    n = 4
    mixes = 2 * n + n * n
    return mhc.try_fused_hc_post_pre(
        torch.randn(tokens, hidden, dtype=torch.bfloat16),
        torch.randn(tokens, n, hidden, dtype=torch.bfloat16),
        torch.rand(tokens, n),
        torch.rand(tokens, n, n),
        torch.randn(mixes, n * hidden).T,
        torch.ones(3),
        torch.zeros(mixes),
        n,
        1e-6,
        1e-6,
        2.0,
        20,
        True,
    )


def test_a_missing_kernel_is_looked_for_once(
    mhc: ModuleType, patched: bool, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    lacking = Lacking()
    monkeypatch.delitem(sys.modules, aiter.KERNEL, raising=False)
    monkeypatch.setattr(sys, "meta_path", [lacking, *sys.meta_path])
    with caplog.at_level(logging.WARNING, logger=mhc.__name__):
        assert [fuse(mhc) for _ in range(CALLS)] == [None] * CALLS
    warned = sum("mhc_post_pre" in record.getMessage() for record in caplog.records)
    assert (lacking.imports, warned) == ((1, 1) if patched else (CALLS, CALLS))
