"""The documents that follow from the patches and the expectation: docs/patches.md and docs/matrix.svg."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping

from demo.layout import ROOT
from demo.steps import ProvisionError
from matrix import behaviour, behaviour_pages, expected
from matrix.behaviour import Table
from matrix.expected import Expectation, runs
from matrix.marks import Mark, mark
from matrix.picture import picture
from matrix.scenarios import SCENARIOS
from matrix.tables import row
from overlay.model import Patch
from overlay.registry import Registry, builtin

DOCS = ROOT / "docs"
_PULLS = "https://github.com/sgl-project/sglang/pull/"
_HEAD = """\
<!-- Written by `make catalogue` from the patches and matrix/expected.toml; do not edit. -->

# The patches

Each patch against every release of sglang on PyPI, planned on the real wheels. What decides is the source: a release
whose code nobody has read is never patched. `amd-sglang patches plan` tells the same of the sglang at hand, and
`amd-sglang patches diff ID` shows the code.

![every patch on every release](matrix.svg)
"""


def documents(registry: Registry, expectation: Expectation, seen: Table) -> dict[str, str]:
    """The text of each file by its name below docs/. Raises ProvisionError where the expectation lacks a patch."""
    unknown = [patch_id for patch_id in registry.ids if not expectation.covers(patch_id)]
    if unknown:
        raise ProvisionError(f"{expected.FILE} holds no decision about {', '.join(unknown)}: run `make matrix-update`")
    rows = {patch.id: _marks(expectation, patch) for patch in registry}
    title = f"amd-sglang: {len(rows)} patches on sglang {expectation.releases[0]} to {expectation.releases[-1]}"
    planned = behaviour.planned(registry, expectation)
    parts = [_HEAD, _overview(rows), _configurations(), behaviour_pages.overview(seen, planned, expectation.releases)]
    for patch in registry:
        parts.append(_section(patch, expectation))
        if releases := planned.get(patch.id):
            parts.append(behaviour_pages.details(seen.get(patch.id, {}), releases) + "\n")
    return {"patches.md": "\n".join(parts), "matrix.svg": picture(rows, title)}


def write_documents() -> None:
    """Write them from the committed expectation, and say where."""
    DOCS.mkdir(exist_ok=True)
    registry, expectation = builtin(), expected.read()
    for name, text in documents(registry, expectation, behaviour.read(registry, expectation)).items():
        (DOCS / name).write_text(text, encoding="utf-8")
        print(f"wrote {DOCS / name}")


def _marks(expectation: Expectation, patch: Patch) -> dict[str, Mark]:
    return {release: mark(patch, one.decisions[patch.id].values()) for release, one in expectation.surveys.items()}


def _overview(rows: Mapping[str, Mapping[str, Mark]]) -> str:
    """The picture as a table. Columns are named without the `0.5.` that all have in common, where all have it."""
    releases = list(next(iter(rows.values())))
    common = "0.5." if all(release.startswith("0.5.") for release in releases) else ""
    lines = [
        row("patch", *(release.removeprefix(common) for release in releases)),
        row("---", *(":-:" for _ in releases)),
        *(row(f"[{name}](#{name})", *(marks[release].letter for release in releases)) for name, marks in rows.items()),
    ]
    legend = "; ".join(f"`{one.letter}` {one.meaning}" for one in Mark)
    prefix = f"Columns are sglang {common}x. " if common else ""
    return f"{prefix}{legend}.\n\n" + "\n".join(lines) + "\n"


def _configurations() -> str:
    lines = [f"- `{scenario.name}`: {scenario.title}" for scenario in SCENARIOS]
    intro = "A patch that is off by default is shown as if it were switched on. The configurations:"
    return f"{intro}\n\n" + "\n".join(lines) + "\n"


def _section(patch: Patch, expectation: Expectation) -> str:
    facts = [row("", ""), row("---", "---"), *(row(name, text) for name, text in _facts(patch) if text)]
    decisions = [row("sglang", "configuration", "decision"), row("---", "---", "---")]
    for names, by_release in expectation.rows(patch.id):
        who = "every one" if len(names) == len(SCENARIOS) else ", ".join(f"`{name}`" for name in names)
        decisions += [row(run.replace(" .. ", " to "), who, answer) for run, answer in runs(by_release)]
    tables = ["\n".join(facts), "\n".join(decisions)]
    return "\n\n".join([f"## {patch.id}", f"{_sentence(patch.title)}", patch.why, *tables]) + "\n"


def _facts(patch: Patch) -> Iterator[tuple[str, str]]:
    yield "upstream", ", ".join(map(_link, patch.upstream))
    yield "contained since", patch.contained_since
    yield "sglang", f"`{patch.versions}`"
    yield "platform", ", ".join(sorted(patch.platforms))
    yield "GPUs", ", ".join(sorted(patch.archs or ()))
    yield "default", "on" if patch.default_on else f"off: `--enable {patch.id}`"
    yield "requires", ", ".join(f"[{one}](#{one})" for one in patch.requires)
    yield "excludes", ", ".join(f"[{one}](#{one})" for one in patch.conflicts)
    for gate in patch.gates:
        yield "switch", f"`{gate.name}` (default `{gate.default}`): {gate.help}"
    for variant in patch.variants:
        slots = ", ".join(f"{target.method.value} `{target.slot}`" for target in variant.targets)
        yield f"variant {variant.name}", slots or "recognised, and left as it is"
    yield "verified by", patch.verified_by
    yield "remove when", patch.remove_when


def _link(upstream: str) -> str:
    number = re.fullmatch(r"#(\d+)", upstream)
    return f"[{upstream}]({_PULLS}{number[1]})" if number else upstream


def _sentence(text: str) -> str:
    return f"{text[:1].upper()}{text[1:]}."
