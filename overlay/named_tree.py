"""The source of an sglang that the user names. Not in `overlay.source`: no process of a server opens a wheel."""

from __future__ import annotations

import os
from pathlib import Path

from overlay.errors import SglangNotFoundError
from overlay.source import DirectoryTree, SourceTree
from overlay.wheel import open_wheel


def open_tree(path: str) -> SourceTree:
    """The tree a user means by `--sglang PATH`: site-packages, the package itself, a checkout, or a wheel."""
    given = Path(os.path.abspath(os.path.expanduser(path)))
    if given.suffix == ".whl" and given.is_file():
        return open_wheel(given, path)
    for root in (given, given.parent if given.name == "sglang" else given, given / "python"):
        if (root / "sglang" / "__init__.py").is_file():
            return DirectoryTree(root)
    raise SglangNotFoundError(
        f"--sglang {path}: no package sglang there. Give the folder that holds it (site-packages, an unpacked wheel, "
        "the `python` folder of a checkout), the package folder itself, or a wheel."
    )
