"""The probes of the doctor: facts out of files, metadata and environment."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import overlay
from overlay import visibility
from overlay.doctor import gathering, meddlers, packages
from overlay.doctor.binary import inspect
from overlay.doctor.facts import Aiter, Binary, Features, Torch
from overlay.doctor.folders import can_write, folders
from overlay.doctor.installed import features, sglang
from overlay.kfd import Gpu, gpus
from overlay.source import DirectoryTree, installed_tree
from tests.unit.engine_support import RELEASES, synthetic, write_tree

BUNDLE = b"\0__CLANG_OFFLOAD_BUNDLE__\3\0hipv4-amdgcn-amd-amdhsa--gfx942:xnack-\0hipv4-amdgcn-amd-amdhsa--gfx950\0"
SEALED = b"\0\1CCOB\3\0\1\0\xfe\xca"


@pytest.fixture
def site(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """An import path with nothing on it but `tmp_path/site`."""
    folder = tmp_path / "site"
    folder.mkdir()
    for name in ("torch", "aiter", "sgl_kernel", "wrapt", "sglang"):
        for loaded in [loaded for loaded in sys.modules if loaded.partition(".")[0] == name]:
            monkeypatch.delitem(sys.modules, loaded)
    monkeypatch.setattr(sys, "path", [str(folder)])
    yield folder


def dist_info(name: str, version: str, **more: str) -> dict[str, str]:
    folder = f"{name.replace('-', '_')}-{version}.dist-info"
    files = {"METADATA": f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n", **more}
    return {f"{folder}/{file.replace('__', '.')}": text for file, text in files.items()}


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        (b"\x7fELF" + BUNDLE + b"libamdhip64.so.6\0", {"archs": frozenset({"gfx942", "gfx950"}), "hip": True}),
        (b"\x7fELF" + SEALED + b"libamdhip64.so.7\0", {"sealed": True, "hip": True}),
        (b"\x7fELF\0libcudart.so.12\0", {"cuda": True}),
        (b"\x7fELF CCOB is no header here, gfx942 neither", {}),
        (b"", {}),
    ],
    ids=["bundle", "compressed", "cuda", "words", "empty"],
)
def test_a_binary_shows_what_it_was_built_for(tmp_path: Path, content: bytes, expected: dict[str, object]) -> None:
    path = tmp_path / "common_ops.so"
    path.write_bytes(content)
    assert inspect(path) == Binary(path, **expected)  # type: ignore[arg-type]


def test_a_binary_that_is_not_there_shows_nothing(tmp_path: Path) -> None:
    assert inspect(tmp_path / "gone.so") == Binary(tmp_path / "gone.so")


def test_a_real_binary_of_another_kind_has_no_code_for_a_gpu() -> None:
    seen = inspect(Path(sys.executable).resolve())
    assert (seen.archs, seen.sealed, seen.hip, seen.cuda) == (frozenset(), False, False, False)


@pytest.mark.parametrize(
    ("text", "torch"),
    [
        ("__version__ = '2.9.0+rocm6.4'\nhip: Optional[str] = '6.4.43484'\n", Torch("2.9.0+rocm6.4", "6.4.43484")),
        ('__version__ = "2.9.0"\ncuda = "12.8"\nhip: Optional[str] = None\n', Torch("2.9.0", None)),
        ("", Torch("unknown", None)),
    ],
)
def test_torch_is_read_and_not_imported(site: Path, text: str, torch: Torch) -> None:
    assert packages.torch() is None
    write_tree(site, {"torch/__init__.py": "raise SystemExit('imported')", "torch/version.py": text})
    assert packages.torch() == torch


def test_the_asyncio_aiter_is_told_from_amds(site: Path) -> None:
    assert packages.aiter({}) is None
    write_tree(site, {"aiter/__init__.py": "raise SystemExit('imported')", **dist_info("aiter", "0.13.2")})
    assert packages.aiter({}) == Aiter(str(site / "aiter"), amd=False, asyncio_version="0.13.2")
    write_tree(site, {"aiter/ops/x.py": "", **dist_info("amd-aiter", "0.1.13")})
    both = packages.aiter({})
    assert both == Aiter(str(site / "aiter"), amd=True, version="0.1.13", asyncio_version="0.13.2")


@pytest.mark.parametrize(
    ("source", "shared"),
    [
        ("def get_semaphore_workspace(device): ...\n", True),
        ("def _get_semaphore_workspace_keyed(device, stream): ...\ndef get_semaphore_workspace(device): ...\n", False),
        ("def gemm_a16w16_asm(a, b): ...\n", None),
    ],
    ids=["per device", "per stream", "before semaphores"],
)
def test_aiters_semaphore_is_found_in_its_source(site: Path, source: str, shared: bool | None) -> None:
    write_tree(site, {"aiter/__init__.py": "", "aiter/ops/gemm_op_a16w16.py": source})
    found = packages.aiter({})
    assert found is not None
    assert found.shared_semaphore is shared


def test_tuned_shapes_that_go_to_hipblaslt_are_counted_in_the_tables_that_aiter_reads(site: Path) -> None:
    head = "cu_num,M,libtype\n"
    write_tree(
        site,
        {
            "aiter/__init__.py": "",
            "aiter/ops/x.py": "",
            "aiter/configs/bf16_tuned_gemm.csv": head + "304,1,hipblaslt\n304,2,asm\n",
            "aiter/configs/model_configs/a_bf16_tuned_gemm.csv": head + "304,1,hipblaslt\n",
            "mine.csv": head + "304,1,hipblaslt\n304,2,hipblaslt\n304,3,hipblaslt\n",
        },
    )

    def shapes(**environ: str) -> int:
        found = packages.aiter(environ)
        assert found is not None
        return found.blaslt_shapes

    assert shapes() == 2
    assert shapes(AITER_CONFIG_GEMM_BF16=f"{site / 'mine.csv'}:{site / 'missing.csv'}") == 3


def test_the_prebuilt_kernels_of_aiter_and_sgl_kernel_are_looked_into(site: Path) -> None:
    assert packages.kernels() is None
    write_tree(
        site,
        {
            **{f"{package}/__init__.py": "" for package in ("aiter", "sgl_kernel")},
            "aiter/ops/x.py": "",
            "aiter/jit/module_cache.so": BUNDLE,
            "sgl_kernel/sm90/common_ops.abi3.so": b"libcudart.so.12",
        },
    )
    aiter, kernels = packages.aiter({}), packages.kernels()
    assert aiter is not None
    assert kernels is not None
    assert [binary.archs for binary in aiter.binaries] == [{"gfx942", "gfx950"}]
    assert [(binary.path.name, binary.cuda) for binary in kernels.binaries] == [("common_ops.abi3.so", True)]


def test_wrapts_extension_is_looked_for(site: Path) -> None:
    assert packages.wrapt() == (None, False)
    write_tree(site, {"wrapt/__init__.py": "", **dist_info("wrapt", "2.0")})
    assert packages.wrapt() == ("2.0", False)
    write_tree(site, {"wrapt/_wrappers.cpython-311-x86_64-linux-gnu.so": ""})
    assert packages.wrapt() == ("2.0", True)


def test_a_folder_can_be_written_where_its_nearest_parent_can(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    (tmp_path / "file").chmod(0o777)
    assert can_write(tmp_path)
    assert can_write(tmp_path / "to" / "be" / "made")
    assert not can_write(tmp_path / "file")
    assert not can_write(tmp_path / "file" / "below")
    assert not can_write(Path("/proc/self/below"))


def test_the_caches_are_where_their_owners_would_put_them(tmp_path: Path) -> None:
    package = write_tree(tmp_path, {"aiter/jit/x.so": ""}) / "aiter"

    def where(aiter: Aiter | None, redirected: bool, **environ: str) -> dict[str, Path]:
        environ = {"HOME": "/home/u", "TMPDIR": str(tmp_path), **environ}
        return {one.variable: one.path for one in folders(environ, aiter, redirected)}

    plain = where(None, False)
    assert plain["TRITON_CACHE_DIR"] == Path("/home/u/.triton/cache")
    assert plain["TVM_FFI_CACHE_DIR"] == Path("/home/u/.cache/tvm-ffi")
    assert plain["TORCHINDUCTOR_CACHE_DIR"].parent == tmp_path
    assert "AITER_JIT_DIR" not in plain
    moved = where(None, True, SGLANG_CACHE_DIR="/cache")
    assert moved["TRITON_CACHE_DIR"] == Path("/cache/triton")
    assert moved["TORCHINDUCTOR_CACHE_DIR"] == Path("/cache/inductor")
    assert where(None, True, TRITON_CACHE_DIR="/mine")["TRITON_CACHE_DIR"] == Path("/mine")
    assert where(Aiter(str(package), amd=True), False)["AITER_JIT_DIR"] == package / "jit"
    unwritable = Aiter("/proc/self/aiter", amd=True)
    assert where(unwritable, False)["AITER_JIT_DIR"] == Path("/home/u/.aiter/jit")
    assert where(unwritable, False, AITER_JIT_DIR="/jit")["AITER_JIT_DIR"] == Path("/jit")


def test_a_start_file_that_knows_sglang_is_found_and_ours_is_not(tmp_path: Path) -> None:
    write_tree(
        tmp_path,
        {
            "amd_sglang_overlay.pth": "import sglang_hooks\n",
            "vendor.pth": "/some/path\nimport vendor_start; vendor_start.go()\n",
            "direct.pth": "import os; exec('import sglang')\n",
            "innocent.pth": "import other_start\n# sglang\n",
            "paths.pth": "/opt/sglang/python\n",
            "vendor_start.py": "import sglang.srt\n",
            "other_start.py": "",
            "sglang_hooks.py": "",
        },
    )
    found = [one.name for one in meddlers.start_lines([tmp_path], [str(tmp_path)])]
    assert found == ["direct.pth", "vendor.pth"]


def test_a_sitecustomize_that_knows_sglang_is_found(tmp_path: Path) -> None:
    write_tree(tmp_path, {"sitecustomize.py": "# patches sglang\n", "usercustomize.py": "pass\n"})
    assert [one.where for one in meddlers.customizers([str(tmp_path)])] == [str(tmp_path / "sitecustomize.py")]
    ours = str(Path(overlay.__file__).parent / "delivery")
    assert list(meddlers.customizers([ours])) == []


def test_plugins_of_sglang_are_found_by_their_entry_points(site: Path) -> None:
    assert list(meddlers.plugins()) == []
    points = "[sglang.srt.plugins]\nhooks = vendor:load\n\n[console_scripts]\nx = vendor:main\n"
    write_tree(site, dist_info("vendor", "1.0", entry_points__txt=points))
    (plugin,) = meddlers.plugins()
    assert (plugin.kind, plugin.name, plugin.where) == ("sglang.srt.plugins", "hooks", "vendor:load of vendor")


def test_an_sglang_of_the_working_directory_and_the_one_it_hides(site: Path, tmp_path: Path) -> None:
    installed, here = synthetic(tmp_path / "installed", "0.5.12"), synthetic(tmp_path / "here", "0.5.9")
    search = [str(here), str(installed)]
    found = sglang(installed_tree(search), search)
    assert (found.path, found.version.text, found.hidden) == (str(here / "sglang"), "0.5.9", str(installed / "sglang"))
    assert sglang(installed_tree([str(here)]), [str(here)]).hidden is None
    assert sglang(installed_tree([str(site), *search]), [str(site), *search]).hidden is None


def test_every_metadata_beside_an_sglang_is_read(tmp_path: Path) -> None:
    root = synthetic(tmp_path / "site", "0.5.12")
    write_tree(root, {**dist_info("sglang", "0.5.9"), **dist_info("sglang", "0.5.12"), **dist_info("other", "1")})
    assert sglang(DirectoryTree(root), [str(root)]).metadata == ("0.5.12", "0.5.9")


#: Release -> what of the stream variables' code its source has.
FEATURES = {
    "0.5.8.post1": Features(),
    "0.5.9": Features(qwen3_5=True),
    "0.5.10.post1": Features(qwen3_5=True, gdn_projection=True, tuned_gemm=True, mori_async=True),
    "0.5.11": Features(
        qwen3_5=True, gdn_projection=True, fused_qk_norm=True, shared_expert_fusion=True, tuned_gemm=True,
        mori_async=True, mori_sdma=True, plugins=True,
    ),
    "0.5.12.post1": Features(
        qwen3_5=True, gdn_projection=True, fused_qk_norm=True, shared_expert_fusion=True, multi_stream=True,
        tuned_gemm=True, mori_async=True, mori_sdma=True, plugins=True,
    ),
    "0.5.13": Features(
        qwen3_5=True, alt_stream=True, gdn_projection=True, fused_qk_norm=True, shared_expert_fusion=True,
        multi_stream=True, tuned_gemm=True, mori_async=True, mori_sdma=True, plugins=True,
    ),
    "0.5.23": Features(
        qwen3_5=True, alt_stream=True, gdn_projection=True, fused_qk_norm=True, shared_expert_fusion=True,
        multi_stream=True, tuned_gemm=True, mori_async=True, mori_sdma=True, mori_ep_v2=True, plugins=True,
        redirects_caches=True,
    ),
}  # fmt: skip


@pytest.mark.parametrize("release", sorted(FEATURES.keys() & RELEASES.keys()))
def test_what_a_release_has_is_read_from_its_source(release: str) -> None:
    assert features(DirectoryTree(RELEASES[release])) == FEATURES[release]


def node(version: int, unique: int = 0) -> str:
    return f"simd_count 1216\ngfx_target_version {version}\nunique_id {unique}\n"


def test_gpus_are_listed_in_the_drivers_order(tmp_path: Path) -> None:
    nodes = {"0": node(0), "10": node(110000), "2": node(90402, 7), "stray": node(90402)}
    write_tree(tmp_path, {f"{name}/properties": text for name, text in nodes.items()})
    write_tree(tmp_path, {"3/name": "no properties"})
    assert gpus(tmp_path) == (Gpu(2, "gfx942", 7), Gpu(10, "gfx1100", 0))


@pytest.mark.parametrize(
    ("environ", "seen"),
    [
        ({}, (0, 1, 2)),
        ({"HIP_VISIBLE_DEVICES": "2,0"}, (2, 0)),
        ({"HIP_VISIBLE_DEVICES": ""}, (0, 1, 2)),
        ({"HIP_VISIBLE_DEVICES": "", "CUDA_VISIBLE_DEVICES": "1"}, (1,)),
        ({"HIP_VISIBLE_DEVICES": "0", "CUDA_VISIBLE_DEVICES": "1"}, (0,)),
        ({"ROCR_VISIBLE_DEVICES": "2,1", "HIP_VISIBLE_DEVICES": "0"}, (2,)),
        ({"ROCR_VISIBLE_DEVICES": "GPU-00000000000000ff"}, (1,)),
        ({"ROCR_VISIBLE_DEVICES": "gpu-00000000000000FF,0"}, (1, 0)),
        ({"ROCR_VISIBLE_DEVICES": ""}, ()),
        ({"HIP_VISIBLE_DEVICES": "1,9,0"}, (1,)),
        ({"HIP_VISIBLE_DEVICES": "1,1,0"}, (1,)),
    ],
)
def test_which_gpus_a_process_sees(environ: dict[str, str], seen: tuple[int, ...]) -> None:
    three = (Gpu(1, "gfx942"), Gpu(2, "gfx942", 255), Gpu(3, "gfx1100"))
    assert visibility.visible(three, environ) == tuple(three[number] for number in seen)


def test_rocm_is_looked_for_where_it_is_said_to_be(tmp_path: Path) -> None:
    write_tree(tmp_path, {".info/version": "6.4.1-83\n", "bin/hipcc": "#!/bin/sh\n"})
    (tmp_path / "bin/hipcc").chmod(0o755)
    machine = gathering.machine({"ROCM_PATH": str(tmp_path), "PATH": "/nowhere"})
    assert (machine.rocm, machine.hipcc) == ("6.4.1-83", str(tmp_path / "bin/hipcc"))
    assert gathering.machine({"ROCM_PATH": str(tmp_path / "bin"), "PATH": ""}).rocm is None
