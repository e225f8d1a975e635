"""Starts the overlay where it is not installed, then hands over to the user's own sitecustomize, if there is one.

This folder is on PYTHONPATH only below a launcher that runs from a plain checkout; an installed overlay is started by
the .pth file beside this one instead, which also works under `-E` and `-I`.
"""

import os
import sys
from importlib.machinery import PathFinder
from importlib.util import module_from_spec

_here = os.path.dirname(os.path.abspath(__file__))
_root = os.path.dirname(os.path.dirname(_here))

# The test of boot.wanted, before anything of ours is on the path of an interpreter that is none of our business.
_asked = {"AMD_SGLANG_OVERLAY": "1", "AMD_SGLANG_PREFIX": sys.prefix, "AMD_SGLANG_PYTHON": sys.implementation.cache_tag}
if all(os.environ.get(name) == value for name, value in _asked.items()):
    # At the end: a checkout also holds folders such as `tests`, which must not hide anything of the user's.
    if _root not in sys.path:
        sys.path.append(_root)
    from overlay import boot

    boot.start()

_spec = PathFinder.find_spec("sitecustomize", [entry for entry in sys.path if os.path.abspath(entry) != _here])
if _spec is not None and _spec.loader is not None:
    _module = module_from_spec(_spec)
    sys.modules["sitecustomize"] = _module
    _spec.loader.exec_module(_module)
