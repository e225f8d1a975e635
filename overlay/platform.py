"""What accelerator stack this is, read from files: no torch, no driver call."""

from __future__ import annotations

import ast
import importlib.util
from collections.abc import Mapping
from pathlib import Path

from overlay import gates, kfd
from overlay.records import dataclass
from overlay.visibility import visible

KINDS = ("rocm", "cuda", "cpu")
_KFD_NODES = kfd.NODES


@dataclass(frozen=True)
class Platform:
    """`kind` is what the installed torch was built for; `arch` the gfx name of the first visible GPU; `aiter` and
    `vllm` the versions found, None where absent; `simulated` is true where none of it is real."""

    kind: str
    arch: str | None = None
    aiter: str | None = None
    vllm: str | None = None
    simulated: bool = False

    def to_json(self) -> dict[str, object]:
        return {
            "kind": self.kind,
            "arch": self.arch,
            "aiter": self.aiter,
            "vllm": self.vllm,
            "simulated": self.simulated,
        }

    @property
    def torch(self) -> str:
        """What there is of torch, as half a sentence."""
        return "no torch was found" if self.kind == "none" else f"this torch is built for {self.kind}"

    def __str__(self) -> str:
        name = " ".join(filter(None, (self.kind, self.arch)))
        return f"{name} SIMULATED on CPU" if self.simulated else name


def detect(environ: Mapping[str, str]) -> Platform:
    """The platform of this environment, or the simulated one it asks for."""
    arch = gates.SIMULATE.read(environ)
    if arch:
        from overlay.simulate.settings import arch_named, simulated_aiter

        return Platform("rocm", arch_named(arch).name, aiter=simulated_aiter(environ), simulated=True)
    return Platform(_torch_kind(), _first_gpu(environ), _aiter_version(), _vllm_version())


def _torch_kind() -> str:
    """rocm, cuda or cpu, by the constants that torch's build wrote into torch/version.py; "none" without torch."""
    spec = importlib.util.find_spec("torch")
    if spec is None or not spec.submodule_search_locations:
        return "none"
    try:
        module = ast.parse((Path(spec.submodule_search_locations[0]) / "version.py").read_bytes())
    except (OSError, SyntaxError, ValueError):
        return "none"
    built_for: dict[str, object] = {}
    for statement in module.body:
        if not isinstance(statement, ast.Assign | ast.AnnAssign) or not isinstance(statement.value, ast.Constant):
            continue
        for target in statement.targets if isinstance(statement, ast.Assign) else [statement.target]:
            if isinstance(target, ast.Name):
                built_for[target.id] = statement.value.value
    if built_for.get("hip"):
        return "rocm"
    return "cuda" if built_for.get("cuda") else "cpu"


def _first_gpu(environ: Mapping[str, str]) -> str | None:
    """The gfx name of device 0 as this environment numbers the GPUs of the amdgpu driver."""
    return next((gpu.arch for gpu in visible(kfd.gpus(_KFD_NODES), environ)), None)


def _aiter_version() -> str | None:
    """AMD's aiter only: PyPI's distribution `aiter` is an unrelated asyncio package of the same import name."""
    spec = importlib.util.find_spec("aiter")
    if spec is None or spec.origin is None or not (Path(spec.origin).parent / "ops").is_dir():
        return None
    return _distribution("amd-aiter") or "unknown"


def _vllm_version() -> str | None:
    try:
        installed = importlib.util.find_spec("vllm") is not None
    except ValueError:  # a module that somebody made stands for it, without a spec
        installed = True
    return _distribution("vllm") if installed else None


def _distribution(name: str) -> str | None:
    from importlib.metadata import PackageNotFoundError, version

    try:
        return version(name)
    except PackageNotFoundError:
        return None
