"""SGLANG_USE_AITER, spelled so that every reader in sglang takes it for the same.

sglang has three readers of this one variable. `get_bool_env_var` (46 places in 0.5.23) knows true and 1. `envs` (15)
knows yes and y besides, so `yes` switches half of a model to aiter and leaves the other half. And the MoE runner of
0.5.8 to 0.5.10 takes `int()` of it (moe_runner/triton.py:35), which ends the process for any word at all.
"""

from __future__ import annotations

from collections.abc import Mapping

from overlay.errors import MalformedSwitchError

NAME = "SGLANG_USE_AITER"

_WORDS = {
    **dict.fromkeys(("1", "true", "yes", "y", "on"), "1"),
    **dict.fromkeys(("0", "false", "no", "n", "off", ""), "0"),
}


def respelled(environ: Mapping[str, str]) -> dict[str, str]:
    """`environ` with the switch as 1 or 0, where it is set. Raises MalformedSwitchError for a word without meaning."""
    written = environ.get(NAME)
    return dict(environ) if written is None else {**environ, NAME: _meant(written)}


def note(environ: Mapping[str, str]) -> str | None:
    """One line for the user whose spelling is changed; None where it is not. Raises like `respelled`."""
    written = environ.get(NAME)
    if written is None or written == _meant(written):
        return None
    return (
        f"{NAME}={written!r} is passed on as {_meant(written)}: sglang's own readers of this variable do not agree on "
        "other spellings than 1 and 0"
    )


def _meant(written: str) -> str:
    try:
        return _WORDS[written.strip().lower()]
    except KeyError:
        raise MalformedSwitchError(
            NAME, written, "1 or 0 (true, yes, y and on mean 1; false, no, n and off mean 0)"
        ) from None
