"""The probes: files, metadata, environment, /sys, and one child interpreter. Neither torch nor sglang is imported."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import TypeVar

from overlay import delivery, denylist, gates, kfd, packs
from overlay.doctor import folders, installed, meddlers, packages
from overlay.doctor.arguments import ServerArguments
from overlay.doctor.facts import Aiter, Facts, Machine
from overlay.errors import OverlayError
from overlay.model import State
from overlay.options import Options
from overlay.plan import make_plan
from overlay.platform import Platform, detect
from overlay.registry import Registry, builtin, load
from overlay.source import SourceTree, installed_tree, launch_search_path

_Answer = TypeVar("_Answer")
_KFD_DEVICE = Path("/dev/kfd")


def gather(given: Mapping[str, str], arguments: Sequence[str]) -> Facts:
    """Ask everything. A question that an error answers is left open, and the error is kept for its check."""
    asked = _Asked()
    search = launch_search_path(["-m"])
    registry = asked.ask("packs", lambda: load(given)) or asked.ask("patches", builtin)
    environ = (registry and asked.ask("switches", lambda: _launch_environ(given, registry))) or given
    platform = asked.ask("platform", lambda: detect(environ)) or Platform("none")
    environ = asked.ask("denylist", partial(denylist.handing_over, environ, platform)) or environ
    tree = asked.ask("sglang", lambda: installed_tree(search))
    plan = None
    if registry is not None and tree is not None:
        plan = asked.ask("plan", lambda: make_plan(registry, tree, platform, environ))
    kept_away = frozenset[str]()
    if registry is not None and tree is not None and plan is not None:
        kept_away = withheld(registry, tree, platform, environ)
    asked.ask("delivery", lambda: delivery.environment(environ))
    sglang = installed.sglang(tree, search) if tree is not None else None
    wrapt, extension = packages.wrapt()
    aiter = _aiter(environ, platform)
    return Facts(
        environ=environ,
        given=given,
        arguments=ServerArguments.of(arguments),
        platform=platform,
        machine=machine(environ),
        torch=packages.torch(),
        aiter=aiter,
        kernels=packages.kernels(),
        wrapt=wrapt,
        wrapt_extension=extension,
        sglang=sglang,
        plan=plan,
        patches=tuple(registry or ()),
        packs=tuple(offer.pack for offer in packs.installed()),
        withheld=kept_away,
        folders=folders.folders(environ, aiter, sglang is not None and sglang.features.redirects_caches),
        meddlers=meddlers.meddlers(search),
        unanswered=asked.errors,
    )


def withheld(registry: Registry, tree: SourceTree, platform: Platform, environ: Mapping[str, str]) -> frozenset[str]:
    """The patches that would be planned if none were switched off: a plan says of those only that they are off."""
    disabled = gates.DISABLE.read(environ)
    if not disabled:
        return frozenset()
    free = {name: value for name, value in environ.items() if name != gates.DISABLE.name}
    decisions = make_plan(registry, tree, platform, free).decisions
    return frozenset(d.patch.id for d in decisions if d.state is State.PLANNED and d.patch.id in disabled)


def _launch_environ(given: Mapping[str, str], registry: Registry) -> Mapping[str, str]:
    """What `launch` would do to the environment before it plans."""
    gates.check(given, registry.gates)
    return Options().over(given, registry)


class _Asked:
    """Keeps the errors of the user's that stood in the way of an answer."""

    def __init__(self) -> None:
        self.errors: dict[str, str] = {}

    def ask(self, question: str, answer: Callable[[], _Answer]) -> _Answer | None:
        try:
            return answer()
        except OverlayError as error:
            self.errors[question] = str(error)
            return None


def machine(environ: Mapping[str, str]) -> Machine:
    device = os.access(_KFD_DEVICE, os.R_OK | os.W_OK) if _KFD_DEVICE.exists() else None
    root = Path(environ.get("ROCM_PATH") or environ.get("ROCM_HOME") or "/opt/rocm")
    hipcc = shutil.which("hipcc", path=os.pathsep.join([environ.get("PATH", ""), str(root / "bin")]))
    try:
        rocm = (root / ".info" / "version").read_text().strip() or None
    except (OSError, ValueError):
        rocm = None
    return Machine(kfd.gpus(), device, rocm, hipcc)


def _aiter(environ: Mapping[str, str], platform: Platform) -> Aiter | None:
    """A simulated aiter has a version and no files."""
    if platform.simulated:
        return Aiter("simulated", amd=True, version=platform.aiter) if platform.aiter else None
    return packages.aiter(environ)
