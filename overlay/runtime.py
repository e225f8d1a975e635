"""The overlay inside one process: decides, waits for the modules, applies, reports.

Nothing here raises into sglang, which swallows exceptions at import (models/registry.py) and would go on unpatched
without a word; what fails is recorded and said. The exceptions are `--strict`, which leaves through SystemExit, and a
rank that is not patched as the others are, which fails as a scheduler of sglang does.
"""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Mapping
from functools import cached_property, lru_cache, partial
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING

from overlay import gates, guard, lineage, ray_handover, status, witness
from overlay.bound import Measured
from overlay.chain import leads_to
from overlay.errors import EXIT_STRICT, ConflictError, OverlayError, RanksDifferError
from overlay.hooks import when_executed
from overlay.install import Ledger, describe_owner, held
from overlay.model import BROKEN, Decision, State, Target
from overlay.plan import Plan, make_plan
from overlay.platform import detect
from overlay.preimage import Proof
from overlay.registry import load
from overlay.report import ProcessReport
from overlay.say import say
from overlay.source import installed_tree
from overlay.web import attach

if TYPE_CHECKING:
    from overlay.peers import Peers

_active: list[Runtime] = []


class Runtime:
    """One process's overlay. `activate` makes it before the first module of sglang runs."""

    def __init__(self, plan: Plan, environ: Mapping[str, str]) -> None:
        self.plan = plan
        self.ledger = Ledger()
        self._strict = gates.STRICT.read(environ)
        given = gates.RUN_DIR.read(environ)
        self._run_dir = Path(given) if given else None
        if self._run_dir is not None:
            with contextlib.suppress(OSError, OverlayError):  # the report says that it cannot be written
                status.join_run_dir(self._run_dir)
        self._report = ProcessReport(plan, self._run_dir, strict=self._strict)
        self._announced = environ.get(gates.ANNOUNCED)
        self._doom: str | None = None
        self._serving = False
        # Several patches wait for one module, and are applied one after the other when it has executed.
        self._proof = lru_cache(maxsize=4)(Proof)

    def arm(self) -> None:
        """Wait for every module a planned patch or a witness touches, and report the process."""
        for decision in self.plan.decisions:
            if decision.state is State.PLANNED:
                when_executed(self._modules(decision), partial(self._apply, decision))
        for target in witness.targets(self.ready, self.connected):
            when_executed((target.slot.module,), partial(self._attach, target))
        when_executed((attach.SERVER,), partial(attach.attach, self.ledger, self._run_dir, self._report.document))
        os.register_at_fork(after_in_child=self._forked)
        guard.keep(self)
        self._report.write()

    @cached_property
    def _peers(self) -> Peers:
        from overlay.peers import Peers  # schedulers have them, other processes do not load what that takes

        return Peers(self.plan, self.state, self._announced, self._run_dir)

    def check_plan(self) -> None:
        """If this plan is not the one a launcher showed, say what is wrong with it. Another sglang may be imported
        here, or the environment was changed on the way."""
        if self._announced == self.plan.digest:
            return
        problems = [f"{d.patch.id} is {d.state.value}: {d.reason}" for d in self.plan.decisions if d.state in BROKEN]
        if self._announced:
            problems.insert(0, f"the launcher announced {self._announced}, this process plans {self.plan.digest}")
        for problem in problems:
            say(f"{problem} [{self.plan.sglang_path}]")
        if problems and self._strict:
            self._leave("--strict forbids to serve with that")

    def state(self, patch_id: str) -> tuple[State, str]:
        """Where a patch stands in this process, and why."""
        return self._report.state(patch_id)

    def counts(self, patch_id: str) -> memoryview:
        """Where the guard of a patch counts."""
        return self._report.counts(patch_id)

    def measured(self, patch_id: str, error: Measured) -> None:
        """A shadow run has found the largest error so far."""
        self._report.measured(patch_id, error)

    def failed(self, patch_id: str, reason: str) -> None:
        """A guard has switched its patch off, in the middle of serving."""
        self._record(patch_id, State.FAILED, reason)

    def uninstall(self, patch_id: str) -> None:
        """Take one applied patch out again, and before it every applied patch that requires it.

        A slot that somebody has filled since is theirs, and what stands there may call ours or be taken out again: the
        patch then stays as it is, and is reported as a conflict.
        """
        for decision in self.plan.decisions:
            if patch_id in decision.patch.requires and self.state(decision.patch.id)[0] is State.APPLIED:
                self.uninstall(decision.patch.id)
                if self.state(decision.patch.id)[0] is not State.ROLLED_BACK:
                    self._record(patch_id, State.CONFLICT, f"not taken out: {decision.patch.id} stands upon it")
                    return
        for slot, now in self.ledger.lost(patch_id):
            owner = describe_owner(now)
            self._record(patch_id, State.CONFLICT, f"not taken out: {slot} was replaced afterwards by {owner}")
            return
        self.ledger.uninstall(patch_id)
        guard.retire(patch_id)
        self._record(patch_id, State.ROLLED_BACK, "uninstalled", intended=True)

    def connected(self, ranks: dict[str, int]) -> None:
        """torch.distributed has connected the ranks of this server. Raises RanksDifferError if they differ."""
        self._heed(self._peers.connected(ranks))

    def ready(self, role: str, ranks: dict[str, int]) -> None:
        """A manager of sglang was built: look again at every slot, then say what this process is.

        A scheduler looks at the others once more, since a patch may have failed in one of them, and raises
        RanksDifferError if they differ.
        """
        for decision in self.plan.decisions:
            absent = sorted(self._modules(decision) - sys.modules.keys())
            if absent and self.state(decision.patch.id)[0] is State.PLANNED:
                why = f"this process has not imported {', '.join(absent)}"
                self._report.record(decision.patch.id, State.PLANNED, why)
        self._report.identify(role, ranks, ready=True)
        for patch_id in self._report.applied():
            upon = {d.patch.id for d in self.plan.decisions if patch_id in d.patch.requires}
            for slot, now in self.ledger.lost(patch_id):
                if not leads_to(now, self.ledger.installed({patch_id, *upon}, slot)):
                    self._record(patch_id, State.CONFLICT, f"{slot} was replaced afterwards by {describe_owner(now)}")
        if self._doom is not None:
            self._leave(self._doom)
        if role == "scheduler":
            self._heed(self._peers.ready(ranks))
            self._serving = True
        elif (astray := ray_handover.objection(os.environ)) is not None:
            say(astray)
            if self._strict:
                self._leave("--strict forbids to serve with that")

    def _modules(self, decision: Decision) -> set[str]:
        """What must have executed before a patch can be applied: its own modules, and those of what it requires.
        Where both wait for one module, the required patch is called first, since it stands first in the plan."""
        names = {report.slot.module for report in decision.slots}
        for other in self.plan.decisions:
            if other.patch.id in decision.patch.requires and other.state is State.PLANNED:
                names |= self._modules(other)
        return names

    def _forked(self) -> None:
        """A forked child has everything its parent had applied, under another pid, and plays a role of its own."""
        self._report.forked()
        self._serving = False
        guard.keep(self)
        self._report.identify("forked", {}, ready=False)

    def _apply(self, decision: Decision, modules: Mapping[str, ModuleType]) -> None:
        """Install one patch whose modules have all executed; record what came of it."""
        patch_id = decision.patch.id
        for other in decision.patch.requires:
            if self.state(other)[0] not in (State.APPLIED, State.CONTAINED):
                self._record(patch_id, State.DISABLED, f"requires {other}, which is {self.state(other)[0].value}")
                return
        try:
            if not self.plan.platform.simulated and not _torch_is_rocm():
                self._record(patch_id, State.UNSUPPORTED_PLATFORM, "the torch that was imported is not a ROCm build")
                return
            proofs = {name: self._proof(module) for name, module in modules.items()}
            for report in decision.slots:
                if any(self.ledger.fills(other, report.slot) for other in decision.patch.requires):
                    continue  # proved when that patch was installed: this one stands upon it
                objection = proofs[report.slot.module].objection(report.slot, held(report.slot), report.observed)
                if objection is not None:
                    raise ConflictError(f"{report.slot} {objection}")
            self.ledger.install(patch_id, decision.targets)
        except ConflictError as error:
            self._record(patch_id, State.CONFLICT, str(error))
        except Exception as error:  # noqa: BLE001 - a patch may fail in any way; raised here, sglang would swallow it
            self._record(patch_id, State.FAILED, f"{type(error).__name__}: {error}")
        else:
            self._record(patch_id, State.APPLIED, decision.reason)

    def _attach(self, target: Target, modules: Mapping[str, ModuleType]) -> None:
        """Wrap a witness seam. Without it a role stays unknown, or the ranks are not compared."""
        slot = target.slot
        try:
            objection = self._proof(modules[slot.module]).foreign(slot, held(slot))
            if objection is not None:
                raise ConflictError(f"it {objection}")
            self.ledger.install(f"witness:{slot}", (target,))
        except Exception as error:  # noqa: BLE001 - a missing witness alone must not keep sglang from starting
            say(f"cannot watch {slot}: {error}")
            if self._strict and slot in witness.BINDING:
                self._doom = f"--strict forbids to serve with ranks that nobody compares: {slot} is not watched"
                self._leave(self._doom)

    def _record(self, patch_id: str, state: State, reason: str, *, intended: bool = False) -> None:
        self._report.record(patch_id, state, reason)
        if state is not State.APPLIED and not intended:
            say(f"{patch_id} is {state.value}: {reason}")
        if self._strict and state in BROKEN | {State.UNSUPPORTED_PLATFORM} and not intended:
            self._doom = f"{patch_id} is {state.value} and --strict forbids to serve without it: {reason}"
            self._leave(self._doom)

    def _heed(self, objection: str | None) -> None:
        """Fail if there is an objection to serving beside the other ranks.

        Not by SystemExit: of an Exception the scheduler tells its parent (managers/scheduler.py:3188, 0.5.9), whose
        thread for a data-parallel replica would wait for ever for one that is merely gone; and Ray tells the driver.
        """
        if objection is not None:
            self._doom = objection
            say(objection)
            raise RanksDifferError(objection)

    def _leave(self, why: str) -> None:
        say(why)
        self._peers.leaving(why)
        lineage.tell_who_waits(serving=self._serving)
        raise SystemExit(EXIT_STRICT)


def activate(environ: Mapping[str, str]) -> Runtime:
    """Decide for the sglang that this process is about to import, and wait for its modules."""
    plan = make_plan(load(environ), installed_tree(), detect(environ), environ)
    runtime = Runtime(plan, environ)
    runtime.check_plan()
    runtime.arm()
    _active.append(runtime)
    return runtime


def current() -> Runtime | None:
    """The overlay of this process; None before sglang is imported, and where nobody asked for it."""
    return _active[-1] if _active else None


def _torch_is_rocm() -> bool:
    torch = sys.modules.get("torch")
    return torch is not None and bool(torch.version.hip)
