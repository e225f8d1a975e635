"""What the engine's benchmarks say of the processes they have run."""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import pytest
import torch
from torch import nn

from benchmarks.engine import Served, distinct_tokens, draw, same_tokens, successors
from benchmarks.engine_models import MODELS
from benchmarks.norm_engine import table, wrong_tokens


def served(rates: list[float], tokens: list[list[int]], method: str, repeats: bool = True) -> Served:
    return Served(
        sglang="0.5.12",
        streams={},
        norms={method: 3},
        tokens={"2": tokens},
        rates={"2": rates},
        leads={"2": 0.754},
        repeats=repeats,
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
        "- native: 3 x forward_native; the same tokens every time; distinct tokens {'2': 4}; least lead 0.75",
        "- ours: 3 x forward_hip; NOT the same tokens every time; distinct tokens {'2': 4}; least lead 0.75",
    ]


def test_sequences_are_compared_one_by_one() -> None:
    assert same_tokens(NATIVE, OURS, 2) == (1, 2)
    assert distinct_tokens(served([1.0], [[7, 7], [7, 7]], "forward_native")) == {"2": 1}


EQUAL, OTHER = (served([1.0], tokens, "forward_hip") for tokens in ([[1, 2], [3, 4]], [[1, 2], [3, 5]]))


@pytest.mark.parametrize(
    ("runs", "wrong"),
    [
        ({"native": NATIVE, "ours": EQUAL, "control": OTHER}, []),
        ({"native": NATIVE, "ours": OTHER}, ["ours decoded other tokens than native decoded"]),
        ({"native": NATIVE, "control": EQUAL}, ["control decoded the tokens that native decoded"]),
    ],
)
def test_every_form_must_decode_the_same_tokens_and_the_control_others(
    runs: dict[str, Served], wrong: Sequence[str]
) -> None:
    assert wrong_tokens(runs) == wrong


def test_the_successors_are_one_cycle_through_the_vocabulary() -> None:
    vocabulary = MODELS["qwen3-next"]["vocab_size"]
    following = successors(vocabulary).tolist()
    token, seen = 0, set()
    for _ in range(vocabulary):
        seen.add(token)
        token = following[token]
    assert (len(seen), token) == (vocabulary, 0)


class GemmaRMSNorm(nn.Module):
    def __init__(self, size: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(size))


class Network(nn.Module):
    def __init__(self, vocabulary: int, size: int) -> None:
        super().__init__()
        self.embed_tokens = nn.Embedding(vocabulary, size)
        self.norm = GemmaRMSNorm(size)
        self.lm_head = nn.Linear(size, vocabulary, bias=False)


def test_the_head_names_the_successor_of_what_was_embedded() -> None:
    network = Network(1000, 64)
    draw(network)
    with torch.no_grad():
        chosen = network.lm_head(network.embed_tokens(torch.arange(1000))).argmax(-1)
    assert torch.equal(chosen, successors(1000))
    assert all(network.norm.weight[a] != network.norm.weight[b] for a, b in itertools.pairwise(range(64)))
