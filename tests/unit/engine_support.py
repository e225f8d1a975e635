"""Source trees, patches and processes for the tests of the engine. Imports neither torch nor sglang."""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
import sysconfig
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING

import overlay
from overlay import fingerprint
from overlay.model import ABSENT, Facts, Image, Method, Need, Patch, Slot, Target, Variant
from overlay.platform import Platform
from overlay.registry import Registry, builtin
from overlay.source import module_file

if TYPE_CHECKING:
    import pytest

ROOT = Path(overlay.__file__).parents[1]
LAYERNORM = "sglang/srt/layers/layernorm.py"
ROCM = Platform("rocm", "gfx942")

ALPHA = Slot("sglang.srt.alpha", "Alpha.forward")
BETA = Slot("sglang.srt.beta", "beta")
ALPHA_TEXT = 'class Alpha:\n    def forward(self):\n        return "upstream"\n'
BETA_TEXT = 'def beta():\n    return "upstream"\n'


def _releases() -> dict[str, Path]:
    """The real releases on this machine: version -> the folder that holds `sglang/`."""
    found = {path.parent.name: path.parent for path in sorted(ROOT.glob(".releases/*/sglang"))}
    installed = Path(sysconfig.get_path("purelib"))
    for folder in installed.glob("sglang-*.dist-info"):
        found[folder.name.removeprefix("sglang-").removesuffix(".dist-info")] = installed
    return found


RELEASES = _releases()


def write_tree(root: Path, files: Mapping[str, str | bytes]) -> Path:
    """Write files given relative to `root`; returns `root`."""
    for name, text in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return root


def executed(path: Path, monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """The module of a file, imported under the file's name for as long as the test runs."""
    spec = importlib.util.spec_from_file_location(path.stem, path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, path.stem, module)
    spec.loader.exec_module(module)
    return module


def synthetic(root: Path, version: str = "0.5.9", **changed: str | bytes) -> Path:
    """A package `sglang` of two small modules, beside a `torch` that says it is a ROCm build and does nothing."""
    modules: dict[str, str | bytes] = {"alpha": ALPHA_TEXT, "beta": BETA_TEXT, **changed}
    return write_tree(
        root,
        {
            "torch/__init__.py": "from torch import version\n",
            "torch/version.py": "hip = '6.4.43484'\ncuda = None\n",
            "sglang/__init__.py": "",
            "sglang/_version.py": f"__version__ = version = {version!r}\n",
            "sglang/srt/__init__.py": "import torch\n",
            **{f"sglang/srt/{name.replace('__', '/')}.py": text for name, text in modules.items()},
        },
    )


def slim_copy(release: Path, root: Path) -> Path:
    """What the built-in patches read of a real release, copied."""
    version = next(name for name in ("sglang/_version.py", "sglang/version.py") if (release / name).exists())
    modules = {image.slot.module for patch in builtin() for variant in patch.variants for image in variant.images}
    sources = {name for module in modules for name in module_file(module) if (release / name).exists()}
    files = {name: (release / name).read_bytes() for name in (version, "sglang/__init__.py", *sorted(sources))}
    return write_tree(root, files)


def digest_of(text: str, qualname: str) -> str:
    tree = fingerprint.parse(text.encode())
    assert tree is not None
    return fingerprint.observe(tree, qualname)


def returning(value: object) -> Callable[[object], object]:
    """A `make` whose replacement returns `value`."""

    def make(_original: object) -> object:
        def replacement(*_args: object) -> object:
            return value

        return replacement

    return make


def variant(
    *images: Image, needed: bool = True, name: str = "only", targets: tuple[Target, ...] | None = None
) -> Variant:
    filled = tuple(Target(image.slot, Method.REPLACE, returning("patched")) for image in images)

    def need(_facts: Facts) -> Need:
        return Need(needed, "needed here" if needed else "upstream has it")

    return Variant(name, images, need, filled if targets is None else targets)


ALPHA_IMAGE = Image(ALPHA, frozenset({digest_of(ALPHA_TEXT, "Alpha.forward")}))
BETA_IMAGE = Image(BETA, frozenset({digest_of(BETA_TEXT, "beta")}))
ABSENT_IMAGE = Image(Slot("sglang.srt.alpha", "Alpha.added"), frozenset({ABSENT}))

PATCH = Patch(
    id="alpha",
    title="a patch of Alpha",
    why="a test",
    upstream=("#1",),
    contained_since="0.6",
    versions=">=0.5.7,<0.5.12",
    variants=(variant(ALPHA_IMAGE),),
    remove_when="never",
    verified_by="this test",
)
BETA_PATCH = replace(PATCH, id="beta", variants=(variant(BETA_IMAGE),))


def registry(*patches: Patch) -> Registry:
    return Registry(patches or (PATCH,))


def bare_site(root: Path) -> Path:
    """A folder that holds what the overlay depends on and nothing else: no sglang, no torch."""
    root.mkdir()
    for name in ("click", "packaging", "wrapt"):
        (root / name).symlink_to(Path(sysconfig.get_path("purelib")) / name)
    return root


@dataclass(frozen=True)
class Ended:
    """A process that ended: exit status, output, and the status files it and its children left."""

    code: int
    out: str
    err: str
    run_dir: Path

    @property
    def processes(self) -> list[dict[str, object]]:
        return [json.loads(path.read_text()) for path in sorted(self.run_dir.glob("*.json"))]

    def states(self) -> dict[str, tuple[str, str]]:
        """Patch id -> state and reason, of the only process."""
        (process,) = self.processes
        patches = process["patches"]
        assert isinstance(patches, list)
        return {patch["id"]: (patch["state"], patch["reason"]) for patch in patches}


def clean_environ(**added: str) -> dict[str, str]:
    """This environment without anything of ours, or of Python's, that could change what a child does."""
    kept = {k: v for k, v in os.environ.items() if not k.startswith(("AMD_SGLANG_", "SGLANG_", "PYTHON", "COV_"))}
    return {**kept, "PYTHONDONTWRITEBYTECODE": "1", **added}


def python(
    *arguments: str, path: tuple[Path, ...] = (), cwd: Path | None = None, environ: Mapping[str, str] | None = None
) -> Ended:
    """Run this Python with the overlay under test, and `path` before it, on its path."""
    added = {"PYTHONPATH": os.pathsep.join(map(str, (*path, ROOT))), **(environ or {})}
    done = subprocess.run(
        [sys.executable, *arguments],
        env=clean_environ(**added),
        cwd=cwd,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    return Ended(done.returncode, done.stdout, done.stderr, Path(added.get("AMD_SGLANG_RUN_DIR", ".")))
