"""How the overlay gets into the interpreters of a server: an environment, and a proof that it works.

An installed overlay (wheel or editable) put a .pth file into site-packages; a plain checkout lends its own
sitecustomize through PYTHONPATH. Which of the two reaches a child is not deduced: a child is started and asked.
"""

from __future__ import annotations

import ast
import os
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

from overlay import boot
from overlay.errors import DeliveryError

_BOOT_FOLDER = Path(__file__).parent
_ROOT = _BOOT_FOLDER.parent.parent
_MARK = "amd-sglang probe: "
#: Asks a child which boot module it started with, and which `patches` it would import. It imports nothing for that, and
#: leaves without taking itself apart: the launch waits for it.
_PROBE = f"""
import os, sys
boot = sys.modules.get("overlay.boot")
specs = (finder.find_spec("patches", None) for finder in sys.meta_path)
patches = next(filter(None, specs), None)
print({_MARK!r} + ascii([boot and boot.__file__, patches and patches.origin]), flush=True)
os._exit(0)
"""


def interpreter() -> list[str]:
    """The command of this Python, with the flags that its own children would inherit from it."""
    # The function multiprocessing itself builds the command of a spawned child with; it has no public name.
    return [sys.executable, *subprocess._args_from_interpreter_flags()]  # type: ignore[attr-defined]


def environment(base: Mapping[str, str]) -> dict[str, str]:
    """`base` and what makes every interpreter below start the overlay. Raises DeliveryError if none does."""
    installed = {**base, **boot.handover()}
    started = _probe(installed)
    if _same(started, boot.__file__):
        return installed
    path = [str(_BOOT_FOLDER), *filter(None, base.get("PYTHONPATH", "").split(os.pathsep))]
    lent = {**installed, "PYTHONPATH": os.pathsep.join(path)}
    if started is None:
        started = _probe(lent)
        if _same(started, boot.__file__):
            return lent
    child = " ".join(interpreter())
    if started is not None:
        raise DeliveryError(
            f"a child of {child} starts the overlay at {started}, not this one at {boot.__file__}. "
            "Uninstall one of the two from this environment."
        )
    raise DeliveryError(
        f"a child of {child} does not start the overlay at {_ROOT}. Python ignores PYTHONPATH under -E and -I and all "
        "of site under -S: drop these flags, or install the overlay into this environment "
        "(pip install amd-sglang-overlay), which works under -E and -I."
    )


def _probe(environ: Mapping[str, str]) -> str | None:
    """The boot module that a child interpreter with this environment has loaded before its first statement.

    Raises DeliveryError if it is ours, and a folder of the user's hides our patches from that child.
    """
    child = subprocess.run(
        [*interpreter(), "-c", _PROBE], env=dict(environ), capture_output=True, text=True, check=False
    )
    answers = [line.partition(_MARK)[2] for line in child.stdout.splitlines() if _MARK in line]
    started, patches = ast.literal_eval(answers[-1]) if answers else (None, None)
    if _same(started, boot.__file__) and not _same(patches, _ROOT / "patches" / "__init__.py"):
        raise DeliveryError(
            f"a child of {interpreter()[0]} started here imports {patches or 'nothing'} as `patches`, not the "
            f"overlay's own {_ROOT / 'patches'}. Rename that folder, or start from another directory."
        )
    return None if started is None else str(started)


def _same(path: str | None, expected: str | Path) -> bool:
    return path is not None and os.path.realpath(path) == os.path.realpath(expected)
