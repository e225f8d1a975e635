"""The accelerator stack, read from files."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import pytest

from overlay import platform
from overlay.platform import Platform, detect
from tests.unit.engine_support import write_tree

CPU_NODE = "cpu_cores_count 96\ngfx_target_version 0\nvendor_id 0\n"


def gpu(version: int) -> str:
    return f"simd_count 1216\ngfx_target_version {version}\nvendor_id 4098\n"


@pytest.fixture
def site(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """An import path with nothing on it but `tmp_path/site`, and a machine without a GPU."""
    folder = tmp_path / "site"
    folder.mkdir()
    for name in [name for name in sys.modules if name.partition(".")[0] in ("torch", "aiter", "vllm")]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setattr(sys, "path", [str(folder)])
    monkeypatch.setattr(platform, "_KFD_NODES", tmp_path / "nodes")
    yield folder


@pytest.mark.parametrize(
    ("version", "name"),
    [
        (90402, "gfx942"),
        (90500, "gfx950"),
        (90010, "gfx90a"),
        (90008, "gfx908"),
        (90006, "gfx906"),
        (100300, "gfx1030"),
        (110000, "gfx1100"),
        (120001, "gfx1201"),
    ],
)
def test_the_name_of_a_gpu(site: Path, version: int, name: str) -> None:
    write_tree(site.parent / "nodes", {"0/properties": CPU_NODE, "1/properties": gpu(version)})
    assert detect({}).arch == name


@pytest.mark.parametrize(
    ("nodes", "arch"),
    [
        ({}, None),
        ({"0/properties": CPU_NODE, "1/properties": CPU_NODE}, None),
        ({"0/properties": gpu(90402)}, "gfx942"),
        ({"10/properties": gpu(110000), "2/properties": gpu(90402), "0/properties": CPU_NODE}, "gfx942"),
        ({"0/properties": "", "1/properties": "gfx_target_version x\n", "2/properties": gpu(90500)}, "gfx950"),
        ({"0/name": "x", "1/properties": gpu(90500)}, "gfx950"),
        ({"0/properties/unreadable": "", "1/properties": gpu(90500)}, "gfx950"),
        ({"stray/properties": gpu(110000), "1/properties": gpu(90500)}, "gfx950"),
    ],
    ids=["no driver", "no gpu", "apu", "numeric order", "malformed", "missing", "unreadable", "stray folder"],
)
def test_the_first_gpu_of_the_driver(site: Path, nodes: dict[str, str], arch: str | None) -> None:
    write_tree(site.parent / "nodes", dict(nodes))
    assert detect({}).arch == arch


def test_a_hidden_gpu_does_not_count(site: Path) -> None:
    write_tree(site.parent / "nodes", {"1/properties": gpu(110000), "2/properties": gpu(90402)})
    assert detect({"HIP_VISIBLE_DEVICES": "1"}).arch == "gfx942"
    assert detect({"ROCR_VISIBLE_DEVICES": ""}).arch is None


@pytest.mark.parametrize(
    ("text", "kind"),
    [
        ("cuda: Optional[str] = None\nhip: Optional[str] = '6.4.43484-123eb5128'\n", "rocm"),
        ("__version__ = '2.9'\ncuda = None\nhip = '6.4.43484'\n", "rocm"),
        ("cuda: Optional[str] = '12.8'\nhip: Optional[str] = None\n", "cuda"),
        ("cuda = None\nhip = None\n", "cpu"),
        ("", "cpu"),
        ("hip = (", "none"),
        ("hip = compute()\ncuda = '12.8'\n", "cuda"),
    ],
)
def test_what_torch_was_built_for(site: Path, text: str, kind: str) -> None:
    write_tree(site, {"torch/__init__.py": "raise SystemExit('imported')", "torch/version.py": text})
    assert detect({}).kind == kind


@pytest.mark.parametrize(
    "files", [{}, {"torch.py": ""}, {"torch/__init__.py": ""}], ids=["absent", "file", "no version"]
)
def test_no_torch(site: Path, files: dict[str, str]) -> None:
    assert detect({}) == Platform("none")
    write_tree(site, files)
    assert detect({}).kind == "none"


def metadata(name: str, version: str) -> dict[str, str]:
    return {f"{name.replace('-', '_')}-{version}.dist-info/METADATA": f"Name: {name}\nVersion: {version}\n"}


@pytest.mark.parametrize(
    ("files", "version"),
    [
        ({"aiter/__init__.py": "", "aiter/ops/x.py": "", **metadata("amd-aiter", "0.1.13")}, "0.1.13"),
        ({"aiter/__init__.py": "", "aiter/ops/x.py": ""}, "unknown"),
        ({"aiter/__init__.py": "", **metadata("aiter", "0.13")}, None),
        ({"aiter/ops/x.py": "", **metadata("amd-aiter", "0.1.13")}, None),
        (metadata("amd-aiter", "0.1.13"), None),
    ],
    ids=["amd's", "amd's from source", "the asyncio package", "namespace", "metadata alone"],
)
def test_aiter(site: Path, files: dict[str, str], version: str | None) -> None:
    write_tree(site, files)
    assert detect({}).aiter == version


def test_vllm(site: Path) -> None:
    write_tree(site, metadata("vllm", "0.11.0"))
    assert detect({}).vllm is None  # what a removed package leaves behind
    write_tree(site, {"vllm/__init__.py": ""})
    importlib.invalidate_caches()
    assert detect({}).vllm == "0.11.0"


def test_a_vllm_that_somebody_made_up(site: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "vllm", ModuleType("vllm"))
    assert detect({}).vllm is None
    write_tree(site, metadata("vllm", "0.11.0"))
    assert detect({}).vllm == "0.11.0"


@pytest.mark.parametrize(
    ("platform", "text"),
    [
        (Platform("cuda"), "cuda"),
        (Platform("rocm", "gfx942"), "rocm gfx942"),
        (Platform("rocm", "gfx942", simulated=True), "rocm gfx942 SIMULATED on CPU"),
    ],
)
def test_a_simulation_is_never_printed_as_the_real_thing(platform: Platform, text: str) -> None:
    assert str(platform) == text


def test_a_simulated_platform_says_so() -> None:
    simulated = detect({"AMD_SGLANG_SIMULATE": "gfx950", "AMD_SGLANG_SIMULATE_AITER": "none"})
    assert simulated == Platform("rocm", "gfx950", None, None, simulated=True)
