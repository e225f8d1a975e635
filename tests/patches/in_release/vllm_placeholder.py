"""An empty vLLM for the two oldest releases."""

from __future__ import annotations

import importlib.metadata
import sys
from importlib.machinery import ModuleSpec
from importlib.util import module_from_spec


def provide_vllm() -> None:
    """The oldest two import vLLM's operators wherever they run on ROCm (moe_runner/triton.py:44); none runs here."""
    if importlib.metadata.version("sglang") in ("0.5.6.post2", "0.5.7"):
        package, operators = (module_from_spec(ModuleSpec(name, None)) for name in ("vllm", "vllm._custom_ops"))
        package.__dict__["_custom_ops"], operators.__dict__["rotary_embedding"] = operators, None
        sys.modules.update({"vllm": package, "vllm._custom_ops": operators})
