"""What the checks are made from. Data only: `gather` fills it, a test may write it by hand."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from overlay.doctor.arguments import ServerArguments
from overlay.kfd import Gpu
from overlay.model import Pack, Patch
from overlay.plan import Plan
from overlay.platform import Platform
from overlay.version import SglangVersion


@dataclass(frozen=True)
class Machine:
    """The driver and the ROCm installation. `device` says whether /dev/kfd can be opened, None where there is none;
    `rocm` is the version in the ROCm folder, None without one."""

    gpus: tuple[Gpu, ...] = ()
    device: bool | None = None
    rocm: str | None = None
    hipcc: str | None = None


@dataclass(frozen=True)
class Torch:
    """The build constants of torch. `hip` is None in a build that is not for ROCm."""

    version: str
    hip: str | None


@dataclass(frozen=True)
class Binary:
    """What the bytes of an extension module show. `archs` are its gfx code objects; `sealed` is true if some are in a
    compressed bundle, whose names cannot be read; `hip` and `cuda` are the runtimes it is linked against."""

    path: Path
    archs: frozenset[str] = frozenset()
    sealed: bool = False
    hip: bool = False
    cuda: bool = False


@dataclass(frozen=True)
class Aiter:
    """The import package `aiter`. `amd` tells AMD's kernels from PyPI's asyncio helpers of the same name;
    `shared_semaphore` is None where the source does not say; `blaslt_shapes` counts the tuned shapes of its GEMM table
    that go to hipBLASLt; `binaries` are its prebuilt kernels (a sample)."""

    path: str
    amd: bool
    version: str | None = None
    asyncio_version: str | None = None
    shared_semaphore: bool | None = None
    blaslt_shapes: int = 0
    binaries: tuple[Binary, ...] = ()


@dataclass(frozen=True)
class Kernels:
    """The import package `sgl_kernel` and its extension modules."""

    path: str
    binaries: tuple[Binary, ...] = ()


@dataclass(frozen=True)
class Features:
    """Which of the code the stream variables are about this sglang has."""

    qwen3_5: bool = False
    alt_stream: bool = False
    gdn_projection: bool = False
    fused_qk_norm: bool = False
    shared_expert_fusion: bool = False
    multi_stream: bool = False
    tuned_gemm: bool = False
    mori_async: bool = False
    mori_sdma: bool = False
    mori_ep_v2: bool = False
    plugins: bool = False
    redirects_caches: bool = False


@dataclass(frozen=True)
class Sglang:
    """The sglang that a launch here would run. `metadata` are the versions of the dist-infos beside it; `hidden` is
    another copy further down the path, hidden because the working directory comes first."""

    path: str
    version: SglangVersion
    metadata: tuple[str, ...] = ()
    hidden: str | None = None
    features: Features = Features()


@dataclass(frozen=True)
class Folder:
    """A folder that a server writes to: what for, where, by which variable it is moved, and whether it can be written
    (or made, where it does not exist)."""

    purpose: str
    path: Path
    variable: str
    writable: bool


@dataclass(frozen=True)
class Meddler:
    """Something besides this overlay that runs at interpreter start or inside sglang, and knows sglang."""

    kind: str
    name: str
    where: str


@dataclass(frozen=True)
class Facts:
    """Everything the checks may ask. What could not be had is None, and `unanswered` says why. `environ` is what a
    launch would make of the environment that was `given`."""

    environ: Mapping[str, str]
    given: Mapping[str, str] = field(default_factory=dict)
    arguments: ServerArguments = field(default_factory=ServerArguments)
    platform: Platform = field(default_factory=lambda: Platform("none"))
    machine: Machine = Machine()
    torch: Torch | None = None
    aiter: Aiter | None = None
    kernels: Kernels | None = None
    wrapt: str | None = None
    wrapt_extension: bool = False
    sglang: Sglang | None = None
    plan: Plan | None = None
    #: What a launch would load, and every pack that is installed, named or not.
    patches: tuple[Patch, ...] = ()
    packs: tuple[Pack, ...] = ()
    #: Patches that this release needs and AMD_SGLANG_DISABLE keeps away.
    withheld: frozenset[str] = frozenset()
    folders: tuple[Folder, ...] = ()
    meddlers: tuple[Meddler, ...] = ()
    #: What was asked -> the error that answered: "sglang", "packs", "switches", "plan", "delivery".
    unanswered: Mapping[str, str] = field(default_factory=dict)
