"""How the overlay gets into the interpreters of a server: an environment, and a proof that it works.

An installed overlay (wheel or editable) put a .pth file into site-packages; a plain checkout lends its own
sitecustomize through PYTHONPATH. Which of the two reaches a child is not deduced: a child is started and asked.
"""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

from overlay import boot
from overlay.errors import DeliveryError

_BOOT_FOLDER = Path(__file__).parent
_PROBE = "import sys; m = sys.modules.get('overlay.boot'); print(m.__file__ if m else '')"


def interpreter() -> list[str]:
    """The command of this Python, with the flags that its own children would inherit from it."""
    # The function multiprocessing itself builds the command of a spawned child with; it has no public name.
    return [sys.executable, *subprocess._args_from_interpreter_flags()]  # type: ignore[attr-defined]


def environment(base: Mapping[str, str]) -> dict[str, str]:
    """`base` and what makes every interpreter below start the overlay. Raises DeliveryError if none does."""
    installed = {**base, **boot.handover()}
    if _reaches(installed):
        return installed
    path = [str(_BOOT_FOLDER), *filter(None, base.get("PYTHONPATH", "").split(os.pathsep))]
    lent = {**installed, "PYTHONPATH": os.pathsep.join(path)}
    if _reaches(lent):
        return lent
    raise DeliveryError(
        f"a child of {' '.join(interpreter())} does not start the overlay from {_BOOT_FOLDER.parent}. Python ignores "
        "PYTHONPATH under -E and -I and all of site under -S: drop these flags, or install the overlay into this "
        "environment (pip install amd-sglang-overlay), which works under -E and -I."
    )


def _reaches(environ: Mapping[str, str]) -> bool:
    """Whether a child interpreter with this environment has *our* boot module loaded before its first statement."""
    child = subprocess.run(
        [*interpreter(), "-c", _PROBE], env=dict(environ), capture_output=True, text=True, check=False
    )
    found: Sequence[str] = child.stdout.split("\n")
    return child.returncode == 0 and bool(found[0]) and os.path.realpath(found[0]) == os.path.realpath(boot.__file__)
