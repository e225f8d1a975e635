"""Two rounds of the same tests: with the patches under test in force, then with them taken out."""

from __future__ import annotations

import pytest

from overlay import runtime
from overlay.model import State

#: Parameters of a module's fixture. The order matters: what was taken out stays out.
WITH_AND_WITHOUT = ("with", "without")


def in_force(request: pytest.FixtureRequest, *ids: str) -> bool:
    """Whether this is the round with the patches, which must then be applied; takes them out in the other one. Their
    modules are to be imported before."""
    overlay = runtime.current()
    assert overlay is not None
    for one in ids:
        if request.param == "with":
            assert overlay.state(one)[0] is State.APPLIED, overlay.state(one)
        else:
            overlay.uninstall(one)
    return bool(request.param == "with")
