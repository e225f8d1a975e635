from __future__ import annotations

import json

import pytest

from overlay.simulate.fakes.errors import MissingBodyError, UncoveredNameError
from overlay.simulate.settings import AITER_HEAD, AITER_VERSIONS
from tests.simulate.conftest import Python


@pytest.mark.parametrize("error", [MissingBodyError, UncoveredNameError])
def test_refusals_are_not_what_sglang_swallows(error: type[Exception]) -> None:
    assert not issubclass(error, (RuntimeError, ImportError, AttributeError))


def test_a_call_binds_the_real_signature_and_is_counted(python: Python) -> None:
    program = """
import json, torch, aiter
from aiter.ops.rmsnorm import rmsnorm2d_fwd
from overlay import simulate
x, w = torch.randn(2, 8), torch.randn(8)
expected = x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + 1e-6) * w
refused = []
for wrong in ([x, w], {}), ([x, w, 1e-6, 0, None], {}), ([x, w], {"eps": 1e-6}):
    try: rmsnorm2d_fwd(*wrong[0], **wrong[1])
    except TypeError as error: refused.append(str(error))
print(json.dumps([rmsnorm2d_fwd is aiter.rmsnorm2d_fwd, torch.allclose(rmsnorm2d_fwd(x, w, epsilon=1e-6), expected),
                  refused, simulate.calls()]))
"""
    same, right, refused, calls = json.loads(python(program).stdout)
    assert same and right
    assert len(refused) == 3 and all(text.startswith("aiter.ops.rmsnorm.rmsnorm2d_fwd(") for text in refused)
    assert calls == {"aiter.ops.rmsnorm.rmsnorm2d_fwd": 1}


def test_the_signature_is_that_of_the_version(python: Python) -> None:
    """In 2026-08 `gemma_norm` took the place of `use_model_sensitive_rmsnorm`."""
    program = "import inspect, aiter; print(list(inspect.signature(aiter.rmsnorm2d_fwd_with_add).parameters)[6:])"
    assert python(program, aiter="v0.1.15").stdout.strip() == "['use_model_sensitive_rmsnorm']"
    assert python(program, aiter=AITER_HEAD).stdout.strip() == "['gemma_norm', 'use_model_sensitive_rmsnorm']"


def test_what_is_not_simulated_refuses_by_name(python: Python) -> None:
    program = """
import aiter, sgl_kernel, torch
from overlay.simulate.fakes.errors import MissingBodyError, UncoveredNameError
def refusal(error, call):
    try: call()
    except error as refused: print(refused)
refusal(MissingBodyError, lambda: aiter.static_per_tensor_quant(1, 2, 3))
refusal(MissingBodyError, lambda: sgl_kernel.fast_topk(1, 2, 3))
refusal(MissingBodyError, lambda: aiter.get_hip_quant(aiter.QuantType.per_1x128)(1))
refusal(MissingBodyError, lambda: aiter.tuned_gemm.tgemm.mm(torch.ones(1, 1), torch.ones(1, 1), scale_a=torch.ones(1)))
refusal(UncoveredNameError, lambda: aiter.nobody_looked)
refusal(UncoveredNameError, lambda: __import__("aiter.nobody.looked"))
"""
    lines = python(program).stdout.splitlines()
    names = ["static_per_tensor_quant", "fast_topk", "per_1x128", "tgemm.mm", "aiter.nobody_looked", "aiter.nobody"]
    assert [name for name, line in zip(names, lines, strict=True) if name not in line] == []


_ABSENT = """
for statement in ("from aiter.ops.fused_qk_rmsnorm_group_quant import fused_qk_rmsnorm",
                  "from aiter.ops.shuffle import moe_shuffle_scale"):
    try: exec(statement)
    except ImportError: print("absent")
    else: print("there")
import aiter
print(hasattr(aiter, "fused_qknorm_idxrqknorm"))
"""


@pytest.mark.parametrize(
    ("aiter", "expected"),
    [("v0.1.13", "absent absent False"), ("v0.1.15", "there absent False"), (AITER_HEAD, "there there True")],
)
def test_a_name_is_there_in_its_versions_only(python: Python, aiter: str, expected: str) -> None:
    assert python(_ABSENT, aiter=aiter).stdout.split() == expected.split()


@pytest.mark.parametrize("aiter", AITER_VERSIONS)
def test_every_declared_name_can_be_imported(python: Python, aiter: str) -> None:
    program = """
import importlib, sys
import aiter, sgl_kernel
for finder in sys.meta_path:
    for module, names in getattr(getattr(finder, '_contents', None), 'modules', {}).items():
        for name in names: getattr(importlib.import_module(module), name)
print(aiter.__version__)
"""
    assert python(program, aiter=aiter).stdout.strip() == aiter.removeprefix("v")


def test_none_is_as_if_it_were_not_installed(python: Python) -> None:
    program = """
import importlib.util
assert importlib.util.find_spec("aiter") is None
for statement in ("import aiter", "import aiter.ops"):
    try: exec(statement)
    except ModuleNotFoundError: pass
    else: raise SystemExit("imported")
from overlay import simulate
print(simulate.banner())
"""
    assert "no aiter" in python(program, aiter="none").stdout


def test_an_unknown_jit_kernel_fails_when_it_is_loaded(python: Python) -> None:
    program = """
import sys, types, torch
from overlay.simulate import jit_kernels
loader = types.ModuleType("sglang.jit_kernel.utils"); jit_kernels.apply(loader)
ids = torch.tensor([-2, 5])
loader.load_jit("resolve_future_token_ids", "int64").resolve_future_token_ids(ids, torch.tensor([9, 8, 7]))
print(ids.tolist())
try: loader.load_jit("warp_speed", "bf16", cuda_files=["warp.cuh"])
except Exception as error: print(type(error).__name__, error)
"""
    first, second = python(program).stdout.splitlines()
    assert first == "[7, 5]"
    assert second.startswith("MissingBodyError") and "'warp_speed'" in second


def test_the_jit_loader_is_replaced_when_sglang_imports_it(
    python: Python, tmp_path_factory: pytest.TempPathFactory
) -> None:
    folder = tmp_path_factory.mktemp("sglang")
    package = folder / "sglang" / "jit_kernel"
    package.mkdir(parents=True)
    (package / "utils.py").write_text("def load_jit(*args): raise SystemExit('compiled')\n")
    program = f"""
import sys; sys.path.insert(0, {str(folder)!r})
from sglang.jit_kernel.utils import load_jit
print(hasattr(load_jit("clamp_position"), "clamp_position"))
"""
    assert python(program).stdout.strip() == "True"
