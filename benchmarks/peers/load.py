"""Loads a peer, or says why it cannot be."""

from __future__ import annotations

import importlib
import os
import sys
from pathlib import Path
from types import ModuleType

from benchmarks.case import AbsentError
from benchmarks.peers.pins import PEERS

FOLDER = Path(__file__).resolve().parents[2] / ".peers"


def activate(folder: Path = FOLDER) -> None:
    """Let peers be imported from a folder, before anything else that is installed.

    SGLang's development build puts Triton's cache beside its own source unless a cache has been named
    (triton_mla_kernels_decode_dsv4.py:26): it is named first.
    """
    os.environ.setdefault("TRITON_CACHE_DIR", str(Path.home() / ".triton" / "cache"))
    if folder.is_dir() and str(folder) not in sys.path:
        sys.path.insert(0, str(folder))


def module(peer: str, name: str) -> ModuleType:
    """A module of a peer. Raises AbsentError, which names what could not be imported and how the peer is fetched."""
    try:
        return importlib.import_module(name)
    except Exception as error:  # a compiled package may fail to load in any way
        reason = f"{name} cannot be imported ({type(error).__name__}: {' '.join(str(error).split())[:160]})"
        if any(pinned.name == peer for pinned in PEERS) and not (FOLDER / peer).exists():
            reason += f"; python -m benchmarks.peers {peer} fetches it"
        raise AbsentError(reason) from error
