"""Which check proves which patches on the real classes of which releases, and in which environment it has to run.

The files lie in `in_release/`; each runs under the overlay in the simulated ROCm, in a process of its own.
"""

from __future__ import annotations

import subprocess
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from packaging.specifiers import SpecifierSet

from tests.releases import run_simulated

IN_RELEASE = Path(__file__).parent / "in_release"


@dataclass(frozen=True)
class Setting:
    """What a process of a release is started with: the simulated GPU, options of the overlay, and variables."""

    arch: str = "gfx942"
    options: tuple[str, ...] = ()
    environ: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Check:
    """A file of checks, the patches it proves, and the releases where this setting brings those to life."""

    file: str
    patches: tuple[str, ...]
    setting: Setting
    releases: str = ""

    def is_for(self, release: str) -> bool:
        return SpecifierSet(self.releases).contains(release)


#: aiter is there and on, as the simulation starts a server unless told otherwise.
AITER = Setting()
WITHOUT_AITER = Setting(environ={"SGLANG_USE_AITER": "0"})
#: The other patches of the norms fill methods that this check reads.
VLLM_NORMS = Setting(
    options=("--disable", "gemma-rmsnorm", "--disable", "fix-deepstack-residual"), environ=WITHOUT_AITER.environ
)
ALT_STREAM = Setting(environ={"SGLANG_ALT_STREAM": "1"})
#: Two variables that are off by default, and bring the code to life that two of the fixes are about.
DEEPSEEK_V4 = Setting(
    "gfx950",
    environ={"SGLANG_OPT_FP8_WO_A_FUSED_INVROPE": "1", "SGLANG_HACK_FLASHMLA_BACKEND": "triton"},
)

CHECKS = (
    Check("check_gemma_rmsnorm.py", ("gemma-rmsnorm",), AITER, "<0.5.16"),
    Check("check_gemma_rmsnorm.py", ("gemma-rmsnorm",), WITHOUT_AITER, ">=0.5.16"),
    Check("check_fix_vllm_norm_signature.py", ("fix-vllm-norm-signature",), VLLM_NORMS),
    Check("check_fix_deepstack_residual.py", ("fix-deepstack-residual",), AITER, ">=0.5.8,!=0.5.9,<0.5.21"),
    Check("check_qwen3_fused_attention.py", ("qwen3-fused-attention",), AITER, "<0.5.10"),
    Check("check_fix_fused_mrope_guards.py", ("fix-fused-mrope-guards",), AITER, ">=0.5.10"),
    Check("check_greedy_sampler.py", ("greedy-sampler",), AITER, "<0.5.13"),
    Check("check_fix_aiter_greedy_sample.py", ("fix-aiter-greedy-sample",), AITER, ">=0.5.13"),
    Check("check_dual_stream_races.py", ("fix-dual-stream-inplace",), ALT_STREAM, ">=0.5.9"),
    Check("check_qwen3_5_alt_stream.py", ("qwen3_5-alt-stream",), ALT_STREAM, ">=0.5.9,<0.5.13"),
    Check(
        "check_deepseek_dual_stream.py", ("fix-dual-stream-scaling", "deepseek-dual-stream"), AITER, ">=0.5.9,<0.5.13"
    ),
    Check("check_mori_async_warning.py", ("mori-async-warning",), AITER, ">=0.5.9,<0.5.12"),
    Check("check_fix_mhc_import_cache.py", ("fix-mhc-import-cache",), DEEPSEEK_V4, ">=0.5.13"),
    Check("check_fix_mhc_boundary.py", ("fix-mhc-env-read", "fix-mhc-fn-transpose"), DEEPSEEK_V4, ">=0.5.19"),
    Check("check_fix_freqs_cache.py", ("fix-freqs-cache",), DEEPSEEK_V4, ">=0.5.20"),
    Check("check_fix_verify_page_table.py", ("fix-verify-page-table",), DEEPSEEK_V4, ">=0.5.13,<0.5.20"),
    Check("check_fix_triton_cache_dir.py", ("fix-triton-cache-dir",), DEEPSEEK_V4, ">=0.5.13,<0.5.14"),
    Check("check_dsv4_fused_mhc.py", ("dsv4-fused-mhc",), AITER, ">=0.5.13,<0.5.19"),
)


def checks_for(release: str) -> tuple[Check, ...]:
    """The checks of one release."""
    return tuple(check for check in CHECKS if check.is_for(release))


def run(release: str, setting: Setting, *files: str) -> subprocess.CompletedProcess[str]:
    """Run files of checks on a provisioned release, all in one process."""
    pytest = ("-m", "pytest", "-q", "-p", "no:cacheprovider", *(str(IN_RELEASE / file) for file in files))
    return run_simulated(release, "--simulate", setting.arch, *setting.options, *pytest, **setting.environ)
