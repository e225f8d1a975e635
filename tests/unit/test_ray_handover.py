"""What Ray's workers are started with, and what is said where they are started without it. Ray itself is stood for by
what it calls and what it answers; tests/engine/test_ray.py has the real one."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest

from overlay import boot, ray_handover
from tests.unit.engine_support import python
from tests.unit.scenarios import ACTIVATE, Scenario
from tests.unit.test_boot import START

GIVEN = {"AMD_SGLANG_OVERLAY": "1", "AMD_SGLANG_PLAN": "1b49", "SGLANG_USE_AITER": "1"}


def test_a_worker_gets_the_switches_and_what_the_launch_has_added_and_no_secret() -> None:
    before = {"HOME": "/root", "PATH": "/bin", "SGLANG_USE_AITER": "1"}
    secrets = {"AMD_SGLANG_API_KEY": "x", "SGLANG_HUB_TOKEN": "x"}
    after = ray_handover.noted(before, {**before, **GIVEN, "PATH": "/opt:/bin", "GPU_MAX_HW_QUEUES": "5"})
    added = {"AMD_SGLANG_ADDED": "GPU_MAX_HW_QUEUES,PATH", "GPU_MAX_HW_QUEUES": "5", "PATH": "/opt:/bin"}
    assert ray_handover.carried({**after, **secrets}) == {**GIVEN, **added}
    below = ray_handover.noted(after, {**after, "NEW": "1"})
    assert below["AMD_SGLANG_ADDED"] == "GPU_MAX_HW_QUEUES,NEW,PATH", (
        "a launch below a launch keeps what the outer added"
    )
    assert ray_handover.noted(before, {**before, **GIVEN}) == {**before, **GIVEN}


def test_what_the_program_gave_to_ray_is_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in GIVEN.items():
        monkeypatch.setenv(name, value)
    monkeypatch.delenv(boot.USERS_RAY_HOOK, raising=False)
    theirs = {"pip": ["x"], "env_vars": {"SGLANG_USE_AITER": "0", "HELLO": "1"}}
    made = ray_handover.hook(theirs)
    assert made["pip"] == ["x"]
    assert made["env_vars"].items() >= {**GIVEN, "SGLANG_USE_AITER": "0", "HELLO": "1"}.items()
    assert ray_handover.hook(None)["env_vars"]["AMD_SGLANG_PLAN"] == "1b49"
    assert theirs["env_vars"] == {"SGLANG_USE_AITER": "0", "HELLO": "1"}


def test_an_actor_on_another_host_keeps_its_status_there(scenario: Scenario, tmp_path: Path) -> None:
    elsewhere = tmp_path / "amd-sglang-0" / "20261122T210322-22555-y5l130"
    assert scenario("alpha", ACTIVATE, AMD_SGLANG_RUN_DIR=str(elsewhere)).processes
    assert elsewhere.stat().st_mode & 0o077 == 0 == elsewhere.parent.stat().st_mode & 0o077
    (tmp_path / "link").symlink_to(tmp_path / "amd-sglang-0")
    ended = scenario("alpha", ACTIVATE, AMD_SGLANG_RUN_DIR=str(tmp_path / "link" / "run"))
    assert (ended.code, ended.processes) == (0, []), "a link in a shared folder may be anybody's"
    assert "cannot write the status of pid" in ended.err


IMPORTED = """
import importlib, json
try:
    import ray
except ImportError:
    pass
module, _, name = os.environ['RAY_RUNTIME_ENV_HOOK'].rpartition('.')
print(json.dumps(getattr(importlib.import_module(module), name)({'env_vars': {'HELLO': '1'}})))
"""
USERS = "sys.modules['users'] = type(sys)('users')\nsys.modules['users'].hook = lambda env: {**env, 'pip': ['x']}\n"


def test_who_imports_ray_under_the_overlay_is_asked_for_the_environment_of_its_workers() -> None:
    made = json.loads(python("-c", START + IMPORTED).out)
    assert made["env_vars"]["AMD_SGLANG_OVERLAY"] == made["env_vars"]["HELLO"] == "1"
    users = {"RAY_RUNTIME_ENV_HOOK": "users.hook"}
    made = json.loads(python("-c", START + USERS + IMPORTED + IMPORTED, environ=users).out.splitlines()[-1])
    assert (made["pip"], made["env_vars"]["AMD_SGLANG_OVERLAY"]) == (["x"], "1"), "the user's own hook has its say"


def test_who_imports_ray_without_the_overlay_is_let_alone() -> None:
    code = "import os, sys\nfrom overlay import boot\nboot.start()\n" + IMPORTED
    assert "KeyError: 'RAY_RUNTIME_ENV_HOOK'" in python("-c", code).err


@pytest.fixture
def ray(monkeypatch: pytest.MonkeyPatch) -> Any:
    module: Any = ModuleType("ray")
    context = SimpleNamespace(runtime_env={})
    module.is_initialized = lambda: True
    module.get_runtime_context = lambda: context
    monkeypatch.setitem(sys.modules, "ray", module)
    monkeypatch.setitem(sys.modules, "sglang.srt.ray.engine", ModuleType("sglang.srt.ray.engine"))
    return module


def test_actors_that_run_without_the_overlay_are_said_with_what_to_type(ray: Any) -> None:
    said = ray_handover.objection({**GIVEN, "AMD_SGLANG_API_KEY": "secret"})
    assert said is not None
    assert "env AMD_SGLANG_OVERLAY=1 AMD_SGLANG_PLAN=1b49 SGLANG_USE_AITER=1 ray start ..." in said
    ray.get_runtime_context().runtime_env = {"env_vars": {"AMD_SGLANG_OVERLAY": "1"}}
    assert ray_handover.objection(GIVEN) is None
    ray.get_runtime_context().runtime_env = {"env_vars": None}
    assert ray_handover.objection(GIVEN) is not None
    ray.is_initialized = lambda: False
    assert ray_handover.objection(GIVEN) is None


def test_a_server_without_ray_actors_hears_nothing_of_ray(ray: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(sys.modules, "sglang.srt.ray.engine")
    assert ray_handover.objection(GIVEN) is None
