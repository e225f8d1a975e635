from __future__ import annotations

import os
import shutil
import subprocess

import pytest

from overlay.errors import OverlayError
from overlay.simulate import environment
from overlay.simulate.settings import AITER_VERSIONS, ARCHS
from tests.simulate.conftest import Python


def test_adds_to_the_base_and_leaves_it_alone() -> None:
    base = {"PATH": "/usr/bin", "HOME": "/root"}
    made = environment("gfx942", base)
    assert base == {"PATH": "/usr/bin", "HOME": "/root"}
    assert made["HOME"] == "/root"
    assert made["AMD_SGLANG_SIMULATE"] == "gfx942"
    assert made["TRITON_INTERPRET"] == made["TORCHDYNAMO_DISABLE"] == made["SGLANG_USE_AITER"] == "1"


def test_keeps_what_the_user_chose_for_sglang() -> None:
    made = environment("gfx950", {"SGLANG_USE_AITER": "0"})
    assert made["SGLANG_USE_AITER"] == "0"


def test_without_an_aiter_sglang_is_not_asked_to_use_it() -> None:
    assert environment("gfx942", {"AMD_SGLANG_SIMULATE_AITER": "none"})["SGLANG_USE_AITER"] == "0"


def test_is_a_fixed_point() -> None:
    once = environment("gfx942", {"PATH": "/usr/bin"})
    assert environment("gfx942", once) == once


@pytest.mark.parametrize("arch", sorted(ARCHS))
def test_rocminfo_is_on_the_path_and_knows_the_memory(arch: str) -> None:
    made = environment(arch, dict(os.environ))
    # The pipeline of sglang's get_amdgpu_memory_capacity (srt/utils/common.py), which reads KB.
    pipeline = "rocminfo | grep 'gfx' -A 100 | grep 'Pool 1' -A 5 | grep 'Size:' | awk '{print $2}'"
    found = subprocess.run(pipeline, shell=True, env=made, capture_output=True, text=True, check=True).stdout
    assert int(found) * 1024 == ARCHS[arch].memory
    assert shutil.which("rocminfo", path=made["PATH"])


def test_unknown_arch_is_named_with_the_known_ones() -> None:
    with pytest.raises(ValueError, match=r"'gfx90a'.*gfx942, gfx950") as caught:
        environment("gfx90a", {})
    assert isinstance(caught.value, OverlayError)


def test_unknown_aiter_is_named_with_the_known_ones() -> None:
    with pytest.raises(ValueError, match=r"'v9'.*auto, none") as caught:
        environment("gfx942", {"AMD_SGLANG_SIMULATE_AITER": "v9"})
    assert isinstance(caught.value, OverlayError)
    assert all(version in str(caught.value) for version in AITER_VERSIONS)


def test_an_unknown_arch_stops_the_installation(python: Python) -> None:
    done = python(
        "import os; os.environ['AMD_SGLANG_SIMULATE'] = 'gfx1'\nfrom overlay import simulate; simulate.install()",
        arch=None,
        check=False,
    )
    assert done.returncode != 0
    assert "UnknownArchError: AMD_SGLANG_SIMULATE='gfx1'" in done.stderr.replace("overlay.simulate.settings.", "")
