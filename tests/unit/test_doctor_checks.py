"""Every check of the doctor: facts that make it speak, and facts that keep it silent."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from pathlib import Path

import pytest

from overlay.doctor import (
    CHECKS,
    check_hazards,
    check_machine,
    check_packages,
    check_packs,
    check_setup,
    check_streams,
    diagnose,
)
from overlay.doctor.arguments import ServerArguments
from overlay.doctor.facts import Aiter, Binary, Facts, Features, Folder, Kernels, Machine, Meddler, Sglang, Torch
from overlay.doctor.finding import Finding, Level, exit_code
from overlay.kfd import Gpu
from overlay.model import Decision, Pack, State
from overlay.overrides import Overrides
from overlay.plan import Plan
from overlay.platform import Platform
from overlay.version import classify
from tests.unit.engine_support import PATCH

Check = Callable[[Facts], Iterable[Finding]]

MI300 = (Gpu(1, "gfx942", 7), Gpu(2, "gfx942", 8))
MIXED = (Gpu(1, "gfx942", 7), Gpu(2, "gfx1100", 8))
EVERYTHING = Features(
    qwen3_5=True, alt_stream=True, gdn_projection=True, fused_qk_norm=True, shared_expert_fusion=True,
    multi_stream=True, tuned_gemm=True, mori_async=True, mori_sdma=True, plugins=True,
)  # fmt: skip
AITER = Aiter("/site/aiter", amd=True, version="0.1.15", shared_semaphore=False)
KERNELS = Kernels("/site/sgl_kernel", (Binary(Path("common_ops.so"), frozenset({"gfx942"}), hip=True),))
FUSION_OFF = "--disable-shared-experts-fusion"
ALT, MULTI = {"SGLANG_ALT_STREAM": "1"}, {"SGLANG_ROCM_USE_MULTI_STREAM": "1"}


def sglang(version: str = "0.5.13", features: Features = EVERYTHING, **changed: object) -> Sglang:
    known = Sglang("/site/sglang", classify(version), (version,), features=features)
    return replace(known, **changed)  # type: ignore[arg-type]


def plan_of(**states: State) -> Plan:
    """A plan with these patches; `__` stands for a hyphen, for identifiers have none."""
    decisions = tuple(
        Decision(replace(PATCH, id=name.replace("__", "-")), state, "a reason") for name, state in states.items()
    )
    return Plan("/site/sglang", classify("0.5.12"), Platform("rocm", "gfx942"), decisions, (), Overrides())


#: A machine on which nothing is wrong and no stream is asked for.
SOUND = Facts(
    environ={"SGLANG_USE_AITER": "1"},
    platform=Platform("rocm", "gfx942", "0.1.15"),
    machine=Machine(MI300, device=True, rocm="6.4.1-83", hipcc="/opt/rocm/bin/hipcc"),
    torch=Torch("2.9.0+rocm6.4", "6.4.43484-123eb5128"),
    aiter=AITER,
    kernels=KERNELS,
    wrapt="2.0",
    wrapt_extension=True,
    sglang=sglang(),
    plan=plan_of(alpha=State.PLANNED),
    folders=(Folder("kernels", Path("/root/.triton/cache"), "TRITON_CACHE_DIR", True),),
)


def facts(*arguments: str, environ: dict[str, str] | None = None, **changed: object) -> Facts:
    """SOUND with variables and arguments added and facts changed."""
    server = ServerArguments.of(arguments)
    environ = {**SOUND.environ, **(environ or {})}
    return replace(SOUND, environ=environ, arguments=server, **changed)  # type: ignore[arg-type]


def machine(**changed: object) -> Machine:
    return replace(SOUND.machine, **changed)  # type: ignore[arg-type]


def kernels(*archs: str, **changed: bool) -> Kernels:
    return Kernels("/site/sgl_kernel", (Binary(Path("common_ops.so"), frozenset(archs), **changed),))


UNOBEYED = sglang("0.5.11", replace(EVERYTHING, alt_stream=False, multi_stream=False, mori_async=True))
OLD = sglang("0.5.9", Features(qwen3_5=True))
QWEN_PATCHED = plan_of(qwen3_5__alt__stream=State.PLANNED)
DEEPSEEK_PATCHED = plan_of(deepseek__dual__stream=State.PLANNED)
CPU = Platform("cpu")
SIMULATED = Platform("rocm", "gfx942", simulated=True)
SHARING = replace(AITER, version="0.1.13", shared_semaphore=True)
PLUGIN = Meddler("sglang.srt.plugins", "hooks", "hooks:load of vendor")
CAPTURE_ONLY = {check_hazards.CAPTURE_ONLY: "1"}
PACK = Pack("strange", "strange-pack", "1.2")
LOW_LATENCY = ("--moe-a2a-backend=mori", "--deepep-mode", "low_latency")


@dataclass(frozen=True)
class Case:
    """What a check says about some facts: level, and words of its message and of its fix."""

    check: Check
    facts: Facts
    level: Level
    message: str
    fix: str = ""


OK, INFO, WARNING, ERROR = Level
SPEAKING = [
    Case(
        check_setup.denied, facts(environ={"AMD_SGLANG_DENIED": '{"alpha": "verify found its kernel wrong"}'}), WARNING,
        "alpha is kept away: verify found its kernel wrong", "amd-sglang verify alpha",
    ),
    Case(
        check_setup.denied, facts(unanswered={"denylist": "line 3 is wrong"}), ERROR, "line 3 is wrong", "before that",
    ),
    Case(check_machine.gpu, SOUND, OK, "2 x gfx942"),
    Case(check_machine.gpu, facts(machine=Machine()), WARNING, "lists no GPU", "--device=/dev/kfd"),
    Case(check_machine.gpu, facts(machine=machine(device=None)), ERROR, "there is no /dev/kfd", "--device=/dev/kfd"),
    Case(check_machine.gpu, facts(machine=machine(device=False)), ERROR, "cannot be opened", "--group-add render"),
    Case(check_machine.gpu, facts(machine=Machine(), platform=SIMULATED), INFO, "SIMULATED"),
    Case(check_machine.gpu, facts(platform=SIMULATED), WARNING, "a real gfx942", "Unset AMD_SGLANG_SIMULATE"),
    Case(
        check_machine.visible_gpus, facts(environ={"HIP_VISIBLE_DEVICES": "7"}), ERROR,
        "HIP_VISIBLE_DEVICES=7 hides every GPU", "numbers from 0 to 1",
    ),
    Case(
        check_machine.visible_gpus, facts(machine=machine(gpus=MIXED)), WARNING,
        "several architectures are visible (gfx1100, gfx942)", "HIP_VISIBLE_DEVICES=0",
    ),
    Case(
        check_machine.visible_gpus, facts(machine=machine(gpus=MIXED), environ={"ROCR_VISIBLE_DEVICES": "1"}),
        WARNING, "ROCR_VISIBLE_DEVICES=1 leaves only gfx1100", "plan --arch gfx1100",
    ),
    Case(
        check_machine.device_variables, facts(environ={"HIP_VISIBLE_DEVICES": "0", "CUDA_VISIBLE_DEVICES": "1"}),
        WARNING, "disagree", "Unset CUDA_VISIBLE_DEVICES",
    ),
    Case(
        check_machine.device_variables, facts(environ={"HSA_OVERRIDE_GFX_VERSION": "9.4.2"}), WARNING,
        "HSA_OVERRIDE_GFX_VERSION=9.4.2", "Unset HSA_OVERRIDE_GFX_VERSION",
    ),
    Case(check_machine.rocm, SOUND, OK, "6.4.1-83, hipcc at /opt/rocm/bin/hipcc"),
    Case(check_machine.rocm, facts(machine=machine(rocm=None)), INFO, "no ROCm in ROCM_PATH", "set ROCM_PATH"),
    Case(check_machine.rocm, facts(machine=machine(rocm="7.0.2")), WARNING, "torch was built for 6.4", "ROCm 6.4"),
    Case(check_machine.rocm, facts(machine=machine(hipcc=None)), WARNING, "no hipcc", "PATH"),
    Case(check_packs.packs, facts(packs=(PACK,)), INFO, "strange-pack 1.2) is installed and off", "--packs strange"),
    Case(
        check_packs.packs, facts(packs=(PACK,), patches=(replace(PATCH, pack=PACK), replace(PATCH, id="beta"))), INFO,
        "third-party code is in force: pack strange (strange-pack 1.2), with alpha",
    ),
    Case(check_packs.packs, facts(unanswered={"packs": "no pack 'x'"}), ERROR, "no pack 'x'", "leave its name out"),
    Case(check_packages.torch, SOUND, OK, "HIP 6.4"),
    Case(check_packages.torch, facts(torch=None), ERROR, "no torch", "ROCm build of torch"),
    Case(check_packages.torch, facts(torch=Torch("2.9.0+cu129", None)), ERROR, "not built for ROCm", "ROCm build"),
    Case(check_packages.torch, facts(torch=Torch("2.9.0+cpu", None), platform=SIMULATED), OK, "by the simulation"),
    Case(
        check_packages.aiter_spelling, facts(given={"SGLANG_USE_AITER": "yes"}), INFO, "'yes' is passed on as 1",
        "SGLANG_USE_AITER=1",
    ),
    Case(check_packages.aiter, SOUND, OK, "amd-aiter 0.1.15"),
    Case(check_packages.aiter, facts(aiter=None), ERROR, "no aiter to import", "SGLANG_USE_AITER=0"),
    Case(check_packages.aiter, facts(aiter=None, environ={"SGLANG_USE_AITER": "0"}), INFO, "not installed"),
    Case(
        check_packages.aiter, facts(aiter=Aiter("/site/aiter", amd=False, asyncio_version="0.13")), ERROR,
        "PyPI's asyncio package aiter 0.13", "pip uninstall -y aiter",
    ),
    Case(
        check_packages.aiter, facts(aiter=Aiter("/a", amd=False), environ={"SGLANG_USE_AITER": "0"}), WARNING,
        "asyncio package", "pip uninstall -y aiter",
    ),
    Case(
        check_packages.aiter, facts(aiter=replace(AITER, asyncio_version="0.13")), ERROR, "both installed",
        "pip uninstall -y aiter",
    ),
    Case(
        check_packages.aiter, facts(aiter=replace(AITER, binaries=kernels("gfx950").binaries)), ERROR,
        "code for gfx950, not for gfx942", "AITER_JIT_DIR",
    ),
    Case(check_packages.sgl_kernel, SOUND, OK, "built for gfx942"),
    Case(check_packages.sgl_kernel, facts(kernels=None), ERROR, "not installed", "AMDGPU_TARGET=gfx942"),
    Case(check_packages.sgl_kernel, facts(kernels=None, torch=Torch("2.9", None)), INFO, "not installed"),
    Case(check_packages.sgl_kernel, facts(kernels=Kernels("/k")), ERROR, "no extension module", "setup_rocm.py"),
    Case(check_packages.sgl_kernel, facts(kernels=kernels(cuda=True)), ERROR, "built for CUDA", "setup_rocm.py"),
    Case(
        check_packages.sgl_kernel, facts(kernels=kernels("gfx950", hip=True)), ERROR, "not for gfx942",
        "AMDGPU_TARGET=gfx942",
    ),
    Case(check_packages.sgl_kernel, facts(kernels=kernels(hip=True, sealed=True)), INFO, "compressed bundles"),
    Case(check_packages.sgl_kernel, facts(kernels=kernels(hip=True)), INFO, "it names none"),
    Case(check_packages.wrapt, SOUND, OK, "2.0 with its C extension"),
    Case(check_packages.wrapt, facts(wrapt=None), ERROR, "cannot hook imports", "pip install 'wrapt>=1.17'"),
    Case(check_packages.wrapt, facts(wrapt_extension=False), INFO, "without its C extension", "reinstall wrapt"),
    Case(check_packages.wrapt, facts(environ={"WRAPT_DISABLE_EXTENSIONS": "1"}), INFO, "without its C extension"),
    Case(check_setup.sglang, SOUND, OK, "0.5.13 at /site/sglang"),
    Case(check_setup.sglang, facts(sglang=None, unanswered={"sglang": "it is gone"}), ERROR, "it is gone", "directory"),
    Case(
        check_setup.sglang, facts(sglang=sglang(hidden="/other/sglang")), WARNING, "not /other/sglang",
        "Change to another directory",
    ),
    Case(
        check_setup.sglang_version, facts(sglang=sglang(metadata=("0.5.12", "0.5.13"))), WARNING, "0.5.12, 0.5.13",
        "pip uninstall -y sglang",
    ),
    Case(
        check_setup.sglang_version, facts(sglang=sglang(metadata=("0.5.12",))), WARNING,
        "file says 0.5.13, the metadata 0.5.12", "pip uninstall -y sglang",
    ),
    Case(check_setup.sglang_version, facts(sglang=sglang("0.5.13.dev3+gabc")), INFO, "no published release (dev)"),
    Case(
        check_setup.switches, facts(unanswered={"switches": "X=2 is not valid", "plan": "X=2 is not valid"}), ERROR,
        "X=2 is not valid", "unset",
    ),
    Case(check_setup.plan, SOUND, OK, "1 patches planned, 0 contained"),
    Case(check_setup.plan, facts(plan=plan_of(a=State.SOURCE_MISMATCH)), WARNING, "a is source-mismatch", "explain a"),
    Case(
        check_setup.plan, facts(plan=plan_of(a=State.CONFLICT), environ={"AMD_SGLANG_STRICT": "1"}), ERROR,
        "--strict will not start", "--disable a",
    ),
    Case(check_setup.delivery, SOUND, OK, "a child interpreter starts this overlay"),
    Case(check_setup.delivery, facts(unanswered={"delivery": "no child"}), ERROR, "no child", "pip install"),
    Case(
        check_setup.other_overlays, facts(meddlers=(Meddler("start file", "vendor.pth", "/site/vendor.pth"),)),
        WARNING, "/site/vendor.pth runs in every interpreter", "Remove vendor.pth",
    ),
    Case(check_setup.other_overlays, facts(meddlers=(PLUGIN,)), INFO, "plugin hooks", "SGLANG_PLUGINS"),
    Case(
        check_setup.other_overlays, facts(meddlers=(PLUGIN,), environ={"SGLANG_PLUGINS": "x, hooks"}), INFO, "hooks",
    ),
    Case(check_setup.folders, SOUND, OK, "all 1 caches"),
    Case(
        check_setup.folders, facts(folders=(Folder("kernels", Path("/ro"), "TRITON_CACHE_DIR", False),)), WARNING,
        "kernels: /ro cannot be written", "Set TRITON_CACHE_DIR",
    ),
    Case(
        check_setup.interpreted_kernels, facts(environ={"TRITON_INTERPRET": "1"}), ERROR, "run as Python",
        "Unset TRITON_INTERPRET",
    ),
    Case(check_streams.values, SOUND, OK, "no second stream"),
    Case(
        check_streams.values, facts(environ={"SGLANG_ROCM_USE_MULTI_STREAM": "yes"}), WARNING, "Mori's dispatcher",
        "SGLANG_ROCM_USE_MULTI_STREAM=1",
    ),
    Case(
        check_streams.values, facts(environ={**MULTI, "SGLANG_ALT_STREAM": "on"}), ERROR, "SGLANG_ALT_STREAM='on'",
        "SGLANG_ALT_STREAM=1",
    ),
    Case(
        check_streams.without_parent, facts(environ={"SGLANG_QK_NORM_ALT_STREAM": "1"}), WARNING,
        "SGLANG_QK_NORM_ALT_STREAM does nothing while SGLANG_ALT_STREAM is off", "Set SGLANG_ALT_STREAM=1",
    ),
    Case(
        check_streams.without_effect, facts(environ=ALT, sglang=UNOBEYED), WARNING,
        "sglang 0.5.11 has no second stream for Qwen3.5", "Unset SGLANG_ALT_STREAM",
    ),
    Case(
        check_streams.without_effect,
        facts(environ=MULTI, sglang=UNOBEYED, plan=plan_of(deepseek__dual__stream=State.SOURCE_MISMATCH)), WARNING,
        "deepseek-dual-stream is source-mismatch: a reason", "Unset SGLANG_ROCM_USE_MULTI_STREAM",
    ),
    Case(check_streams.without_effect, facts(environ=ALT, platform=CPU), WARNING, "not ROCm but cpu", "Unset"),
    Case(
        check_streams.gdn_projection,
        facts(environ={**ALT, "SGLANG_GDN_QKVZ_BA_ALT_STREAM": "1"}, sglang=OLD, plan=QWEN_PATCHED), WARNING,
        "no separate input projections", "0.5.10 or later",
    ),
    Case(
        check_streams.fused_qk_norm, facts(environ={**ALT, "SGLANG_QK_NORM_ALT_STREAM": "1"}), WARNING,
        "one fused QK-norm kernel", "Unset SGLANG_QK_NORM_ALT_STREAM",
    ),
    Case(check_streams.shared_expert_fusion, facts(environ=ALT), WARNING, "with aiter", FUSION_OFF),
    Case(
        check_streams.shared_expert_fusion, facts(environ=ALT, sglang=UNOBEYED, plan=QWEN_PATCHED), WARNING,
        "with aiter", FUSION_OFF,
    ),
    Case(
        check_streams.shared_expert_fusion, facts(environ={**ALT, "SGLANG_USE_AITER": "0"}), WARNING,
        "only under --disable-shared-experts-fusion", FUSION_OFF,
    ),
    Case(check_streams.shared_expert_fusion, facts(environ=MULTI), WARNING, "DeepSeek-V3 and R1 fuse", FUSION_OFF),
    Case(
        check_streams.all_to_all,
        facts("--moe-a2a-backend", "mori", environ=ALT, sglang=UNOBEYED, plan=QWEN_PATCHED), WARNING,
        "does not reach Qwen3.5's MoE blocks", "--moe-a2a-backend none",
    ),
    Case(
        check_streams.graphs, facts("--disable-cuda-graph", environ={**ALT, **MULTI}), WARNING,
        "SGLANG_ALT_STREAM and SGLANG_ROCM_USE_MULTI_STREAM takes effect only inside captured graphs",
        "Drop --disable-cuda-graph",
    ),
    Case(
        check_streams.queues, facts(environ={**ALT, "GPU_MAX_HW_QUEUES": "4"}), WARNING, "below 5",
        "GPU_MAX_HW_QUEUES=5",
    ),
    Case(check_streams.queues, facts(environ={**ALT, "GPU_MAX_HW_QUEUES": "6"}), OK, "GPU_MAX_HW_QUEUES=6"),
    Case(check_streams.queues, facts(environ=ALT), OK, "`amd-sglang launch` sets GPU_MAX_HW_QUEUES=5"),
    Case(
        check_streams.serialization, facts(environ={**ALT, "AMD_SERIALIZE_KERNEL": "3"}), WARNING,
        "AMD_SERIALIZE_KERNEL=3 lets nothing overlap", "Unset AMD_SERIALIZE_KERNEL",
    ),
    Case(
        check_streams.config_file, facts("--config", "server.yaml", environ=ALT), WARNING, "server.yaml was not read",
        "command line",
    ),
    Case(
        check_hazards.numbers, facts(
            environ=MULTI,
            plan=plan_of(fix__dual__stream__scaling=State.DISABLED),
            withheld=frozenset({"fix-dual-stream-scaling"}),
        ), ERROR,
        "routed experts are scaled twice", "Unset SGLANG_ROCM_USE_MULTI_STREAM",
    ),
    Case(
        check_hazards.numbers, facts(environ=ALT, plan=plan_of(fix__dual__stream__inplace=State.CONFLICT)), ERROR,
        "experts overwrite", "let fix-dual-stream-inplace be applied",
    ),
    Case(
        check_hazards.semaphore, facts(environ=ALT, aiter=SHARING), ERROR,
        "aiter 0.1.13 shares one split-K semaphore", "amd-aiter 0.1.15",
    ),
    Case(
        check_hazards.semaphore,
        facts(environ=MULTI, aiter=SHARING, plan=plan_of(fix__aiter__semaphore=State.DISABLED)), ERROR, "#3288",
        "let fix-aiter-semaphore be applied",
    ),
    Case(
        check_hazards.blaslt_workspace, facts(environ=ALT, aiter=replace(AITER, blaslt_shapes=3)), ERROR,
        "3 shapes of aiter's tuned GEMM table run in hipb_mm", "AITER_CONFIG_GEMM_BF16",
    ),
    Case(
        check_hazards.stream_k, facts(environ=ALT), WARNING, "HIP 6.4.43484-123eb5128 can deadlock",
        "TORCH_BLAS_PREFER_HIPBLASLT=0",
    ),
    Case(
        check_hazards.stream_k, facts(environ=ALT, torch=Torch("2.12", "7.2.53211-e1a6bc5663")), WARNING, "deadlock",
        "TORCH_BLAS_PREFER_HIPBLASLT=0",
    ),
    Case(check_hazards.stream_k, facts(environ=ALT, torch=Torch("2.13", "7.10.0")), INFO, "cannot be known"),
    Case(
        check_hazards.event_waits, facts("--moe-a2a-backend", "deepep", environ=MULTI), WARNING,
        "forks outside captured graphs", "--moe-a2a-backend none",
    ),
    Case(
        check_hazards.event_waits,
        facts("--moe-a2a-backend", "deepep", environ=MULTI, sglang=UNOBEYED, plan=DEEPSEEK_PATCHED), WARNING,
        "forks outside captured graphs", f"{check_hazards.CAPTURE_ONLY}=1",
    ),
    Case(
        check_hazards.mori, facts("--moe-a2a-backend", "mori", environ=MULTI), WARNING,
        "in --deepep-mode auto", "--deepep-mode low_latency",
    ),
    Case(
        check_hazards.mori,
        facts(*LOW_LATENCY, environ={**MULTI, "MORI_ENABLE_SDMA": "1"}, sglang=OLD, plan=DEEPSEEK_PATCHED), WARNING,
        "no AsyncLL kernels", "Unset SGLANG_ROCM_USE_MULTI_STREAM",
    ),
    Case(
        check_hazards.mori,
        facts("--moe-a2a-backend=mori", environ=MULTI, sglang=sglang(features=replace(EVERYTHING, mori_ep_v2=True))),
        INFO, "EPv2", "low_latency",
    ),
]  # fmt: skip

SILENT: list[tuple[Check, Facts]] = [
    (check_machine.gpu, SOUND),
    (check_machine.visible_gpus, facts(environ={"HIP_VISIBLE_DEVICES": "1"})),
    (check_machine.visible_gpus, facts(environ={"HIP_VISIBLE_DEVICES": "7"}, machine=Machine())),
    (check_machine.visible_gpus, facts(machine=machine(gpus=MIXED), environ={"CUDA_VISIBLE_DEVICES": "0"})),
    (check_machine.device_variables, facts(environ={"HIP_VISIBLE_DEVICES": "0", "CUDA_VISIBLE_DEVICES": "0"})),
    (check_machine.rocm, facts(platform=SIMULATED, machine=Machine())),
    (check_packs.packs, facts(patches=(PATCH,))),
    (check_packs.packs, facts(unanswered=dict.fromkeys(("packs", "switches"), "AMD_SGLANG_PACKS=',' is not valid"))),
    (check_packages.torch, SOUND),
    (check_packages.aiter_spelling, facts(given={"SGLANG_USE_AITER": "1"})),
    (check_packages.aiter_spelling, facts(given={"SGLANG_USE_AITER": "bogus"})),
    (check_packages.aiter, facts(aiter=replace(AITER, binaries=kernels("gfx950", sealed=True).binaries))),
    (check_packages.sgl_kernel, facts(platform=SIMULATED, kernels=None)),
    (check_packages.wrapt, SOUND),
    (check_setup.sglang, SOUND),
    (check_setup.sglang_version, SOUND),
    (check_setup.sglang_version, facts(sglang=sglang(metadata=()))),
    (check_setup.switches, facts(unanswered={"sglang": "gone"})),
    (check_setup.plan, facts(plan=None)),
    (check_setup.denied, SOUND),
    (check_setup.delivery, SOUND),
    (check_setup.other_overlays, facts(meddlers=(PLUGIN,), environ={"SGLANG_PLUGINS": "another"})),
    (check_setup.other_overlays, facts(meddlers=(PLUGIN,), sglang=OLD)),
    (check_setup.folders, SOUND),
    (check_setup.interpreted_kernels, facts(platform=SIMULATED, environ={"TRITON_INTERPRET": "1"})),
    (check_setup.interpreted_kernels, facts(environ={"TRITON_INTERPRET": "0"})),
    (check_streams.values, facts(environ=ALT)),
    (check_streams.values, facts(environ={**ALT, "SGLANG_QK_NORM_ALT_STREAM": "on"},
                                 unanswered={"switches": "SGLANG_QK_NORM_ALT_STREAM='on' is not valid"})),
    (check_streams.without_parent, facts(environ={**ALT, "SGLANG_QK_NORM_ALT_STREAM": "1"})),
    (check_streams.without_effect, facts(environ={**ALT, **MULTI})),
    (check_streams.without_effect, facts(environ=ALT, sglang=UNOBEYED, plan=QWEN_PATCHED)),
    (check_streams.without_effect, facts(environ=ALT, sglang=None)),
    (check_streams.gdn_projection, facts(environ={**ALT, "SGLANG_GDN_QKVZ_BA_ALT_STREAM": "1"})),
    (check_streams.gdn_projection, facts(environ=ALT, sglang=OLD, plan=QWEN_PATCHED)),
    (check_streams.fused_qk_norm, facts(environ=ALT)),
    (check_streams.fused_qk_norm,
     facts(environ={**ALT, "SGLANG_QK_NORM_ALT_STREAM": "1"}, sglang=OLD, plan=QWEN_PATCHED)),
    (check_streams.shared_expert_fusion, facts(FUSION_OFF, environ={**ALT, **MULTI})),
    (check_streams.shared_expert_fusion, facts(environ=ALT, sglang=OLD, plan=QWEN_PATCHED)),
    (check_streams.shared_expert_fusion, facts("--moe-a2a-backend=deepep", environ=MULTI)),
    (check_streams.shared_expert_fusion,
     facts(environ={**ALT, "SGLANG_USE_AITER": "0"}, sglang=UNOBEYED, plan=QWEN_PATCHED)),
    (check_streams.all_to_all, facts("--moe-a2a-backend", "mori", environ=ALT)),
    (check_streams.all_to_all, facts(environ=ALT, sglang=UNOBEYED, plan=QWEN_PATCHED)),
    (check_streams.graphs, facts(environ=ALT)),
    (check_streams.graphs, facts("--disable-cuda-graph", "--moe-a2a-backend", "deepep", environ=MULTI)),
    (check_streams.queues, facts(environ={"GPU_MAX_HW_QUEUES": "1"})),
    (check_streams.serialization, facts(environ={**ALT, "AMD_SERIALIZE_KERNEL": "0", "HIP_LAUNCH_BLOCKING": ""})),
    (check_streams.serialization, facts(environ={"HIP_LAUNCH_BLOCKING": "1"})),
    (check_streams.config_file, facts("--config", "server.yaml")),
    (check_hazards.numbers, facts(environ=MULTI, plan=plan_of(fix__dual__stream__scaling=State.CONTAINED))),
    (check_hazards.numbers, facts(environ=MULTI, plan=plan_of(fix__dual__stream__scaling=State.DISABLED))),
    (check_hazards.numbers, facts(environ=ALT, plan=plan_of(fix__dual__stream__scaling=State.CONFLICT))),
    (check_hazards.numbers,
     facts(environ=ALT, sglang=UNOBEYED, plan=plan_of(fix__dual__stream__inplace=State.CONFLICT))),
    (check_hazards.semaphore, facts(environ=ALT)),
    (check_hazards.semaphore, facts(aiter=SHARING)),
    (check_hazards.semaphore, facts(environ={**ALT, "SGLANG_USE_AITER": "0"}, aiter=SHARING)),
    (check_hazards.semaphore, facts(environ=ALT, aiter=SHARING, plan=plan_of(fix__aiter__semaphore=State.PLANNED))),
    (check_hazards.semaphore, facts(environ=ALT, aiter=SHARING, sglang=OLD, plan=QWEN_PATCHED)),
    (check_hazards.blaslt_workspace, facts(environ=ALT)),
    (check_hazards.blaslt_workspace, facts(aiter=replace(AITER, blaslt_shapes=3))),
    (check_hazards.stream_k, SOUND),
    (check_hazards.stream_k, facts(environ={**ALT, "TORCH_BLAS_PREFER_HIPBLASLT": "0"})),
    (check_hazards.event_waits, facts(environ=MULTI)),
    (check_hazards.event_waits, facts("--moe-a2a-backend", "deepep", environ=ALT)),
    (check_hazards.event_waits,
     facts("--moe-a2a-backend=deepep", environ={**MULTI, **CAPTURE_ONLY}, sglang=UNOBEYED, plan=DEEPSEEK_PATCHED)),
    (check_hazards.mori, facts(*LOW_LATENCY, environ=MULTI)),
    (check_hazards.mori, facts("--moe-a2a-backend", "deepep", environ=MULTI)),
    (check_hazards.mori, facts("--moe-a2a-backend", "mori", environ={**MULTI, "MORI_ENABLE_SDMA": "1"})),
    (check_hazards.mori, facts("--moe-a2a-backend", "mori")),
]  # fmt: skip


@pytest.mark.parametrize("case", SPEAKING, ids=lambda case: f"{case.check.__name__}-{case.level.value}")
def test_a_check_speaks(case: Case) -> None:
    said = list(case.check(case.facts))
    (finding,) = [one for one in said if case.message in one.message]
    assert finding.level is case.level
    assert case.fix in finding.fix
    assert [one for one in said if one.level is not Level.OK and one.level is not Level.INFO] in ([finding], [])
    assert bool(finding.fix) or finding.level in (Level.OK, Level.INFO)


@pytest.mark.parametrize(("check", "quiet"), SILENT, ids=lambda one: getattr(one, "__name__", ""))
def test_a_check_is_silent(check: Check, quiet: Facts) -> None:
    assert [finding for finding in check(quiet) if finding.level is not Level.OK] == []


def test_every_check_is_tested_both_ways() -> None:
    assert {case.check for case in SPEAKING if case.level is not Level.OK} == set(CHECKS)
    assert {check for check, _ in SILENT} == set(CHECKS)


def test_a_sound_machine_gets_no_warning() -> None:
    report = diagnose(SOUND)
    assert report.exit_code == 0
    assert {finding.level for finding in report.findings} == {Level.OK}


def test_nothing_known_raises_nothing() -> None:
    report = diagnose(Facts(environ={**ALT, **MULTI}))
    assert report.exit_code == 2


@pytest.mark.parametrize(
    ("levels", "code"),
    [((), 0), ((OK, INFO), 0), ((INFO, WARNING, OK), 1), ((WARNING, ERROR, INFO), 2)],
)
def test_the_exit_code_is_that_of_the_worst(levels: tuple[Level, ...], code: int) -> None:
    assert exit_code(Finding("x", level, "m") for level in levels) == code


@pytest.mark.parametrize(
    ("arguments", "backend", "mode"),
    [
        ((), "none", "auto"),
        (("--moe-a2a-backend", "mori"), "mori", "auto"),
        (("--moe-a2a-backend=deepep", "--moe-a2a-backend", "mori"), "mori", "auto"),
        (("--enable-deepep-moe", "--deepep-mode=normal"), "deepep", "normal"),
        (("--moe-a2a-backend",), "none", "auto"),
    ],
)
def test_server_arguments_are_read_as_argparse_would(arguments: tuple[str, ...], backend: str, mode: str) -> None:
    server = ServerArguments.of(arguments)
    assert (server.a2a_backend, server.deepep_mode) == (backend, mode)
