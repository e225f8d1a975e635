"""Upstream's own code beside the patched one, in one process."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from types import ModuleType


def executed_again(patched: ModuleType) -> ModuleType:
    """The file of a module, executed under a name that no patch waits for."""
    file = Path(str(patched.__file__))
    name = f"pristine_{file.stem}"
    spec = importlib.util.spec_from_file_location(name, file)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    spec.loader.exec_module(module)
    return module
