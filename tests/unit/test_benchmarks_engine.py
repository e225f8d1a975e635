"""What the engine's benchmarks say of the processes they have run."""

from __future__ import annotations

from benchmarks.engine import Served, distinct_tokens, same_tokens
from benchmarks.norm_engine import table


def served(rates: list[float], tokens: list[list[int]], method: str, repeats: bool = True) -> Served:
    return Served(
        sglang="0.5.12", streams={}, norms={method: 3}, tokens={"2": tokens}, rates={"2": rates}, repeats=repeats
    )


NATIVE = served([100.0, 90.0, 110.0], [[1, 2], [3, 4]], "forward_native")
OURS = served([150.0, 130.0, 140.0], [[1, 2], [3, 5]], "forward_hip", repeats=False)


def test_ratios_are_of_medians_and_equal_sequences_are_counted() -> None:
    lines = table({"native": NATIVE, "ours": OURS}, [2])
    assert lines[2:4] == [
        "| 2 | native | 100.0 (90.0 - 110.0) | 1.000 | 2 of 2 |",
        "| 2 | ours | 140.0 (130.0 - 150.0) | 1.400 | 1 of 2 |",
    ]


def test_the_forms_say_what_they_ran_and_whether_they_repeat_themselves() -> None:
    assert table({"native": NATIVE, "ours": OURS}, [2])[4:] == [
        "- native: 3 x forward_native; the same tokens every time; distinct tokens {'2': 4}",
        "- ours: 3 x forward_hip; NOT the same tokens every time; distinct tokens {'2': 4}",
    ]


def test_sequences_are_compared_one_by_one() -> None:
    assert same_tokens(NATIVE, OURS, 2) == (1, 2)
    assert distinct_tokens(served([1.0], [[7, 7], [7, 7]], "forward_native")) == {"2": 1}
