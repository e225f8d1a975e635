"""The options of a launch, and how they are read where nothing has to be explained about them.

click makes the commands of these, with their help and the answer to every mistake. To import it takes as long as to
import every patch, so a launch whose arguments are in order does without.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple


class Option(NamedTuple):
    """One option. `metavar` names its value; a flag has none. `counts` says that the value is a number, 0 or more."""

    name: str
    help: str
    metavar: str | None = None
    multiple: bool = False
    counts: bool = False

    @property
    def field(self) -> str:
        """The name of its value, as click derives it."""
        return self.name.removeprefix("--").replace("-", "_")

    @property
    def default(self) -> object:
        return () if self.multiple else None if self.metavar else False


#: Against the rules, out loud: the plan, the launch and every status say that they were used.
OVERRIDES = (
    Option("--trust-version", "Judge version ranges as if sglang were this release.", "VERSION"),
    Option("--allow-drift", "Apply a patch although nobody has read this source.", "ID", multiple=True),
)
#: Third-party code runs only where somebody gave its name.
PACKS = Option("--packs", "Load the patches of a third-party pack.", "NAME[,NAME]...", multiple=True)
LAUNCH = (
    Option("--strict", "Leave, rather than serve without a patch that was planned."),
    Option("--enable", "Switch a patch on that is off by default.", "ID", multiple=True),
    Option("--disable", "Switch a patch off.", "ID", multiple=True),
    *OVERRIDES,
    PACKS,
    Option(
        "--shadow",
        "Let upstream compute the first N calls of each kernel too, and drop one that is off.",
        "N",
        counts=True,
    ),
    Option("--simulate", "Simulate this ROCm GPU on the CPU (gfx942, gfx950).", "ARCH"),
    Option("--dry-run", "Print the plan and the command, and start nothing."),
)


class Read(NamedTuple):
    """The value of every option of a launch, by field, and the arguments that follow."""

    options: dict[str, object]
    rest: list[str]


def read(arguments: Sequence[str]) -> Read | None:
    """The options at the beginning, up to `--` or the first argument that is none. None where they are not in order,
    where help is asked for, and where one of them stands among the arguments that follow, which may be a mistake."""
    known = {option.name: option for option in LAUNCH}
    options = {option.field: option.default for option in LAUNCH}
    given = iter(arguments)
    for argument in given:
        if argument == "--":
            return Read(options, list(given))
        name, equals, text = argument.partition("=")
        option = known.get(name)
        if option is None:
            rest = [argument, *given]
            misplaced = name == "--help" or any(each.partition("=")[0] in known for each in rest)
            return None if misplaced else Read(options, rest)
        value: object = text if equals else next(given, None) if option.metavar else True
        if value is None or (equals and not option.metavar):
            return None
        if option.counts:
            if not (str(value).isascii() and str(value).isdecimal()):
                return None
            value = int(str(value))
        before = options[option.field]
        options[option.field] = (*before, value) if isinstance(before, tuple) else value
    return Read(options, [])
