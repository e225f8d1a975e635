"""Packs as they lie in site-packages: a module and a dist-info with an entry point."""

from __future__ import annotations

from pathlib import Path

from tests.unit.engine_support import ALPHA_IMAGE, write_tree

(_DIGEST,) = ALPHA_IMAGE.digests

#: One patch of the synthetic `Alpha.forward`. `{changes}` are fields that differ from those of a sound patch.
_SOUND = f"""
from dataclasses import replace
from overlay.gates import Gate
from overlay.model import Image, Method, Need, Patch, Slot, Target, Variant, always

ALPHA = Slot("sglang.srt.alpha", "Alpha.forward")

def make(original):
    return lambda self: "the pack's"

def one(**changes):
    only = Variant(
        "only", (Image.of(ALPHA, {_DIGEST!r}),), always(Need(True, "asked for")),
        (Target(ALPHA, Method.REPLACE, make),),
    )
    sound = Patch(
        id="stranger", title="a stranger's patch", why="a test", upstream=(), contained_since="no release",
        versions=">=0.5.7,<0.5.12", variants=(only,), remove_when="never", verified_by="nobody",
    )
    return replace(sound, **changes)
"""


def write_pack(
    site: Path,
    code: str = "PATCHES = (one(),)",
    *,
    name: str = "strange",
    distribution: str = "strange-pack",
    version: str = "1.2",
    value: str | None = None,
) -> Path:
    """A pack below `site`, whose module defines `one(**changes)` and then runs `code`. Returns its dist-info."""
    module = distribution.replace("-", "_")
    info = f"{module}-{version}.dist-info"
    write_tree(
        site,
        {
            f"{module}.py": _SOUND + code + "\n",
            f"{info}/METADATA": f"Metadata-Version: 2.1\nName: {distribution}\nVersion: {version}\n",
            f"{info}/entry_points.txt": f"[amd_sglang.patches]\n{name} = {value or f'{module}:PATCHES'}\n",
        },
    )
    return site / info
