"""What GPU an extension module was built for, read from its bytes: no loader, no tool of ROCm."""

from __future__ import annotations

import mmap
import re
from pathlib import Path

from overlay.doctor.facts import Binary

#: The target triple in the entries of clang's offload bundle, and in the notes of a bare code object.
_CODE_OBJECT = re.compile(rb"amdgcn-amd-amdhsa-[a-z]*-(gfx[0-9a-f]+)")
#: The header of a compressed bundle: magic, version 1 to 3, method zlib or zstd (clang's OffloadBundler.cpp).
_COMPRESSED = re.compile(rb"CCOB[\x01-\x03]\x00[\x00\x01]\x00")


def inspect(path: Path) -> Binary:
    """The gfx names of a shared object's code objects and the runtime it needs. Nothing is found in what is no file,
    empty or unreadable."""
    try:
        with path.open("rb") as stream, mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_READ) as content:
            return Binary(
                path,
                frozenset(found[1].decode() for found in _CODE_OBJECT.finditer(content)),
                sealed=_COMPRESSED.search(content) is not None,
                hip=content.find(b"libamdhip64.so") >= 0,
                cuda=content.find(b"libcudart.so") >= 0 or content.find(b"libcuda.so") >= 0,
            )
    except (OSError, ValueError):  # an empty file cannot be mapped
        return Binary(path)
