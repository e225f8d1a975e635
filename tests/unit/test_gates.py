"""Switches: what each takes, and that nothing malformed or misspelt passes for a default."""

from __future__ import annotations

import pytest

from overlay.errors import MalformedSwitchError, OverlayError
from overlay.gates import DISABLE, ENABLE, HANDOVER, SHADOW, STRICT, SWITCHES, Gate, OneOf, boolean, check, id_list

WORD = Gate("AMD_SGLANG_WORD", "a word", "auto", OneOf(("auto", "triton")))


@pytest.mark.parametrize(
    ("text", "value"), [("1", True), ("true", True), ("True", True), ("0", False), ("FALSE", False)]
)
def test_boolean(text: str, value: bool) -> None:
    assert boolean(text) is value


@pytest.mark.parametrize(
    ("text", "value"), [("a", ("a",)), ("a-b,c_1", ("a-b", "c_1")), (" a , b ", ("a", "b")), ("a,a", ("a", "a"))]
)
def test_id_list(text: str, value: tuple[str, ...]) -> None:
    assert id_list(text) == value


@pytest.mark.parametrize(
    ("gate", "default"),
    [(STRICT, False), (ENABLE, ()), (DISABLE, ()), (SHADOW, 0), (WORD, "auto")],
    ids=lambda x: getattr(x, "name", ""),
)
@pytest.mark.parametrize("environ", [{}, {"AMD_SGLANG_STRICT": "", "AMD_SGLANG_ENABLE": "", "AMD_SGLANG_WORD": ""}])
def test_unset_and_empty_mean_the_default(gate: Gate[object], default: object, environ: dict[str, str]) -> None:
    assert gate.read(environ) == default


@pytest.mark.parametrize(
    ("gate", "text", "expected"),
    [
        (STRICT, "yes", "1, 0, true or false"),
        (STRICT, "2", "1, 0, true or false"),
        (STRICT, " 1", "1, 0, true or false"),
        (ENABLE, "a,,b", "patch ids separated by commas"),
        (ENABLE, "a;b", "patch ids separated by commas"),
        (DISABLE, "Gemma", "patch ids separated by commas"),
        (DISABLE, "a-", "patch ids separated by commas"),
        (DISABLE, ",", "patch ids separated by commas"),
        (SHADOW, "-1", "a whole number, 0 or more"),
        (SHADOW, "1.0", "a whole number, 0 or more"),
        (SHADOW, "\u0663", "a whole number, 0 or more"),
        (WORD, "Triton", "one of auto, triton"),
        (WORD, "aiter", "one of auto, triton"),
    ],
)
def test_a_malformed_value_names_variable_value_and_what_was_expected(
    gate: Gate[object], text: str, expected: str
) -> None:
    with pytest.raises(MalformedSwitchError) as caught:
        gate.read({gate.name: text})
    for part in (gate.name, repr(text), expected):
        assert part in str(caught.value)


@pytest.mark.parametrize(
    ("name", "near"),
    [
        ("AMD_SGLANG_DISABEL", "AMD_SGLANG_DISABLE"),
        ("AMD_SGLANG_STRCIT", "AMD_SGLANG_STRICT"),
        ("AMD_SGLANG_WROD", "AMD_SGLANG_WORD"),
    ],
)
def test_a_misspelt_variable_is_an_error_that_suggests_the_near_one(name: str, near: str) -> None:
    with pytest.raises(OverlayError, match=rf"sets {name}, .* Did you mean {near}\?"):
        check({"PATH": "/bin", name: "1"}, (WORD,))


def test_a_variable_near_to_nothing_lists_the_known_ones() -> None:
    with pytest.raises(OverlayError, match=r"Known: AMD_SGLANG_\w+, .*AMD_SGLANG_DISABLE, AMD_SGLANG_ENABLE, "):
        check({"AMD_SGLANG_ZZZZZZZZZZZZZZZZZZZZ": "1"}, ())


def test_everything_the_overlay_reads_or_hands_over_is_known() -> None:
    ours = [gate.name for gate in (*SWITCHES, WORD)]
    check(dict.fromkeys([*ours, *HANDOVER, "SGLANG_USE_AITER", "AMD_LOG_LEVEL"], ""), (WORD,))
