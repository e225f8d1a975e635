"""The programs `amd-sglang` and `python -m overlay`.

A launch starts as soon as it can: what else there is to say, and every other command, is in `overlay.commands`.
"""

from __future__ import annotations

import gc
import sys
from collections.abc import Mapping, Sequence

#: Objects until the garbage collector first looks through them. The 700 it starts with are for a program that stays: a
#: launch, which ends before it has garbage, would spend a twentieth of its time there.
_UNTIL_COLLECTED = 100_000


def main(arguments: list[str] | None = None) -> None:
    """`amd-sglang ARGUMENTS...`, by default those of this process."""
    gc.set_threshold(_UNTIL_COLLECTED)
    from overlay.arguments import read

    command, *given = (sys.argv[1:] if arguments is None else arguments) or [""]
    plain = read(given) if command == "launch" else None
    if plain is None:
        from overlay import commands

        commands.main(arguments)
    else:
        from overlay.start import LAUNCH_SERVER

        _start([*LAUNCH_SERVER, *plain.rest], plain.options)


def wrapper() -> None:
    """`python -m overlay`, with the arguments of this process."""
    gc.set_threshold(_UNTIL_COLLECTED)
    from overlay.arguments import read

    plain = read(sys.argv[1:])
    if plain is None or plain.rest in ([], ["-m"]):
        from overlay import commands

        commands.wrapper(prog_name="python -m overlay")
    else:
        _start(plain.rest, plain.options)


def _start(command: Sequence[str], options: Mapping[str, object]) -> None:
    """`overlay.start`, and what click answers to whatever may be raised there."""
    from overlay.errors import OverlayError
    from overlay.start import start

    try:
        start(command, options)
    except OverlayError as error:
        print(f"Error: {error}", file=sys.stderr)
        sys.exit(error.exit_code)
    except KeyboardInterrupt:
        sys.exit("\nAborted!")


if __name__ == "__main__":
    main()
