"""What the programs that count Python frames share: one profiled call, and their numbers as JSON."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from _typeshed import DataclassInstance


def profiled(call: Callable[[], object], profile: Callable[[FrameType, str, Any], None]) -> None:
    """Run `call` once to settle what is decided lazily, then once with `profile` told of every function entered and
    left: the first is `call` itself."""
    call()
    before = sys.getprofile()
    sys.setprofile(profile)
    try:
        call()
    finally:
        sys.setprofile(before)


def json_option(description: str | None) -> Path | None:
    """Where the command line wants the numbers, besides on the terminal."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=Path, help="also write the numbers there")
    given: Path | None = parser.parse_args().json
    return given


def write(path: Path, rows: Mapping[str, Sequence[DataclassInstance]]) -> None:
    """Name -> the frames with the patch, and without."""
    path.write_text(json.dumps({name: [asdict(one) for one in pair] for name, pair in rows.items()}, indent=1))
