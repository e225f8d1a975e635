"""Where the repository keeps what it builds, and which versions it builds with."""

from __future__ import annotations

from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
REQUIREMENTS = ROOT / "requirements"
VENV = ROOT / ".venv"
VENV_PYTHON = VENV / "bin" / "python"
RELEASES = ROOT / ".releases"
CACHE = ROOT / ".cache"
LOGS = CACHE / "logs"
CHECKPOINTS = CACHE / "checkpoints"

#: The oldest release family the overlay serves; it is the one installed in the environment and served by the demo.
BASE_RELEASE = "0.5.9"
#: Installed with its dependencies in a step of its own, because a CUDA build of torch pins another Triton than ours.
TORCH = "torch==2.13.0"


def site_packages() -> Path:
    """The environment's site-packages folder; raises FileNotFoundError when there is no environment yet."""
    found = sorted(VENV.glob("lib/python3.*/site-packages"))
    if not found:
        raise FileNotFoundError(f"{VENV} holds no site-packages; run `make venv` first")
    return found[0]
