"""What runs at interpreter start where the environment asks for the overlay. Standard library only.

It costs a set of string comparisons and one import finder. The rest of the overlay is loaded the moment somebody
imports sglang, so that the helper processes of a server (compilers, trackers) never load it.
"""

from __future__ import annotations

import os
import sys

TYPE_CHECKING = False  # as type checkers read it; `typing` would be imported by every interpreter below a launcher
if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from importlib.machinery import ModuleSpec
    from types import ModuleType

GATE = "AMD_SGLANG_OVERLAY"
PREFIX = "AMD_SGLANG_PREFIX"
PYTHON = "AMD_SGLANG_PYTHON"
#: What Ray calls at every `ray.init`, and the user's own hook that ours stands before.
RAY_HOOK = "RAY_RUNTIME_ENV_HOOK"
USERS_RAY_HOOK = "AMD_SGLANG_RAY_HOOK"
_OUR_RAY_HOOK = "overlay.ray_handover.hook"


def handover() -> dict[str, str]:
    """The variables by which a launcher asks the interpreters below it for the overlay."""
    return {GATE: "1", PREFIX: sys.prefix, PYTHON: _python()}


def wanted(environ: Mapping[str, str]) -> bool:
    """Whether this interpreter was asked, and is the environment that the launcher vouched for.

    A server may start helpers with another Python, or in another virtual environment, whose packages nobody looked at.
    """
    return environ.get(GATE) == "1" and environ.get(PREFIX) == sys.prefix and environ.get(PYTHON) == _python()


def start() -> None:
    """Make ready for `import sglang`, if this interpreter was asked to. Raises SystemExit at most, under --strict."""
    if not wanted(os.environ) or any(isinstance(finder, _SglangWatch) for finder in sys.meta_path):
        return
    try:
        if os.environ.get("AMD_SGLANG_SIMULATE"):
            from overlay import simulate

            simulate.install()
    except Exception as error:  # noqa: BLE001 - raised here, site would print it and go on
        _give_up(error)
    else:
        sys.meta_path.insert(0, _SglangWatch())


class _SglangWatch:
    """Finds nothing; sees the first import of sglang coming, before any of its code runs."""

    def __init__(self) -> None:
        self._waiting = True

    def find_spec(
        self, name: str, path: Sequence[str] | None = None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        # It stays on sys.meta_path: removed during the search, it would make the search skip the next finder.
        if self._waiting and name == "sglang":
            self._waiting = False
            _activate()
        elif name == "ray":
            _offer_ray_hook()
        return None


def _activate() -> None:
    try:
        from overlay import runtime

        runtime.activate(os.environ)
    except Exception as error:  # noqa: BLE001 - raised here it would look like a broken sglang
        from overlay.errors import NoSglangError

        if not isinstance(error, NoSglangError):  # the import is about to say that itself
            _give_up(error)


def _offer_ray_hook() -> None:
    """Ray's workers inherit nothing from this process: it is to ask us what to start them with. Set where somebody
    imports Ray, and not by the launcher: a program in another Python, which has no overlay, must not be sent to it."""
    theirs = os.environ.get(RAY_HOOK)
    if theirs != _OUR_RAY_HOOK:
        if theirs:
            os.environ[USERS_RAY_HOOK] = theirs
        os.environ[RAY_HOOK] = _OUR_RAY_HOOK


def _give_up(error: Exception) -> None:
    import traceback  # as long to import as the interpreter takes to start

    traceback.print_exception(error)
    print(f"[amd-sglang] not active in pid {os.getpid()}, sglang runs unpatched: {error}", file=sys.stderr, flush=True)
    # A value that cannot be read counts as strict: the error may be about that very value.
    if os.environ.get("AMD_SGLANG_STRICT", "").lower() not in ("", "0", "false"):
        from overlay import lineage
        from overlay.errors import EXIT_STRICT

        lineage.tell_who_waits(serving=False)
        raise SystemExit(EXIT_STRICT) from error


def _python() -> str:
    return str(sys.implementation.cache_tag)
