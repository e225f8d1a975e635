from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from tests.simulate.conftest import Python

_KERNELS = Path(__file__).with_name("bf16_kernels.py")
_RUN = f"import runpy; runpy.run_path({str(_KERNELS)!r}, run_name='__main__')"


def test_bf16_arithmetic_equals_torch(python: Python) -> None:
    different = json.loads(python(_RUN).stdout)
    assert different.pop("cast_fp32 truncated") > 0
    assert different == dict.fromkeys(different, 0)


def test_the_uncorrected_interpreter_truncates_and_computes_on_bit_patterns(python: Python) -> None:
    """The control: the test above would see it if nothing were corrected."""
    different = json.loads(python(_RUN, arch=None, TRITON_INTERPRET="1").stdout)
    assert different["cast_fp32 truncated"] == 0
    assert different["cast_fp32"] > 0
    assert different["add"] > 0
    assert different["dot"] > 0


def test_narrowing_is_torchs_at_every_kind_of_number() -> None:
    from overlay.simulate.triton_bf16 import narrow, widen

    patterns = torch.randint(-(1 << 31), 1 << 31, (100_000,), dtype=torch.int64).to(torch.int32)
    special = torch.tensor([0.0, -0.0, float("inf"), float("-inf"), 3.4e38, 1e-40, 1.00390625, 1.01171875])
    number = torch.cat([patterns.view(torch.float32), special])
    expected = number.to(torch.bfloat16)
    got = torch.from_numpy(widen(narrow(number.numpy())))
    assert torch.equal(torch.isnan(got), torch.isnan(number))
    assert torch.equal(torch.nan_to_num(got), torch.nan_to_num(expected.float()))
    assert np.array_equal(
        widen(expected.view(torch.int16).numpy().view(np.uint16)), expected.float().numpy(), equal_nan=True
    )


@pytest.mark.parametrize("arch", ["gfx942", "gfx950"])
def test_triton_sees_an_amd_gpu(python: Python, arch: str) -> None:
    program = """
import triton
target = triton.runtime.driver.active.get_current_target()
print(target.backend, target.arch, target.warp_size)
"""
    assert python(program, arch).stdout.split() == ["hip", arch, "64"]


_ALIASED = """
import json, torch, triton, triton.language as tl
from triton.language.extra import libdevice
from overlay import simulate
exp = tl.exp                                      # as sglang's fla/op.py

@triton.jit
def aliased(x, N: tl.constexpr):
    i = tl.arange(0, N)
    tl.store(x + i, exp(tl.load(x + i)) + libdevice.tanh(tl.load(x + i)))

@triton.jit
def lacking(x, N: tl.constexpr):
    i = tl.arange(0, N)
    tl.store(x + i, libdevice.erfinv(tl.load(x + i)))

x = torch.full((4,), 0.5); aliased[(1,)](x, 4)
try: lacking[(1,)](x, 4)
except Exception as error: refusal = str(error)
value = torch.tensor(0.5)
print(json.dumps([torch.allclose(x, value.exp() + value.tanh()), refusal, simulate.calls()]))
"""


def test_aliases_the_device_library_and_launch_counts(python: Python, tmp_path: Path) -> None:
    program = tmp_path / "kernels.py"
    program.write_text(_ALIASED)
    equal, refusal, calls = json.loads(python(f"import runpy; runpy.run_path({str(program)!r})").stdout)
    assert equal
    assert "libdevice.erfinv has no body" in refusal
    assert calls == {"triton:<run_path>.aliased": 1, "triton:<run_path>.lacking": 1}
