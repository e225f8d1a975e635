"""The files of the published releases that patches and witnesses look at, and what is in them.

`known_sources.json` has, under the SHA-256 of a file, the sighting of every name that is looked at in it. It says
nothing that the file does not: a file with one byte more is parsed as if there were no table, and so is a name that is
missing here. `python -m matrix update` writes it, and the tests compute it again from the releases.
"""

from __future__ import annotations

import json
from functools import cache
from pathlib import Path

from overlay.sighting import Memory

FILE = Path(__file__).with_suffix(".json")


@cache
def memory() -> Memory:
    """What this process knows of sources: the files of the published releases, and what it has parsed itself."""
    return Memory(json.loads(FILE.read_bytes()))
