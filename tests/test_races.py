"""The race detector on schedules whose races are known by construction."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch

from overlay.simulate.torch_streams import Event, Stream, StreamContext, current
from tests.races import RaceDetector


def found(program: Callable[[Stream, Stream], None]) -> list[tuple[str, bool, str, bool]]:
    """The races of `program(main, side)`: operation and whether it writes, of both."""
    with RaceDetector() as detector:
        program(current(), Stream())
    return [(r.first.operation, r.first.write, r.second.operation, r.second.write) for r in detector.races]


def on(stream: Stream) -> StreamContext:
    return StreamContext(stream)


MUL, ADD_ = "aten.mul.Tensor", "aten.add_.Tensor"
WRITE_AFTER_READ = [(MUL, False, ADD_, True)]


def test_a_write_that_overtakes_a_read() -> None:
    def program(main: Stream, side: Stream) -> None:
        x = torch.ones(4)
        side.wait_stream(main)
        x * 2
        with on(side):
            x.add_(1)
        main.wait_stream(side)
        x * 3

    assert found(program) == WRITE_AFTER_READ


def test_a_read_of_what_is_not_yet_written() -> None:
    def program(main: Stream, side: Stream) -> None:
        x = torch.ones(4)
        side.wait_stream(main)
        with on(side):
            x.add_(1)
        x * 2

    assert found(program) == [(ADD_, True, MUL, False)]


def test_two_writes() -> None:
    def program(main: Stream, side: Stream) -> None:
        x = torch.ones(4)
        side.wait_stream(main)
        x.add_(1)
        with on(side):
            x.add_(1)

    assert found(program) == [(ADD_, True, ADD_, True)]


def test_a_missing_fork() -> None:
    def program(main: Stream, side: Stream) -> None:
        x = torch.ones(4)
        with on(side):
            x * 2
        main.wait_stream(side)

    ((first, writes, second, also_writes),) = found(program)
    assert (first, writes, second, also_writes) == ("aten.ones.default", True, MUL, False)


def test_a_wait_covers_only_what_was_enqueued_before_it() -> None:
    def program(main: Stream, side: Stream) -> None:
        x = torch.ones(4)
        side.wait_stream(main)
        with on(side):
            main.wait_stream(side)
            x.add_(1)
        x * 2

    assert found(program) == [(ADD_, True, MUL, False)]


@pytest.mark.parametrize("by", ["wait", "event", "host", "chain"])
def test_nothing_where_something_orders_them(by: str) -> None:
    def program(main: Stream, side: Stream) -> None:
        x = torch.ones(4)
        side.wait_stream(main)
        x * 2
        if by == "wait":
            side.wait_stream(main)
        elif by == "event":
            event = Event()
            event.record(main)
            side.wait_event(event)
        elif by == "host":
            main.synchronize()
        else:
            third = Stream()
            third.wait_stream(main)
            side.wait_stream(third)
        with on(side):
            x.add_(1)
        main.wait_stream(side)
        x * 3

    assert found(program) == []


def test_an_event_holds_what_was_enqueued_when_it_was_recorded() -> None:
    def program(main: Stream, side: Stream) -> None:
        x = torch.ones(4)
        event = Event()
        event.record(main)
        x * 2
        side.wait_event(event)
        with on(side):
            x.add_(1)

    assert found(program) == WRITE_AFTER_READ


def test_nothing_between_two_reads() -> None:
    def program(main: Stream, side: Stream) -> None:
        x = torch.ones(4)
        side.wait_stream(main)
        x * 2
        with on(side):
            x * 3

    assert found(program) == []


def test_views_share_memory_and_halves_do_not() -> None:
    def overlapping(main: Stream, side: Stream) -> None:
        x = torch.ones(4)
        side.wait_stream(main)
        x.view(2, 2) * 2
        with on(side):
            x[3:].add_(1)

    def apart(main: Stream, side: Stream) -> None:
        x = torch.ones(4)
        side.wait_stream(main)
        x[:2] * 2
        with on(side):
            x[2:].add_(1)

    assert found(overlapping) == WRITE_AFTER_READ and found(apart) == []


def test_freed_memory_is_not_mistaken_for_the_memory_that_follows_it() -> None:
    def program(main: Stream, side: Stream) -> None:
        for stream in (main, side) * 4:
            with on(stream):
                torch.ones(4).add_(1)

    assert found(program) == []


def test_what_a_custom_operator_declares_counts() -> None:
    @torch.library.custom_op("races_probe::over", mutates_args=("x",))
    def over(x: torch.Tensor) -> None:
        pass

    @torch.library.custom_op("races_probe::beside", mutates_args=())
    def beside(x: torch.Tensor) -> torch.Tensor:
        return x + 1

    def program(operator: Callable[[torch.Tensor], object]) -> Callable[[Stream, Stream], None]:
        def run(main: Stream, side: Stream) -> None:
            x = torch.ones(4)
            side.wait_stream(main)
            x * 2
            with on(side):
                operator(x)

        return run

    assert found(program(over)) == [(MUL, False, "races_probe.over.default", True)]
    assert found(program(beside)) == []


def test_one_race_for_two_streams_and_one_storage() -> None:
    def program(main: Stream, side: Stream) -> None:
        x, y = torch.ones(4), torch.ones(4)
        side.wait_stream(main)
        for tensor in (x, y):
            tensor * 2
        with on(side):
            for tensor in (x, x, y):
                tensor.add_(1)

    assert found(program) == WRITE_AFTER_READ * 2


def test_a_race_reads_as_a_sentence() -> None:
    with RaceDetector() as detector:
        main, side = current(), Stream()
        x = torch.ones(4)
        side.wait_stream(main)
        x * 2
        with on(side):
            x.add_(1)
    (race,) = detector.races
    assert str(race) == f"{MUL} reads on stream {main.id} while {ADD_} writes on stream {side.id}"
