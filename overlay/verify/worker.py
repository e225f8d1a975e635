"""The program that measures: `python -m overlay.verify.worker REQUEST`, which loads torch.

It tells on standard output what it is about to do and what came of it, one JSON object a line: a kernel may end its
process (a memory fault does on ROCm) or never end, and `overlay.verify.supervise` then knows which one it was.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable, Iterable
from dataclasses import asdict
from importlib import import_module
from pathlib import Path
from typing import Any

import torch

from overlay.errors import OverlayError
from overlay.model import Patch
from overlay.registry import load
from overlay.verify import shapes
from overlay.verify.case import Case
from overlay.verify.device import find
from overlay.verify.measure import measure
from overlay.verify.model_config import read_model
from overlay.verify.outcome import Device
from overlay.verify.request import Request
from overlay.verify.shapes import Shapes

Tell = Callable[..., None]


def verify(patch: Patch, over: Shapes, device: torch.device, tell: Tell) -> None:
    """All cases of one patch."""
    try:
        for case in cases_of(patch)(over):
            tell("case", label=case.label, kernel=case.kernel)
            tell("outcome", **asdict(measure(case, device)))
    except Exception as error:  # noqa: BLE001 - such as an aiter that is unsuitable: no kernel has run
        tell("problem", why=f"{type(error).__name__}: {error}")
    tell("done")


def cases_of(patch: Patch) -> Callable[[Shapes], Iterable[Case]]:
    """The function that `Patch.kernels` names."""
    module, _, name = str(patch.kernels).partition(":")
    found: Callable[[Shapes], Iterable[Case]] = getattr(import_module(module), name)
    return found


def main(argument: str) -> None:
    tell = _teller()
    request = Request.of(argument)
    try:
        device, facts = find(os.environ)
        sizes, over = _sizes(request, facts)
    except OverlayError as error:
        tell("error", why=str(error))
        return
    tell("device", sizes=sizes, **asdict(facts))
    registry = load(os.environ)
    for one in request.ids:
        verify(registry.get(one, "the request"), over, device, tell)


def _teller() -> Tell:
    """What writes the lines. Whatever else is printed in this process goes to standard error: aiter logs to stdout."""
    stream = os.fdopen(os.dup(1), "w", encoding="utf-8")
    sys.stdout.flush()
    os.dup2(2, 1)

    def tell(what: str, **facts: Any) -> None:
        stream.write(json.dumps({"what": what, **facts}) + "\n")
        stream.flush()

    return tell


def _sizes(request: Request, device: Device) -> tuple[str, Shapes]:
    """What the sizes are called, and the sizes."""
    if request.model_path is not None:
        path = Path(request.model_path)
        return str(path), shapes.of(read_model(path, request.tensor_parallel), interpreted=device.interpreted)
    if device.interpreted:
        return "two tiny models", shapes.tiny()
    return "models that are widely served", shapes.served()


if __name__ == "__main__":
    main(sys.argv[1])
