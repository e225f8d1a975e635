from __future__ import annotations

import json

import pytest

from tests.simulate.conftest import Evaluate, Python

_ASK = """
import json, torch
print(json.dumps(dict(hip=torch.version.hip, cuda=torch.version.cuda, available=torch.cuda.is_available())))
"""


@pytest.mark.parametrize(
    ("arch", "capability", "units", "gib"), [("gfx942", [9, 4], 304, 192), ("gfx950", [9, 5], 256, 288)]
)
def test_torch_answers_as_the_architecture(
    python: Python, arch: str, capability: list[int], units: int, gib: int
) -> None:
    program = """
import json, torch
p = torch.cuda.get_device_properties(0)
free, total = torch.cuda.mem_get_info()
print(json.dumps([torch.version.hip is not None, torch.version.cuda, torch.cuda.is_available(), p.gcnArchName,
                  list(torch.cuda.get_device_capability()), p.multi_processor_count, total >> 30, free < total]))
"""
    answers = json.loads(python(program, arch).stdout)
    assert answers == [True, None, True, f"{arch}:sramecc+:xnack-", capability, units, gib, True]


def test_torch_is_untouched_when_nobody_asked(python: Python) -> None:
    answers = json.loads(python(_ASK, arch=None).stdout)
    assert answers == {"hip": None, "cuda": None, "available": False}


def test_nothing_is_imported_before_it_is_asked_for(python: Python) -> None:
    done = python(
        "import sys; print(sorted({m.partition('.')[0] for m in sys.modules} & {'torch', 'triton', 'aiter'}))"
    )
    assert done.stdout.strip() == "[]"
    assert done.stderr == ""


def test_install_twice_changes_nothing(python: Python) -> None:
    program = """
import sys
before = list(sys.meta_path)
from overlay import simulate; simulate.install()
assert sys.meta_path == before
import torch
x = torch.ones(2, device='cuda')
"""
    assert python(program).stderr.count("SIMULATED") == 1


def test_a_module_keeps_its_own_loader(python: Python) -> None:
    python("import inspect, torch; assert 'PyTorch' in inspect.getsource(torch); assert torch.__spec__.loader.get_data")


@pytest.mark.parametrize(
    "expression",
    [
        "torch.zeros(2, device='cuda')",
        "torch.zeros(2, device='cuda:3')",
        "torch.zeros(2, device=torch.device('cuda', 0))",
        "torch.zeros(2, device=0)",
        "torch.zeros(2).to('cuda')",
        "torch.zeros(2).to(torch.device('cuda'), torch.float16)",
        "torch.zeros(2).cuda()",
        "torch.zeros(2).pin_memory()",
        "torch.empty(2, pin_memory=True)",
        "torch.nn.Linear(2, 2).cuda().weight",
        "torch.nn.Linear(2, 2, device='cuda').weight",
    ],
)
def test_what_is_asked_of_the_gpu_lives_on_the_cpu(expression: str, in_simulation: Evaluate) -> None:
    assert in_simulation(f"{expression}.device.type") == "cpu"


def test_threads_are_redirected_too(python: Python) -> None:
    program = """
import threading, torch
from concurrent.futures import ThreadPoolExecutor
seen = []
class Own(threading.Thread):
    def run(self):
        seen.append(torch.zeros(1, device='cuda').device.type)
for thread in (threading.Thread(target=lambda: seen.append(torch.zeros(1, device='cuda').device.type)), Own()):
    thread.start(); thread.join()
with ThreadPoolExecutor(1) as pool:
    seen.append(pool.submit(lambda: torch.zeros(1, device='cuda').device.type).result())
print(seen)
"""
    assert python(program).stdout.strip() == "['cpu', 'cpu', 'cpu']"


def test_operators_registered_for_the_gpu_reach_cpu_tensors(python: Python) -> None:
    program = """
import torch
library = torch.library.Library('probe', 'FRAGMENT')
library.define('twice(Tensor x) -> Tensor')
library.impl('twice', lambda x: x * 2, 'CUDA')
print(torch.ops.probe.twice(torch.ones(1, device='cuda')).item())
"""
    assert python(program).stdout.strip() == "2.0"


def test_rccl_groups_are_gloo(python: Python) -> None:
    program = """
import tempfile, torch, torch.distributed as dist
store = tempfile.mktemp()
dist.init_process_group('nccl', init_method=f'file://{store}', rank=0, world_size=1, device_id=torch.device('cuda', 0))
x = torch.ones(2, device='cuda'); dist.all_reduce(x, group=dist.new_group([0], backend='nccl'))
print(dist.get_backend(), x.tolist())
"""
    assert python(program).stdout.strip() == "gloo [1.0, 1.0]"


def test_streams_log_fork_and_join(python: Python) -> None:
    program = """
import torch
from overlay.simulate.torch_streams import log
main, side, event = torch.cuda.current_stream(), torch.cuda.Stream(), torch.cuda.Event()
context = torch.cuda.stream(side)
side.wait_stream(main)
for _ in range(2):                       # sglang enters one context again and again
    with context: assert torch.cuda.current_stream() == side
event.record(side); main.wait_event(event)
print([(what, {main.id: 'main', side.id: 'side'}[who]) for what, who, _ in log])
"""
    fork_join = [("wait_stream", "side"), *[("enter", "side"), ("exit", "side")] * 2, ("record", "side")]
    assert python(program).stdout.strip() == str([*fork_join, ("wait_event", "main")])


def test_dispatches_of_an_operator_are_counted(python: Python) -> None:
    program = """
import json, torch
from overlay import simulate
class SomeNorm(torch.nn.Module):            # as sglang's MultiPlatformOp
    _forward_method = None
    def forward(self, x):
        self._forward_method = self._forward_method or self.forward_hip   # 0.5.16: resolved in the first call
        return self._forward_method(x)
    def forward_hip(self, x): return x
norm = SomeNorm()
norm(torch.ones(1)); norm(torch.ones(1)); torch.nn.Identity()(torch.ones(1))
print(json.dumps(simulate.calls()))
"""
    assert json.loads(python(program).stdout) == {"op:SomeNorm.forward_hip": 2}
