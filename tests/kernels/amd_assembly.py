"""What Triton's AMD code generator made of a kernel, read from the assembly. For programs with the compiler active."""

from __future__ import annotations

import re
from collections import Counter
from typing import Any

from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource
from triton.compiler import compile as triton_compile


def build(
    function: Any,
    signature: dict[str, str],
    constants: dict[str, Any],
    aligned: list[str],
    num_warps: int,
    target: GPUTarget,
) -> dict[str, Any]:
    """Compile `function` and report its registers and memory operations.

    `signature` has the Triton type of every argument that is no constant; `aligned` names those that 16 divides.
    """
    names = function.arg_names
    attributes = {(names.index(name),): [["tt.divisibility", 16]] for name in aligned}
    source = ASTSource(function, signature | dict.fromkeys(constants, "constexpr"), constants, attributes)
    assembly = triton_compile(source, target=target, options={"num_warps": num_warps}).asm["amdgcn"]

    def metadata(key: str) -> int:
        found = re.search(rf"\.{key}:\s+(\d+)", assembly)
        assert found is not None, f"{key} is not in the assembly"
        return int(found.group(1))

    return {
        "vgprs": metadata("vgpr_count"),
        "vgpr_spills": metadata("vgpr_spill_count"),
        "sgpr_spills": metadata("sgpr_spill_count"),
        "memory_operations": Counter(re.findall(r"\b(?:global|buffer|flat|scratch)_(?:load|store)_\w+", assembly)),
    }
