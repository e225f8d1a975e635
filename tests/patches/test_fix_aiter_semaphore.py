"""`fix-aiter-semaphore`: which aiter needs it, and what its GEMM then counts in."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from overlay.model import Decision, State
from overlay.plan import make_plan
from overlay.platform import Platform
from overlay.registry import Registry
from overlay.source import installed_tree
from patches.fix_aiter_semaphore import PATCH, make_workspace
from tests.unit.engine_support import Ended, python, synthetic, write_tree

ROCM = Platform("rocm", "gfx942")
ON = {"SGLANG_ROCM_USE_MULTI_STREAM": "1"}

#: aiter/ops/gemm_op_a16w16.py, as far as the fingerprints go, around a kernel that tells what it was given.
_HEAD = """
import functools
from typing import Optional
import torch
from torch import Tensor

def _gemm_a16w16_asm(A, B, out, semaphore, *rest):
    out.append(semaphore)

"""
_GEMM = """
def gemm_a16w16_asm(
    A: Tensor,
    B: Tensor,
    out: Tensor,
    bias: Optional[Tensor] = None,
    splitK: Optional[int] = None,
    kernelName: Optional[str] = None,
    bpreshuffle: bool = False,
):
    if splitK is None or splitK > 1:
        sema = get_semaphore_workspace(out.device)
    else:
        sema = torch.empty((0,), dtype=torch.uint32, device=out.device)

    _gemm_a16w16_asm(A, B, out, sema, bias, splitK, kernelName, bpreshuffle)
    return out
"""
_PER_DEVICE = """
@functools.lru_cache(maxsize=1)
def get_semaphore_workspace(device: torch.device) -> Tensor:
    return torch.zeros({shape}, dtype=torch.uint32, device=device)
"""
_PER_STREAM = """
_SEMA_SHAPE = (16, 64)

@functools.lru_cache(maxsize=64)
def _get_semaphore_workspace_keyed(device: torch.device, stream_id: int) -> Tensor:
    return torch.zeros(_SEMA_SHAPE, dtype=torch.uint32, device=device)

def get_semaphore_workspace(device: torch.device) -> Tensor:
    stream = torch.cuda.current_stream(device)
    return _get_semaphore_workspace_keyed(device, stream.cuda_stream)
"""
AITER = {
    "v0.1.12": _HEAD + _PER_DEVICE.format(shape="(16, 64)") + _GEMM,
    "v0.1.14": _HEAD + "_SEMA_SHAPE = (16, 64)\n" + _PER_DEVICE.format(shape="_SEMA_SHAPE") + _GEMM,
    "v0.1.15": _HEAD + _PER_STREAM + _GEMM,
}
#: As much of torch as that module and the patch need: a tensor is a list of where it lies, a stream a number.
_TORCH = """
from torch import version
Tensor, device, uint32 = list, str, "uint32"

class Out(list):
    device = "cuda:0"

class Stream:
    cuda_stream = 0

class cuda:
    current = {"cuda:0": Stream(), "cuda:1": Stream()}

    @staticmethod
    def current_stream(device):
        return cuda.current[device]

def zeros(shape, dtype, device):
    return [shape, dtype, device]

empty = zeros
"""
_RUN = """
import os
from overlay import runtime
active = runtime.activate(os.environ)
import torch
from aiter.ops.gemm_op_a16w16 import gemm_a16w16_asm

def semaphore(stream, device="cuda:0", split=None):
    torch.cuda.current[device].cuda_stream = stream
    out = torch.Out()
    out.device = device
    return gemm_a16w16_asm(None, None, out, splitK=split)[0]

calls = {"a": (1,), "b": (2,), "c": (1, "cuda:1"), "again": (1,), "unsplit": (1, "cuda:0", 1)}
got = {name: semaphore(*call) for name, call in calls.items()}
assert got["a"][0] == (16, 64)
import json
print(json.dumps([active.state("fix-aiter-semaphore")[0], [got[x] is got[y] for x, y in ("ab", "ac", ("a", "again"))],
                  got["c"][2], got["unsplit"][0]]))
"""


def site(root: Path, aiter: str | None) -> Path:
    """A synthetic sglang, a small torch, and this aiter, installed elsewhere."""
    write_tree(synthetic(root / "site"), {"torch/__init__.py": _TORCH})
    files = {
        "aiter/__init__.py": "",
        "aiter/ops/__init__.py": "",
        "aiter/ops/gemm_op_a16w16.py": AITER.get(aiter or "", ""),
    }
    write_tree(root / "src", files if aiter else {"README": ""})
    return root


def decision(root: Path, environ: dict[str, str], platform: Platform = ROCM) -> Decision:
    tree = installed_tree([str(root / "site"), str(root / "src")])
    return make_plan(Registry((PATCH,)), tree, platform, environ).decisions[0]


@pytest.mark.parametrize(
    ("aiter", "variant"),
    [
        ("v0.1.12", "one-per-device"),
        ("v0.1.14", "one-per-device"),
        ("v0.1.15", "one-per-stream"),
        (None, "no-aiter"),
    ],
)
def test_the_installed_aiter_decides(tmp_path: Path, aiter: str | None, variant: str) -> None:
    made = decision(site(tmp_path, aiter), ON)
    assert made.variant is not None and made.variant.name == variant, made.reason
    assert made.state is (State.PLANNED if variant == "one-per-device" else State.CONTAINED)


def test_an_aiter_that_nobody_has_read_is_left_alone(tmp_path: Path) -> None:
    root = site(tmp_path, "v0.1.12")
    module = root / "src" / "aiter" / "ops" / "gemm_op_a16w16.py"
    module.write_text(module.read_text().replace("maxsize=1", "maxsize=2"))
    made = decision(root, ON)
    assert made.state is State.SOURCE_MISMATCH
    assert "aiter.ops.gemm_op_a16w16:get_semaphore_workspace is unknown code" in made.reason


@pytest.mark.parametrize(
    ("environ", "state"),
    [
        ({}, State.CONTAINED),
        ({"SGLANG_ROCM_USE_MULTI_STREAM": "0"}, State.CONTAINED),
        ({"SGLANG_QK_NORM_ALT_STREAM": "1"}, State.CONTAINED),
        ({"SGLANG_ROCM_USE_MULTI_STREAM": "yes"}, State.PLANNED),
        ({"SGLANG_ALT_STREAM": "true"}, State.PLANNED),
    ],
)
def test_without_a_second_stream_nothing_changes(tmp_path: Path, environ: dict[str, str], state: State) -> None:
    made = decision(site(tmp_path, "v0.1.12"), environ)
    assert made.state is state
    if state is State.CONTAINED:
        assert "SGLANG_ALT_STREAM and SGLANG_ROCM_USE_MULTI_STREAM are off" in made.reason


def test_the_simulations_aiter_has_no_such_gemm(tmp_path: Path) -> None:
    simulated = Platform("rocm", "gfx942", simulated=True)
    assert "aiter's source is not here" in decision(site(tmp_path, "v0.1.12"), ON, simulated).reason


def test_the_pypi_package_of_that_name_is_not_amds(tmp_path: Path) -> None:
    root = site(tmp_path, None)
    write_tree(root / "src", {"aiter/__init__.py": "import asyncio\n"})
    assert decision(root, ON).state is State.CONTAINED


def run(root: Path, **environ: str) -> tuple[str, list[bool], str, list[int]]:
    ended: Ended = python("-c", _RUN, path=(root / "site", root / "src"), environ={**ON, **environ})
    assert ended.code == 0, ended.err
    state, same, device, unsplit = json.loads(ended.out)
    return state, same, device, unsplit


@pytest.mark.parametrize("aiter", ["v0.1.12", "v0.1.14"])
def test_a_semaphore_belongs_to_one_stream_of_one_device(tmp_path: Path, aiter: str) -> None:
    root = site(tmp_path, aiter)
    assert run(root) == ("applied", [False, False, True], "cuda:1", [0])
    # The negative control: the same streams without the patch share one.
    assert run(root, AMD_SGLANG_DISABLE=PATCH.id) == ("disabled", [True, False, False], "cuda:1", [0])


def test_the_buffer_is_aiters_own(monkeypatch: pytest.MonkeyPatch) -> None:
    space: dict[str, object] = {"torch": torch, "functools": sys.modules["functools"], "Tensor": torch.Tensor}
    exec(_PER_DEVICE.format(shape="(16, 64)"), space)
    stream = SimpleNamespace(cuda_stream=7)
    monkeypatch.setattr(torch.cuda, "current_stream", lambda device: stream)
    workspace = make_workspace(space["get_semaphore_workspace"])
    buffer = workspace(torch.device("cpu"))
    assert buffer.shape == (16, 64) and buffer.dtype == torch.uint32 and not buffer.any()
    assert workspace(torch.device("cpu")) is buffer
    first, kept = buffer, []
    for handle in range(100):  # more than v0.1.15 keeps
        stream.cuda_stream = handle + 8
        kept.append(workspace(torch.device("cpu")))
    stream.cuda_stream = 7
    assert workspace(torch.device("cpu")) is first
    assert len({buffer.data_ptr() for buffer in (first, *kept)}) == 101
