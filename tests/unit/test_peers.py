"""A process beside others: it serves if they are patched as it is, and otherwise fails before it serves."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from tests.unit.scenarios import ACTIVATE, ALPHA, Scenario

#: What of sglang the overlay watches in a scheduler.
WATCHED = {
    "managers/scheduler.py": "class Scheduler:\n    def __init__(self):\n        pass\n",
    "distributed/parallel_state.py": "def init_distributed_environment():\n    pass\n",
}
CONNECT = """
from sglang.srt.distributed.parallel_state import init_distributed_environment
init_distributed_environment()
print('connected')
"""
SERVE = """
from sglang.srt.managers.scheduler import Scheduler
Scheduler()
print('serving')
"""
#: This process is rank 0 of two; the account of rank 1 is in the store, the same but for what `other` changes in it.
BESIDE = """
import json, dataclasses
from overlay import peers, ranks
class Store(dict):
    def set(self, key, value):
        self[key] = value.encode()
        if key.endswith('/0'):
            mine = json.loads(value)
            theirs = {**mine, 'name': 'there', 'facts': {**mine['facts'], **other(key)}}
            self[key[:-1] + '1'] = json.dumps(theirs).encode()
        if key.endswith('/0/read'):
            self[key[:-6] + '1/read'] = b''
    get = dict.__getitem__
    def check(self, keys):
        return all(key in self for key in keys)
store = Store()
ranks.world = lambda: ranks.World(store, 0, 2)
"""
ALIKE = BESIDE + "other = lambda key: {}\n"
OTHERWISE = BESIDE + "other = lambda key: {'alpha': 'disabled'}\n"
FAILED_LATER = BESIDE + "other = lambda key: {'alpha': 'failed'} if 'ready' in key else {}\n"


@pytest.fixture
def sglang(scenario: Scenario) -> Scenario:
    for name, text in WATCHED.items():
        path = scenario.tree / "sglang/srt" / name
        path.parent.mkdir()
        path.write_text(text)
    return scenario


def test_ranks_that_are_alike_serve_and_say_so_once(sglang: Scenario) -> None:
    ended = sglang("alpha", ALIKE + ACTIVATE + ALPHA + CONNECT + SERVE)
    assert (ended.code, ended.out) == (0, "connected\nserving\n"), ended.err
    (process,) = ended.processes
    assert ended.err == f"[amd-sglang] 2 ranks agree on plan {process['plan']}\n"


@pytest.mark.parametrize(
    ("beside", "reached", "there"), [(OTHERWISE, "", "disabled"), (FAILED_LATER, "connected\n", "failed")]
)
def test_a_rank_that_differs_fails_where_it_is_seen(sglang: Scenario, beside: str, reached: str, there: str) -> None:
    ended = sglang("alpha", beside + ACTIVATE + ALPHA + CONNECT + SERVE)
    assert (ended.code, ended.out) == (1, reached)
    here = f"rank 0 (pid {ended.processes[0]['pid']} on {os.uname().nodename})"
    sentence = f"alpha in force (only) on {here}, but {there} on rank 1 (there)"
    assert f"[amd-sglang] the ranks of this server are not alike: {sentence}" in ended.err
    assert "RanksDifferError: the ranks of this server are not alike" in ended.err


def test_an_error_that_somebody_swallowed_comes_again_before_serving(sglang: Scenario) -> None:
    swallowed = "try:\n    " + CONNECT.strip().replace("\n", "\n    ") + "\nexcept Exception:\n    print('swallowed')\n"
    ended = sglang("alpha", OTHERWISE + ACTIVATE + swallowed + SERVE)
    assert (ended.code, ended.out) == (3, "swallowed\n"), ended.err


def test_what_strict_forbids_in_one_rank_is_heard_by_the_others(sglang: Scenario) -> None:
    tell = "import atexit; atexit.register(lambda: print(store['amd-sglang/1/ready/0'].decode()))\n"
    ended = sglang("raising", ALIKE + tell + ACTIVATE + ALPHA + "import sglang.srt.beta\n", AMD_SGLANG_STRICT="1")
    assert ended.code == 3
    account = json.loads(ended.out)
    assert account["facts"]["process"] == "ends"
    assert account["reasons"]["process"].startswith("alpha is failed and --strict forbids to serve without it")


@pytest.mark.parametrize(
    ("module", "name"),
    [("managers/scheduler", "Scheduler.__init__"), ("distributed/parallel_state", "init_distributed_environment")],
)
@pytest.mark.parametrize("strict", [True, False], ids=["strict", "lenient"])
def test_ranks_that_cannot_be_compared_serve_unless_strict(
    sglang: Scenario, module: str, name: str, strict: bool
) -> None:
    path = sglang.tree / f"sglang/srt/{module}.py"
    path.write_text(f"{path.read_text()}{name} = lambda *_: None\n")
    ended = sglang("alpha", ACTIVATE + CONNECT + SERVE, AMD_SGLANG_STRICT="1" if strict else "0")
    assert f"cannot watch sglang.srt.{module.replace('/', '.')}:{name}: it holds" in ended.err
    assert (ended.code, "serving" in ended.out) == ((3, False) if strict else (0, True)), ended.err


REPLICA = "r.ready('scheduler', {'dp': %d})\nprint('serving')\n"
#: Another replica of the same controller that is ready, and alive, in the state that is asked for.
BROTHER = """
import json, os, subprocess, sys, time
from overlay import status
from pathlib import Path
run = Path(os.environ['AMD_SGLANG_RUN_DIR'])
r.ready('dp-controller', {})
document = json.loads((run / f'{os.getpid()}.json').read_text())
child = subprocess.Popen([sys.executable, '-c', 'input()'], stdin=subprocess.PIPE)
document.update(pid=child.pid, ppid=os.getppid(), started=status.started(child.pid), role='scheduler', ranks={'dp': 0})
change(document)
status.write(run, f'{child.pid}.json', document)
"""


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ("pass", ""),
        ("document['patches'][0]['state'] = 'failed'", "alpha failed on DP0 (pid"),
        ("document.update(plan='0123456789abcdef')", "plan 0123456789abcdef on DP0 (pid"),
        ("document.update(ready=False, plan='0123456789abcdef')", ""),
        ("document.update(started=1, plan='0123456789abcdef')", ""),
        ("document.update(ppid=1, plan='0123456789abcdef')", ""),
        ("document.clear()", ""),
    ],
    ids=["alike", "failed there", "another plan", "not ready yet", "ended", "of another server", "unreadable"],
)
def test_a_replica_is_compared_with_those_that_were_ready_before(sglang: Scenario, change: str, sentence: str) -> None:
    brother = f"def change(document): {change}\n" + BROTHER
    ended = sglang("alpha", ACTIVATE + ALPHA + brother + REPLICA % 1 + "child.kill()\n")
    assert (ended.code, ended.out) == ((1, "") if sentence else (0, "serving\n")), ended.err
    assert sentence in ended.err


def test_a_replica_does_not_serve_another_plan_than_the_one_that_all_were_announced(sglang: Scenario) -> None:
    code = ACTIVATE + "r.ready('scheduler', {%s})\nprint('serving')\n"
    alone = sglang("alpha", code % "", AMD_SGLANG_PLAN="0123456789abcdef")
    assert (alone.code, alone.out) == (0, "serving\n"), "there is nobody it could differ from"
    replica = sglang("alpha", code % "'dp': 0", AMD_SGLANG_PLAN="0123456789abcdef")
    assert (replica.code, replica.out) == (1, "")
    assert "the launcher announced 0123456789abcdef to all of them" in replica.err
    same = str(alone.processes[0]["plan"])
    assert sglang("alpha", code % "'dp': 0", AMD_SGLANG_PLAN=same).out == "serving\n"
    assert sglang("alpha", code % "'dp': 0").out == "serving\n"


def test_a_replica_without_a_run_directory_serves(sglang: Scenario, tmp_path: Path) -> None:
    assert sglang("alpha", ACTIVATE + REPLICA % 0, AMD_SGLANG_RUN_DIR="").out == "serving\n"
