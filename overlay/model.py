"""The vocabulary of the overlay: what a patch is, and what can be decided about it. Data only."""

from __future__ import annotations

from collections.abc import Callable
from enum import Enum
from typing import TYPE_CHECKING

from overlay.records import dataclass

if TYPE_CHECKING:
    from overlay.gates import Gate
    from overlay.platform import Platform


class State(str, Enum):
    """Where a patch stands. The first seven are decided before anything is touched, the others at run time."""

    PLANNED = "planned"
    CONTAINED = "contained"
    DISABLED = "disabled"
    UNSUPPORTED_PLATFORM = "unsupported-platform"
    UNSUPPORTED_VERSION = "unsupported-version"
    SOURCE_MISMATCH = "source-mismatch"
    CONFLICT = "conflict"
    APPLIED = "applied"
    FAILED = "failed"
    ROLLED_BACK = "rolled-back"


#: States in which the user gets neither the patch nor a release that contains it, although nothing ruled it out.
BROKEN = frozenset({State.SOURCE_MISMATCH, State.CONFLICT, State.FAILED, State.ROLLED_BACK})


class Method(str, Enum):
    """How a slot is filled.

    REPLACE puts a plain function there: mandatory for anything hot, compiled or pickled, because torch.compile looks
    through a `wrapt.FunctionWrapper` and traces the original. WRAP uses wrapt, on cold seams such as `__init__`.
    DEFINE puts an object of any kind under a name that does not exist yet, such as a variable of `Envs`.
    """

    REPLACE = "replace"
    WRAP = "wrap"
    DEFINE = "define"


@dataclass(frozen=True)
class Slot:
    """One name in one namespace of sglang, written `package.module:Class.attribute`. Slots sort by their spelling."""

    module: str
    qualname: str

    def __lt__(self, other: Slot) -> bool:
        return (self.module, self.qualname) < (other.module, other.qualname)

    def __str__(self) -> str:
        return f"{self.module}:{self.qualname}"


#: Stands in an image for "the owner exists and does not define this name itself".
ABSENT = "absent"


@dataclass(frozen=True)
class Image:
    """The sources of one slot that a variant knows: digests of `overlay.fingerprint`, or ABSENT."""

    slot: Slot
    digests: frozenset[str]

    @classmethod
    def of(cls, slot: Slot, *digests: str) -> Image:
        """The image of a slot with these sources."""
        return cls(slot, frozenset(digests))


@dataclass(frozen=True)
class Target:
    """One slot a patch fills.

    `make` receives what the slot held (None where it was absent) and returns what to put there: the replacement for
    REPLACE, a `wrapper(wrapped, instance, args, kwargs)` for WRAP. It runs in the patched process, after the module
    has executed, and may import torch and triton.
    """

    slot: Slot
    method: Method
    make: Callable[[object], object]


@dataclass(frozen=True)
class Facts:
    """What a variant may ask about beyond the source: where it runs and how it was configured."""

    platform: Platform
    environ: dict[str, str]

    def is_on(self, name: str) -> bool:
        """Whether a boolean variable of sglang is set, as `get_bool_env_var` of every release reads it."""
        return self.environ.get(name, "false").lower() in ("true", "1")


@dataclass(frozen=True)
class Need:
    """Whether the source of a variant needs the patch under given facts, and the sentence that says why.

    `otherwise` is the state of a patch that is not needed: contained; disabled, where a switch of sglang's own has not
    asked for what it brings; unsupported, where the release lacks what it would stand upon.
    """

    needed: bool
    reason: str
    otherwise: State = State.CONTAINED


def always(need: Need) -> Callable[[Facts], Need]:
    """The `need` of a variant that facts do not change."""
    return lambda _facts: need


@dataclass(frozen=True)
class Variant:
    """One shape in which upstream ships the patched code.

    `images` must all match for the variant to be recognised; `need` then says whether it needs the patch (the same
    source may, depending on the environment); `targets` are what is installed if it does.
    """

    name: str
    images: tuple[Image, ...]
    need: Callable[[Facts], Need]
    targets: tuple[Target, ...] = ()


@dataclass(frozen=True)
class Pack:
    """Where a third-party patch comes from: the name of an entry point, and the distribution that offers it."""

    name: str
    distribution: str
    version: str

    def __str__(self) -> str:
        return f"{self.name} ({self.distribution} {self.version})"


@dataclass(frozen=True)
class Patch:
    """A versioned change to sglang: data, and plain functions in its targets.

    Two patches may fill one slot if they know it by different sources, if they are declared `conflicts`, or if the
    later `requires` the earlier: then `make` of the later receives what the earlier put there.

    `kernels` names what `amd-sglang verify` runs, `package.module:function`: a function that takes
    `overlay.verify.shapes.Shapes` and yields `overlay.verify.case.Case`. None for a patch without a kernel of its own.

    `pack` is filled in by `overlay.packs`, whatever a pack wrote there; None for the patches of this distribution.
    """

    id: str
    title: str
    why: str
    upstream: tuple[str, ...]
    contained_since: str
    versions: str
    variants: tuple[Variant, ...]
    remove_when: str
    verified_by: str
    platforms: frozenset[str] = frozenset({"rocm"})
    archs: frozenset[str] | None = None
    gates: tuple[Gate[object], ...] = ()
    requires: tuple[str, ...] = ()
    conflicts: tuple[str, ...] = ()
    default_on: bool = True
    kernels: str | None = None
    pack: Pack | None = None


@dataclass(frozen=True)
class SlotReport:
    """What was seen at one slot: its observed digest (or why there is none) and whether the variant fills it."""

    slot: Slot
    observed: str
    method: Method | None


@dataclass(frozen=True)
class Decision:
    """The verdict on one patch, with the sentence a user reads."""

    patch: Patch
    state: State
    reason: str
    variant: Variant | None = None
    slots: tuple[SlotReport, ...] = ()

    @property
    def targets(self) -> tuple[Target, ...]:
        return self.variant.targets if self.variant is not None else ()
