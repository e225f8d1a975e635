"""Results as JSON."""

from __future__ import annotations

import dataclasses
import json
from typing import Any

from benchmarks.results import Report

#: Raised whenever a key changes its name or meaning.
SCHEMA = 1


def document(report: Report) -> dict[str, Any]:
    """Every measurement, with the ratios that the tables show. Times are microseconds."""
    made: dict[str, Any] = {"schema": SCHEMA, **dataclasses.asdict(report)}
    for group in made["groups"]:
        for case in group["cases"]:
            for result in case["results"]:
                median = result["timing"]["median"]
                result["copy_over_time"] = case["copy"]["median"] / median
                result["floor_over_time"] = case["floor"] / median
    return made


def text(report: Report) -> str:
    return json.dumps(document(report), indent=1) + "\n"
