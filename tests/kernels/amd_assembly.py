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
    **options: int,
) -> dict[str, Any]:
    """Compile `function` and report its registers, its LDS in bytes and its memory operations.

    `signature` has the Triton type of every argument that is no constant; `aligned` names those that 16 divides;
    `options` are what the launcher passes besides, such as `num_stages`.
    """
    names = function.arg_names
    attributes = {(names.index(name),): [["tt.divisibility", 16]] for name in aligned}
    source = ASTSource(function, signature | dict.fromkeys(constants, "constexpr"), constants, attributes)
    made = triton_compile(source, target=target, options={"num_warps": num_warps, **options})
    assembly = made.asm["amdgcn"]

    def number(pattern: str) -> int:
        found = re.search(rf"{pattern}:\s+(\d+)", assembly)
        assert found is not None, f"{pattern} is not in the assembly"
        return int(found.group(1))

    return {
        "threads": num_warps * target.warp_size,
        "vgprs": number(r"\.vgpr_count"),
        "sgprs": number(r"\.sgpr_count"),
        "lds_bytes": made.metadata.shared,
        "vgpr_spills": number(r"\.vgpr_spill_count"),
        "sgpr_spills": number(r"\.sgpr_spill_count"),
        "compiler_waves": number("; Occupancy"),
        "memory_operations": Counter(re.findall(r"\b(?:global|buffer|flat|scratch)_(?:load|store)_\w+", assembly)),
    }
