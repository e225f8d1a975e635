"""The program that reports: `python -m overlay.verify REQUEST`, which `amd-sglang verify` becomes."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Iterable
from datetime import datetime, timezone
from pathlib import Path

from overlay import denylist, gates
from overlay.denylist import Entry
from overlay.errors import OverlayError
from overlay.registry import load
from overlay.verify import plot, report
from overlay.verify.outcome import Device, Result
from overlay.verify.request import Request
from overlay.verify.supervise import Supervisor


def main(argument: str, supervisor: Supervisor | None = None) -> int:
    """Exit status: 1 if a kernel failed or could not be run. Raises OverlayError."""
    request = Request.of(argument)
    path = denylist.path_of(os.environ)
    known = denylist.read(path)
    supervisor = supervisor or Supervisor(load(os.environ))
    results: list[Result] = []
    for result in supervisor.results(request, together=bool(gates.SIMULATE.read(os.environ))):
        head = [] if results else [report.head(supervisor.sizes, supervisor.device)]
        _say(request, "\n\n".join([*head, report.block(result)]) + "\n")
        results.append(result)
    device = supervisor.device
    if request.plot is not None:
        title = f"Speed against the replaced path on {device.name}"
        plot.save(Path(request.plot), title, plot.bars_of(results))
    denied = denials(results, device)
    if denied:
        denylist.deny(path, denied)
    if request.as_json:
        print(json.dumps(report.to_json(results, supervisor.sizes, device, denied), indent=2))
    here = [entry for entry in known if (entry.arch, entry.simulated) == (device.arch, device.interpreted)]
    for line in report.closing(results, denied, here, path):
        _say(request, line)
    return int(any(result.state in ("failed", "not run") for result in results))


def denials(results: Iterable[Result], device: Device) -> tuple[Entry, ...]:
    """An entry for each patch that has failed, with its first failure."""
    now = datetime.now(timezone.utc).isoformat(timespec="seconds")
    return tuple(
        Entry(
            patch=result.patch.id,
            arch=device.arch,
            simulated=device.interpreted,
            reason=f"{result.failures[0].label}: {result.failures[0].failure}",
            found=now,
            versions=device.versions,
        )
        for result in results
        if result.failures
    )


def _say(request: Request, text: str) -> None:
    """Tables and sentences; JSON stands alone on standard output."""
    print(text, file=sys.stderr if request.as_json else sys.stdout, flush=True)


if __name__ == "__main__":
    try:
        sys.exit(main(sys.argv[1]))
    except OverlayError as error:
        print(f"Error: {error}", file=sys.stderr)
        sys.exit(error.exit_code)
