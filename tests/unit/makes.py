"""Every way in which a patch may write a `make`, for the tests of what is shown of it."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

Make = Callable[[object], object]


def inner(_original: object) -> object:
    def replacement(self: object) -> str:
        return "inner"

    return replacement


def either(original: object) -> object:
    def present(self: object) -> str:
        return "present"

    def absent(self: object) -> str:
        return "absent"

    return absent if original is None else present


def through_helper(original: object) -> object:
    return _helper(original, "helped")


def _helper(original: object, word: str) -> object:
    def replacement(self: object) -> str:
        return word

    return replacement


def decorated(original: Any) -> object:
    @functools.wraps(original)
    def replacement(self: object) -> str:
        return "decorated"

    return replacement


def static(_original: object) -> object:
    def replacement() -> str:
        return "static"

    return staticmethod(replacement)


def of_module(_original: object) -> object:
    return at_module_level


def at_module_level(self: object) -> str:
    return "module level"


def opaque(original: Any) -> object:
    return type(original)("opaque")


def configured(word: str) -> Make:
    def make(_original: object) -> object:
        def replacement(self: object) -> str:
            return word

        return replacement

    return make


def _bound_word(word: str, _original: object) -> object:
    def replacement(self: object) -> str:
        return word

    return replacement


partial: Make = functools.partial(_bound_word, "partial")
short: Make = lambda _original: at_module_level  # noqa: E731 - a lambda is what is tested


class _Callable:
    def __call__(self, _original: object) -> object:
        def replacement(self: object) -> str:
            return "callable"

        return replacement


instance: Make = _Callable()


def recursive(original: object) -> object:
    return recursive(original)
