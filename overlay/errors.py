"""What can go wrong, one class per failure. Each message names the value, the place and the fix."""

#: Exit status of whatever refuses to serve because of `--strict`.
EXIT_STRICT = 3

_PACKS_SWITCH = "--packs and AMD_SGLANG_PACKS"


class OverlayError(Exception):
    """Base of every error a user can cause or cure. The command line prints it without a traceback."""

    exit_code = 2


class MalformedSwitchError(OverlayError):
    """A command-line or environment switch holds a value it cannot take."""

    def __init__(self, name: str, value: str, expected: str) -> None:
        super().__init__(f"{name}={value!r} is not valid: expected {expected}. Correct or unset {name}.")


class UnknownPatchError(OverlayError):
    """A patch id that no registered patch has."""

    def __init__(self, patch_id: str, place: str, known: tuple[str, ...]) -> None:
        super().__init__(f"unknown patch id {patch_id!r} in {place}: known ids are {', '.join(known)}.")


class UnknownPackError(OverlayError):
    """A third-party pack that no installed distribution offers."""

    def __init__(self, name: str, installed: tuple[str, ...]) -> None:
        known = f"Installed: {', '.join(installed)}." if installed else "No pack is installed for this Python."
        super().__init__(f"no pack {name!r} is installed. {known} Install it, or take it out of {_PACKS_SWITCH}.")


class PackError(OverlayError):
    """A third-party pack that was asked for and cannot be used. `offer` names it and whose it is."""

    def __init__(self, offer: str, problem: str) -> None:
        super().__init__(
            f"the third-party pack {offer} cannot be used: {problem}. Nothing of it is in force. Install a version of "
            f"it that is right, or take it out of {_PACKS_SWITCH}."
        )


class SglangNotFoundError(OverlayError):
    """No sglang source where one was asked for, or something else of that name in its place."""


class NoSglangError(SglangNotFoundError):
    """This Python has no sglang at all."""


class DeliveryError(OverlayError):
    """The overlay cannot reach the interpreters that the launched program will start."""


class StrictError(OverlayError):
    """`--strict` was asked for and a patch that should serve cannot."""

    exit_code = EXIT_STRICT


class RanksDifferError(OverlayError):
    """The ranks of one server are not patched alike."""


class RegistryError(Exception):
    """The set of patches contradicts itself: a defect of a patch module, not of the user's input."""


class InstallError(Exception):
    """A group of slots could not be installed; everything it had touched has been put back."""


class ConflictError(InstallError):
    """A slot does not hold the code that was fingerprinted: somebody else got there first."""
