"""Who is told that a process leaves under `--strict`: trees of real processes that are titled as sglang titles them."""

from __future__ import annotations

import signal

import pytest

from tests.unit.engine_support import python
from tests.unit.scenarios import ACTIVATE, ALPHA, Scenario
from tests.unit.test_boot import START

#: A server, which sees the pipe end when nobody below it is left; a controller with two schedulers, of which one never
#: asked to be killed with its parent; and the other one, which leaves.
TREE = """
import os, select, signal, time
from setproctitle import setproctitle
from overlay import lineage

def child(play):
    pid = os.fork()
    if pid == 0:
        signal.signal(signal.SIGQUIT, signal.SIG_DFL)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, [signal.SIGQUIT])
        play()
        os._exit(0)
    return pid

def scheduler():
    setproctitle("sglang::scheduler_DP0")
    lineage.tell_who_waits(serving=SERVING)

def control():
    setproctitle("sglang::data_parallel_controller")
    if not SERVING:
        child(lambda: time.sleep(20))
    child(scheduler)
    time.sleep(20)

def told(*_):
    print("told", flush=True)
    if CONTROLLED:
        os.kill(below, signal.SIGKILL)

signal.signal(signal.SIGQUIT, told)
pipe, end = os.pipe()
signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGQUIT])  # until `told` knows what is below
below = child(control if CONTROLLED else scheduler)
signal.pthread_sigmask(signal.SIG_UNBLOCK, [signal.SIGQUIT])
os.close(end)
print("ended" if select.select([pipe], [], [], 10)[0] else "waits")
"""


@pytest.mark.parametrize("controlled", [True, False], ids=["below a controller", "below the server"])
@pytest.mark.parametrize("serving", [True, False], ids=["serving", "starting"])
def test_nobody_waits_for_a_process_that_left(controlled: bool, serving: bool) -> None:
    ended = python("-c", f"CONTROLLED, SERVING = {controlled}, {serving}\n" + TREE)
    assert ended.out == ("told\n" if serving else "") + "ended\n", ended.err


CONTROLLER = """
import threading, time
from setproctitle import setproctitle
setproctitle("sglang::data_parallel_controller")
"""
BELOW = "if os.fork():\n    time.sleep(20)\n    os._exit(0)\n"
#: What its thread for a scheduler does, for as long as it lives (launch_tensor_parallel_group_thread, 0.5.9).
ITSELF = "threading.Thread(target=time.sleep, args=(20,)).start()\n"
FAILS = ACTIVATE + ALPHA + "import sglang.srt.beta\n"
CANNOT_ACTIVATE = "install_registry()\n" + START + "import sglang\n"


@pytest.mark.parametrize("where", [BELOW, ITSELF], ids=["in a scheduler", "in the controller"])
@pytest.mark.parametrize(
    ("code", "switches", "reason"),
    [
        (FAILS, {}, "alpha is failed and --strict forbids"),
        (CANNOT_ACTIVATE, {"AMD_SGLANG_ENABLE": "ghost"}, "unknown patch id 'ghost'"),
    ],
    ids=["a make raises", "the activation fails"],
)
def test_a_strict_exit_ends_the_controller(
    scenario: Scenario, where: str, code: str, switches: dict[str, str], reason: str
) -> None:
    ended = scenario("raising", CONTROLLER + where + code, AMD_SGLANG_STRICT="1", **switches)
    assert ended.code == -signal.SIGQUIT, ended.err
    assert reason in ended.err


def test_a_forked_helper_of_a_scheduler_leaves_alone(scenario: Scenario) -> None:
    """The scheduler is its parent, and serves on."""
    listen = "import signal\nsignal.signal(signal.SIGQUIT, lambda *_: print('told', flush=True))\n"
    fork = "os.environ['KERNEL'] = 'no such instruction'\nchild = os.fork()\nif child == 0: results()\n"
    wait = "print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))\n"
    code = ACTIVATE + ALPHA + listen + "r.ready('scheduler', {})\n" + fork + wait
    assert scenario("guarded", code, AMD_SGLANG_STRICT="1").out == "3\n"
