"""The start of an interpreter: who is served, what it costs the others, and that sglang's import stays an import."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from overlay import boot
from tests.unit.engine_support import bare_site, python
from tests.unit.scenarios import SHOW, Scenario


def test_the_handover_is_what_is_wanted() -> None:
    given = boot.handover()
    assert boot.wanted(given)
    assert given == {
        "AMD_SGLANG_OVERLAY": "1",
        "AMD_SGLANG_PREFIX": sys.prefix,
        "AMD_SGLANG_PYTHON": sys.implementation.cache_tag,
    }


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("AMD_SGLANG_OVERLAY", ""),
        ("AMD_SGLANG_OVERLAY", "0"),
        ("AMD_SGLANG_PREFIX", "/usr"),
        ("AMD_SGLANG_PREFIX", ""),
        ("AMD_SGLANG_PYTHON", "cpython-39"),
    ],
)
def test_an_interpreter_the_launcher_did_not_vouch_for_is_left_alone(name: str, value: str) -> None:
    assert not boot.wanted({**boot.handover(), name: value})
    assert not boot.wanted({k: v for k, v in boot.handover().items() if k != name})


LOADED = "print(*sorted(m for m in sys.modules if m.startswith('overlay') or m in ('wrapt', 'packaging')))\n"
#: The gate is set by the process itself, so that it does not matter whether an installed overlay would start as well.
ASK = "import os, sys\nfrom overlay import boot\nos.environ.update(boot.handover())\n"
START = ASK + "boot.start()\n"


def test_starting_loads_nothing_but_the_boot_module() -> None:
    ended = python("-c", START + LOADED)
    assert ended.out == "overlay overlay.boot\n"


def test_starting_loads_nothing_of_the_standard_library_that_every_interpreter_does_not_load_anyway() -> None:
    before = "import os, sys\nbefore = set(sys.modules)\n"
    ended = python("-S", "-c", before + START + "print(*sorted(set(sys.modules) - before))")
    assert ended.out == "__future__ overlay overlay.boot\n", ended.err


def test_starting_twice_watches_once() -> None:
    count = "print(sum(type(f).__name__ == '_SglangWatch' for f in sys.meta_path))"
    assert python("-c", START + "boot.start()\n" + count).out == "1\n"
    assert python("-c", START.replace("os.environ.update", "id") + count).out == "0\n"


def test_the_import_of_sglang_activates_before_its_first_line_runs(scenario: Scenario) -> None:
    (scenario.tree / "sglang/__init__.py").write_text("import sys\nprint('overlay.runtime' in sys.modules)\n")
    ended = scenario("alpha beta", "install_registry()\n" + START + SHOW)
    assert ended.out.splitlines() == ["True", '["patched", "patched"]'], ended.err
    assert {state for state, _ in ended.states().values()} == {"applied"}


def test_a_process_loads_what_ranks_say_to_each_other_when_it_has_some(scenario: Scenario) -> None:
    code = (
        "install_registry()\n" + START + SHOW + "print([f'overlay.{n}' in sys.modules for n in ('runtime', 'ranks')])"
    )
    ended = scenario("alpha beta", code)
    assert ended.out.splitlines() == ['["patched", "patched"]', "[True, False]"], ended.err


OTHER = """
class Other:
    seen = []
    def find_spec(self, name, path=None, target=None):
        self.seen.append(name)
"""


@pytest.mark.parametrize("hooked", [True, False], ids=["wrapt in use", "wrapt unused"])
@pytest.mark.parametrize("broken", [True, False], ids=["activation fails", "activation works"])
def test_no_other_finder_misses_the_import(scenario: Scenario, hooked: bool, broken: bool) -> None:
    hook = "import wrapt\nwrapt.register_post_import_hook(lambda m: print('hooked', m.__name__), 'sglang')\n"
    order = "Other()" if not hooked else "sys.meta_path.pop(1)"
    code = "install_registry()\n" + OTHER + (hook if hooked else "") + START
    code += f"sys.meta_path.insert(1, {order})\n" + "import sglang\n"
    code += "print('sglang' in Other.seen)\n" if not hooked else ""
    ended = scenario("alpha", code, **({"AMD_SGLANG_ENABLE": "ghost"} if broken else {}))
    assert ended.out == ("hooked sglang\n" if hooked else "True\n"), ended.err


def test_a_failed_activation_is_said_and_sglang_runs_unpatched(scenario: Scenario) -> None:
    ended = scenario("alpha", "install_registry()\n" + START + SHOW, AMD_SGLANG_ENABLE="ghost")
    assert (ended.code, ended.out) == (0, '["upstream", "upstream"]\n')
    assert "sglang runs unpatched: unknown patch id 'ghost' in AMD_SGLANG_ENABLE" in ended.err


@pytest.mark.parametrize("strict", ["1", "true", "yes"])
def test_a_failed_activation_ends_a_strict_process(scenario: Scenario, strict: str) -> None:
    code = "install_registry()\n" + START + "try:\n    import sglang\nexcept Exception:\n    pass\nprint('serving')\n"
    ended = scenario("alpha", code, AMD_SGLANG_ENABLE="ghost", AMD_SGLANG_STRICT=strict)
    assert (ended.code, ended.out) == (3, "")


@pytest.mark.parametrize("strict", ["1", ""])
def test_asking_for_an_sglang_that_is_not_there_is_the_askers_affair(tmp_path: Path, strict: str) -> None:
    code = START + "import importlib.util\nprint(importlib.util.find_spec('sglang'))\n"
    ended = python("-S", "-c", code, path=(bare_site(tmp_path / "site"),), environ={"AMD_SGLANG_STRICT": strict})
    assert (ended.code, ended.out, ended.err) == (0, "None\n", "")


def test_starting_with_a_simulation_nobody_knows_does_not_raise() -> None:
    ended = python("-c", START + "print('alive')", environ={"AMD_SGLANG_SIMULATE": "gfx000"})
    assert ended.out == "alive\n"
