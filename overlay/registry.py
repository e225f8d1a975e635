"""The ordered set of patches, checked once for contradictions."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path

import overlay
from overlay import gates, version_range
from overlay.errors import OverlayError, PackError, RegistryError, UnknownPatchError
from overlay.gates import PATCH_ID, Gate
from overlay.model import Patch, Slot

#: Ours are checked for typing errors at launch; a patch may also read a variable of sglang.
_GATE_NAME = re.compile(r"(AMD_)?SGLANG_[A-Z0-9_]+")
_KERNELS = re.compile(r"[A-Za-z_]\w*(\.[A-Za-z_]\w*)*:[A-Za-z_]\w*")


class Registry:
    """Patches in the order in which they are decided and applied."""

    def __init__(self, patches: Iterable[Patch]) -> None:
        self._patches = {patch.id: patch for patch in _validated(tuple(patches))}

    def __iter__(self) -> Iterator[Patch]:
        return iter(self._patches.values())

    @property
    def ids(self) -> tuple[str, ...]:
        return tuple(self._patches)

    @property
    def gates(self) -> tuple[Gate[object], ...]:
        return tuple(gate for patch in self for gate in patch.gates)

    def get(self, patch_id: str, place: str) -> Patch:
        """The patch of that id; `place` is where the user wrote it, for the error."""
        try:
            return self._patches[patch_id]
        except KeyError:
            raise UnknownPatchError(patch_id, place, self.ids) from None


def load(environ: Mapping[str, str]) -> Registry:
    """The patches of this distribution, and after them those of the packs that AMD_SGLANG_PACKS names, in its order.

    Raises MalformedSwitchError, UnknownPackError or PackError.
    """
    registry = builtin()
    names = gates.PACKS.read(environ)
    if not names:
        return registry
    from overlay import packs  # what looks a stranger's patches through, which most launches have none of

    for offer, patches in packs.load(names):
        try:
            registry = Registry((*registry, *patches))
        except RegistryError as error:
            raise PackError(str(offer), str(error)) from error
    return registry


def builtin() -> Registry:
    """The patches this distribution ships, whatever the environment names."""
    import patches

    own = Path(overlay.__file__).parent.parent / "patches"
    found = Path(str(patches.__file__)).parent
    if found.resolve() != own.resolve():
        raise OverlayError(
            f"`import patches` finds {found}, not the overlay's own {own}: it comes first on the path. "
            "Rename that folder, or start from another directory."
        )
    return Registry(patches.PATCHES)


def _validated(patches: tuple[Patch, ...]) -> tuple[Patch, ...]:
    seen: set[str] = set()
    filled: dict[tuple[Slot, str], list[Patch]] = {}
    switches = {gate.name for gate in gates.SWITCHES} | set(gates.HANDOVER)
    for patch in patches:
        if patch.id in seen:
            raise RegistryError(f"two patches have the id {patch.id}")
        if not patch.variants:
            raise RegistryError(f"{patch.id} has no variant: it knows no source")
        if not PATCH_ID.fullmatch(patch.id):
            raise RegistryError(f"{patch.id!r} is no id that a switch could name")
        late = [other for other in patch.requires if other not in seen]
        if late:
            raise RegistryError(f"{patch.id} requires {', '.join(late)}, which must stand before it")
        try:
            version_range.check(patch.versions)
        except ValueError:
            raise RegistryError(f"{patch.id} has a malformed version range {patch.versions!r}") from None
        if "<" not in patch.versions:
            raise RegistryError(f"{patch.id} has no upper version bound: a release nobody has read may differ")
        for slot, digest in sorted(_filled(patch)):
            for other in filled.setdefault((slot, digest), []):
                if other.id not in (*patch.conflicts, *patch.requires) and patch.id not in other.conflicts:
                    raise RegistryError(f"{patch.id} and {other.id} both fill {slot}: neither conflict nor requirement")
            filled[slot, digest].append(patch)
        for variant in patch.variants:
            unseen = {target.slot for target in variant.targets} - {image.slot for image in variant.images}
            if unseen:
                raise RegistryError(f"{patch.id}/{variant.name} fills {min(unseen)} without an image of it")
        if patch.kernels is not None and not _KERNELS.fullmatch(patch.kernels):
            raise RegistryError(f"{patch.id} names its kernels {patch.kernels!r}: expected package.module:function")
        for gate in patch.gates:
            if not _GATE_NAME.fullmatch(gate.name):
                raise RegistryError(f"{patch.id} has a switch {gate.name!r}: its name must match {_GATE_NAME.pattern}")
            if gate.name in switches:
                raise RegistryError(f"{patch.id} has a switch {gate.name}, which there is already")
            switches.add(gate.name)
        seen.add(patch.id)
    for patch in patches:
        stray = [other for other in patch.conflicts if other not in seen]
        if stray:
            raise RegistryError(f"{patch.id} conflicts with {', '.join(stray)}, which nobody has")
    return patches


def _filled(patch: Patch) -> set[tuple[Slot, str]]:
    """The slots a patch fills, each with the sources over which it does: no two of them are ever there at once."""
    return {
        (image.slot, digest)
        for variant in patch.variants
        for image in variant.images
        if image.slot in {target.slot for target in variant.targets}
        for digest in image.digests
    }
