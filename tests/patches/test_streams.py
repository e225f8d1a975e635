"""The one way an MoE block is given a stream, on blocks of every shape that experts can have."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from patches import streams

STREAM = object()


def config(inplace: object = True) -> SimpleNamespace:
    return SimpleNamespace(inplace=inplace)


def block(**experts: object) -> Any:
    return SimpleNamespace(alt_stream=None, layer_id=3, experts=SimpleNamespace(**experts))


def running(copied: SimpleNamespace) -> SimpleNamespace:
    return SimpleNamespace(runner=SimpleNamespace(config=copied))


def test_a_stream_comes_with_experts_that_leave_their_input_alone() -> None:
    given = block(moe_runner_config=config())
    assert not streams.runs_out_of_place(given)
    streams.hand_over(given, STREAM)
    assert given.alt_stream is STREAM and streams.runs_out_of_place(given)
    streams.hand_over(given, STREAM)
    assert given.experts.moe_runner_config.inplace is False


@pytest.mark.parametrize("place", ["quant_method", "scheme", "experts"])
def test_a_runner_with_a_configuration_of_its_own_is_changed_too(place: str) -> None:
    copied = config()
    parts: dict[str, Any] = {"runner": running(copied).runner} if place == "experts" else {place: running(copied)}
    given = block(moe_runner_config=config(False), **parts)
    assert not streams.runs_out_of_place(given)
    streams.run_out_of_place(given)
    assert copied.inplace is False and given.alt_stream is None


def test_a_runner_that_is_not_made_yet_is_no_obstacle() -> None:
    given = block(moe_runner_config=config(), quant_method=SimpleNamespace(runner=None), scheme=None)
    streams.hand_over(given, STREAM)
    assert given.alt_stream is STREAM


class Stubborn:
    inplace = property(lambda self: True, lambda self, value: None)


@pytest.mark.parametrize(
    ("experts", "problem"),
    [
        ({}, "SimpleNamespace has no moe_runner_config.inplace"),
        ({"moe_runner_config": None}, "has no moe_runner_config.inplace"),
        ({"moe_runner_config": config(None)}, "has no moe_runner_config.inplace"),
        ({"moe_runner_config": config(), "quant_method": running(SimpleNamespace())}, "has no config.inplace"),
        ({"moe_runner_config": Stubborn()}, "still write over their input"),
    ],
)
def test_experts_that_nobody_has_read_get_no_stream(experts: dict[str, object], problem: str) -> None:
    given = block(**experts)
    with pytest.raises(streams.UnknownExpertsError, match=problem) as raised:
        streams.hand_over(given, STREAM)
    assert given.alt_stream is None
    assert "(layer 3)" in str(raised.value) and "Serve without SGLANG_ALT_STREAM" in str(raised.value)


def test_a_block_without_experts_gets_no_stream() -> None:
    dense = SimpleNamespace(alt_stream=None)
    with pytest.raises(streams.UnknownExpertsError, match="NoneType has no moe_runner_config"):
        streams.hand_over(dense, STREAM)
    assert dense.alt_stream is None
