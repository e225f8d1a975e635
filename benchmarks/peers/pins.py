"""Which peers, in which versions, and which of their files."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

#: The Python and platform that wheels are fetched for, whichever run the command.
PYTHON, PLATFORMS = "3.12", ("manylinux_2_34_x86_64", "manylinux2014_x86_64")


@dataclass(frozen=True)
class Wheel:
    """A distribution on the package index, fetched without its dependencies."""

    requirement: str
    sha256: str
    keep: tuple[str, ...]
    """globs of the files to unpack; an asterisk matches slashes too"""

    @property
    def label(self) -> str:
        return self.requirement


@dataclass(frozen=True)
class Commit:
    """Files of one commit in a git directory that the user names."""

    repository: str
    revision: str
    keep: tuple[str, ...]
    strip: str
    """what the files' paths begin with in the repository"""
    prefix: str = ""
    """what they begin with in `.peers` instead"""

    @property
    def label(self) -> str:
        return f"{self.repository} at {self.revision[:10]}"


@dataclass(frozen=True)
class Peer:
    """One package. `stubs` are files of it that are written rather than fetched: their paths, and what is in them."""

    name: str
    package: str
    source: Wheel | Commit
    stubs: Mapping[str, str] = field(default_factory=dict)


_NOT_MI300 = '''"""Stands in for sglang's: benchmarks run these kernels where FP8 is e4m3fn."""


def is_gfx942_supported() -> bool:
    return False
'''

_SPARSE = "sglang/kernels/ops/attention/dsv4/triton_sparse_decode"
_AITER = "aiter/ops/triton"

PEERS = (
    Peer(
        "liger",
        "liger_kernel",
        Wheel(
            "liger-kernel==0.8.5",
            "60789cd576af073ab9b192b570d2597fd0cdad489cd62fb44fb16256d43754c9",
            ("liger_kernel/*",),
        ),
    ),
    Peer(
        "sglang",
        "sglang",
        Wheel(
            "sglang==0.5.23",
            "8d257a319395b322bb1be327d05e5528859358153c8563b04c0a4a3c8af164b6",
            (
                "sglang/kernels/ops/layernorm/minimax_m3_rmsnorm.py",
                f"{_SPARSE}/triton_mla_kernels_decode_*.py",
            ),
        ),
        stubs={"sglang/srt/utils/common.py": _NOT_MI300},
    ),
    Peer(
        "sgl_kernel",
        "sgl_kernel",
        Wheel(
            "sglang-kernel==0.4.2.post2",
            "f275ce01010933c4ea655e832a05442b766ab8f23dcfd6ff678b15e295d42203",
            ("sgl_kernel/*.py", "sgl_kernel/sm90/common_ops*", "sglang_kernel-*.dist-info/*"),
        ),
    ),
    Peer(
        "aiter",
        "aiter",
        Commit(
            "ROCm/aiter",
            "e4048607a535ace3a2b51ded31b1c8c2d45c0879",
            (
                f"{_AITER}/configs/gfx942-MHC_FUSED_SINKHORN*.json",
                f"{_AITER}/fusions/mhc.py",
                f"{_AITER}/_triton_kernels/fusions/__init__.py",
                f"{_AITER}/_triton_kernels/fusions/attn_res.py",
                f"{_AITER}/_triton_kernels/fusions/mhc.py",
                f"{_AITER}/normalization/rmsnorm.py",
                f"{_AITER}/_triton_kernels/normalization/rmsnorm.py",
                f"{_AITER}/rope/fused_qkv_split_qk_norm_rope_cache.py",
                f"{_AITER}/rope/rope.py",
                f"{_AITER}/_triton_kernels/rope/fused_qkv_split_qk_norm_rope_cache.py",
                f"{_AITER}/_triton_kernels/rope/rope.py",
                *(
                    f"{_AITER}/utils/{name}.py"
                    for name in ("core", "device_info", "logger", "mhc_config_utils", "types")
                ),
                *(f"{_AITER}/utils/_triton/{name}.py" for name in ("arch_info", "kernel_repr")),
            ),
            strip="",
        ),
    ),
    Peer(
        "sglang_dev",
        "sglang_dev",
        Commit(
            "1am9trash/sglang",
            "deaba74745d7f98485211ce8db406ecefb63512d",
            ("python/sglang/srt/layers/attention/nsa/triton_decode/triton_mla_kernels_decode_*.py",),
            strip="python/sglang/srt/layers/attention/nsa/",
            prefix="sglang_dev/",
        ),
    ),
)
