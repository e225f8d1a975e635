"""sglang, the overlay itself, and what surrounds the two."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator

from overlay import denylist, gates
from overlay.doctor.facts import Facts
from overlay.doctor.finding import Finding, error, info, ok, warning
from overlay.doctor.meddlers import PLUGIN_GROUPS
from overlay.model import BROKEN, State
from overlay.version import classify


def sglang(facts: Facts) -> Iterator[Finding]:
    """Which one a launch from this directory runs."""
    found = facts.sglang
    if found is None:
        yield error(
            "sglang", facts.unanswered.get("sglang", "not found"),
            "Run the amd-sglang of the environment that has sglang, from a directory without a `sglang` of its own.",
        )  # fmt: skip
    elif found.hidden:
        yield warning(
            "sglang", f"the working directory comes first on the path: {found.path} would run, not {found.hidden}",
            "Change to another directory, unless that copy is the one you mean.",
        )  # fmt: skip
    else:
        yield ok("sglang", f"{found.version.text or 'of unknown version'} at {found.path}")


def sglang_version(facts: Facts) -> Iterator[Finding]:
    """The version file against the metadata, and how far either can be believed."""
    found = facts.sglang
    if found is None:
        return
    reinstall = "Run `pip uninstall -y sglang` until nothing is left, then install the release you want."
    if len(found.metadata) > 1:
        yield warning(
            "sglang-version", f"metadata of {len(found.metadata)} sglangs lies in one folder "
            f"({', '.join(found.metadata)}): files of an upgrade that broke off may be mixed", reinstall,
        )  # fmt: skip
    elif found.metadata and classify(found.metadata[0]).parsed != found.version.parsed:
        yield warning(
            "sglang-version", f"the version file says {found.version.text or 'nothing'}, the metadata "
            f"{found.metadata[0]}: one of them was replaced", reinstall,
        )  # fmt: skip
    elif not found.version.trusted:
        yield info(
            "sglang-version", f"{found.version.text or 'no version'} names no published release "
            f"({found.version.kind.value}): patches are decided by the source alone",
        )  # fmt: skip


def switches(facts: Facts) -> Iterator[Finding]:
    """The overlay's own variables, and what kept the plan from being made."""
    questions = ("patches", "switches", "platform", "plan")
    # One malformed value answers several questions.
    for problem in dict.fromkeys(facts.unanswered[one] for one in questions if one in facts.unanswered):
        yield error("switches", problem, "Correct the value, or unset the variable it names.")


def plan(facts: Facts) -> Iterator[Finding]:
    """Patches that nothing rules out and that cannot be applied all the same."""
    if facts.plan is None:
        return
    strict = "switches" not in facts.unanswered and gates.STRICT.read(facts.environ)
    broken = [decision for decision in facts.plan.decisions if decision.state in BROKEN]
    for decision in broken:
        one = decision.patch.id
        message = f"{one} is {decision.state.value}: {decision.reason}"
        fix = f"Read `amd-sglang patches explain {one}`; to serve without it, silently, pass --disable {one}."
        yield error("plan", f"{message}; --strict will not start", fix) if strict else warning("plan", message, fix)
    if not broken:
        states = Counter(decision.state for decision in facts.plan.decisions)
        yield ok("plan", f"{states[State.PLANNED]} patches planned, {states[State.CONTAINED]} contained already")


def denied(facts: Facts) -> Iterator[Finding]:
    """What `amd-sglang verify` found wrong on this GPU, and the launcher therefore leaves away."""
    if "denylist" in facts.unanswered:
        yield error("denylist", facts.unanswered["denylist"], "Nothing can be launched before that.")
        return
    for patch_id, why in denylist.handed_over(facts.environ).items():
        yield warning(
            "denylist", f"{patch_id} is kept away: {why}",
            f"`amd-sglang verify {patch_id}` says whether it is still so, with what is installed now.",
        )  # fmt: skip


def delivery(facts: Facts) -> Iterator[Finding]:
    """Whether the processes that a server starts would start the overlay: one was started and asked."""
    problem = facts.unanswered.get("delivery")
    if problem:
        yield error("delivery", problem, "Run `pip install amd-sglang-overlay` in the environment of the server, once.")
    else:
        yield ok("delivery", "a child interpreter starts this overlay")


def other_overlays(facts: Facts) -> Iterator[Finding]:
    """Whoever else changes sglang at run time."""
    allowed = {name.strip() for name in facts.environ.get("SGLANG_PLUGINS", "").split(",") if name.strip()}
    for found in facts.meddlers:
        if found.kind not in PLUGIN_GROUPS:
            yield warning(
                "other-overlays", f"{found.where} runs in every interpreter and knows sglang: it may change the code "
                "that a patch was proved against",
                f"Remove {found.name}, or look for `conflict` in `amd-sglang patches status` once the server is up.",
            )  # fmt: skip
        elif (facts.sglang is None or facts.sglang.features.plugins) and (not allowed or found.name in allowed):
            yield info(
                "other-overlays", f"sglang will load its plugin {found.name} ({found.where}), which runs after the "
                "patches and may take their place",
                "Name the plugins you want in SGLANG_PLUGINS; the status shows a patch that one displaced.",
            )  # fmt: skip


def folders(facts: Facts) -> Iterator[Finding]:
    """Caches that cannot be written: kernels would be compiled anew in every process, or not at all."""
    closed = [folder for folder in facts.folders if not folder.writable]
    for folder in closed:
        yield warning(
            "folders", f"{folder.purpose}: {folder.path} cannot be written",
            f"Set {folder.variable} to a folder that can.",
        )  # fmt: skip
    if not closed:
        yield ok("folders", f"all {len(facts.folders)} caches can be written")


def interpreted_kernels(facts: Facts) -> Iterator[Finding]:
    """Triton's interpreter runs kernels as Python: for debugging, and for a simulation."""
    interpreted = facts.environ.get("TRITON_INTERPRET", "").lower() in ("1", "true", "yes", "on", "y")
    if interpreted and not facts.platform.simulated:
        yield error(
            "interpreted-kernels", "TRITON_INTERPRET is set: every Triton kernel would run as Python",
            "Unset TRITON_INTERPRET.",
        )  # fmt: skip


CHECKS = (sglang, sglang_version, switches, plan, denied, delivery, other_overlays, folders, interpreted_kernels)
