"""``python -m matrix [check|update|catalogue|behaviour]``: compare the releases with the expectation, write what
follows from them, or run every patch on the real classes. Exit status 1 where something drifted or misbehaved."""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Mapping, Sequence

from demo.progress import elapsed_text, task
from demo.steps import ProvisionError
from matrix import behaviour, behaviour_run, expected, releases
from matrix import known as sources
from matrix.catalogue import write_documents
from matrix.drift import Comparison, Drift
from matrix.expected import Expectation
from matrix.survey import Survey, survey
from overlay.registry import builtin


def check(published: Sequence[str]) -> int:
    """Say what differs between the expectation and these releases; the number of differences."""
    registry, trees = builtin(), {release: releases.tree(release) for release in published}
    surveys = {release: survey(registry, tree) for release, tree in trees.items()}
    found = Comparison(registry, expected.read(), releases.tree).drifts(surveys, published)
    unknown = sources.missing(sources.read(), sources.table(trees.values(), sources.slots(registry)))
    found += [Drift("unknown source", one, "every process parses this file again") for one in unknown]
    for drift in found:
        print(f"{drift}\n")
    cells = sum(len(row) for one in surveys.values() for row in one.decisions.values())
    verdict = f"{len(found)} drifts: settle each, then `make matrix-update`" if found else "as reviewed"
    print(f"{len(registry.ids)} patches on {len(surveys)} releases, {cells} decisions: {verdict}")
    return len(found)


def update(published: Sequence[str]) -> None:
    """Take what the releases show now for the expectation, and write the documents that follow from it."""
    registry = builtin()
    surveys: dict[str, Survey] = {release: survey(registry, releases.tree(release)) for release in published}
    expected.FILE.write_text(expected.dumps(Expectation(surveys)), encoding="utf-8")
    sources.write(sources.table(map(releases.tree, published), sources.slots(registry)))
    print(f"wrote {expected.FILE}: read its diff before you commit it")
    write_documents()


def behave(releases_: Sequence[str], patches: Sequence[str]) -> int:
    """Run the patches on the releases where they are planned, newest first, and write the table after each release;
    the number of cells in which a step was not as it should be."""
    registry, expectation = builtin(), expected.read()
    wanted, failures = behaviour.planned(registry, expectation), 0
    for name, given, known in (("release", releases_, expectation.releases), ("patch", patches, tuple(wanted))):
        if strange := [one for one in given if one not in known]:
            raise ProvisionError(f"--{name} {strange[0]} is not one of {', '.join(known)}")
    for release in reversed([one for one in expectation.releases if one in (releases_ or expectation.releases)]):
        here = [patch_id for patch_id, planned in wanted.items() if release in planned]
        with task(f"behaviour on sglang {release}", hint="2 min"):
            seen = behaviour_run.behaviour(release, [one for one in here if one in (patches or here)])
        failures += report(release, seen)
        known_cells = behaviour.read(registry, expectation) if behaviour.FILE.exists() else {}
        table = behaviour.merged(known_cells, {one: {release: cell} for one, cell in seen.items()}, wanted)
        behaviour.FILE.write_text(behaviour.dumps(table), encoding="utf-8")
    return failures


def report(release: str, seen: Mapping[str, behaviour.Cell]) -> int:
    """Say what was not as it should be."""
    wrong = {patch_id: cell for patch_id, cell in seen.items() if not cell.passed}
    for patch_id, cell in wrong.items():
        steps = zip(("installs", "behaves", "uninstalls"), cell.steps, strict=True)
        said = ", ".join(f"{step}: {answer.value}" for step, answer in steps)
        print(f"{release} {patch_id}: {said} ({cell.note})")
    print(f"{release}: {len(seen) - len(wrong)} of {len(seen)} patches install, behave and uninstall")
    return len(wrong)


def main(argv: Sequence[str] | None = None) -> int:
    """Command line; returns the exit status."""
    parser = argparse.ArgumentParser(prog="python -m matrix", description=__doc__)
    parser.add_argument("action", nargs="?", choices=("check", "update", "catalogue", "behaviour"), default="check")
    parser.add_argument(
        "--release", action="append", default=[], metavar="VERSION", help="behaviour: this release only"
    )
    parser.add_argument("--patch", action="append", default=[], metavar="ID", help="behaviour: this patch only")
    arguments = parser.parse_args(argv)
    action = arguments.action
    if action != "behaviour" and (arguments.release or arguments.patch):
        parser.error("--release and --patch go with behaviour")
    started = time.monotonic()
    try:
        if action == "catalogue":
            write_documents()
            return 0
        drifts = 0
        if action == "behaviour":
            drifts = behave(arguments.release, arguments.patch)
        elif action == "update":
            update(releases.published())
        else:
            drifts = check(releases.published())
    except ProvisionError as error:
        print(f"matrix: {error}", file=sys.stderr)
        return 2
    print(f"done in {elapsed_text(time.monotonic() - started)}")
    return 1 if drifts else 0


if __name__ == "__main__":
    sys.exit(main())
