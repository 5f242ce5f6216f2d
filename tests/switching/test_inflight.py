"""Counting the requests inside one model."""

from __future__ import annotations

import pytest
import trio
from trio.testing import assert_no_checkpoints

from llmux.errors import RequestCancelled, StreamCut
from llmux.switching.inflight import InFlight


async def test_counts_are_exact_and_synchronous() -> None:
    left: list[int] = []
    in_flight = InFlight(on_leave=lambda _: left.append(in_flight.count))
    nobody = in_flight.oldest
    assert nobody is None
    with assert_no_checkpoints():
        with in_flight.enter() as first:
            with in_flight.enter():
                assert in_flight.count == 2
                assert in_flight.oldest == first.entered_at
            assert in_flight.count == 1
        assert in_flight.count == 0
    assert left == [1, 0]
    assert repr(in_flight) == "<InFlight 0>"


async def test_wait_empty_waits_for_each_busy_period() -> None:
    in_flight = InFlight()
    await in_flight.wait_empty()
    for _ in range(2):
        flight = in_flight.enter()
        with trio.move_on_after(0) as scope:
            await in_flight.wait_empty()
        assert scope.cancelled_caught
        with flight:
            pass
        await in_flight.wait_empty()


async def test_an_error_inside_leaves_no_count() -> None:
    in_flight = InFlight()
    with pytest.raises(ZeroDivisionError), in_flight.enter():
        raise ZeroDivisionError
    assert in_flight.count == 0


async def test_a_cut_ends_everyone_inside() -> None:
    in_flight = InFlight()
    with pytest.raises(StreamCut), in_flight.enter():
        in_flight.cut()
        await trio.sleep_forever()
    assert in_flight.count == 0


async def test_a_cut_that_comes_too_late_is_none() -> None:
    in_flight = InFlight()
    with in_flight.enter():
        in_flight.cut()  # but nothing inside waits any more
    assert in_flight.count == 0


async def test_the_first_reason_of_a_cut_counts() -> None:
    """A drain that is over its time does not hide that an operator has cancelled the request."""
    in_flight = InFlight()
    with pytest.raises(StreamCut) as cut, in_flight.enter() as flight:
        flight.cut(RequestCancelled())
        in_flight.cut()
        await trio.sleep_forever()
    assert isinstance(cut.value.why, RequestCancelled)


async def test_a_cancellation_from_outside_is_no_cut() -> None:
    in_flight = InFlight()
    with trio.move_on_after(0) as scope, in_flight.enter():
        await trio.sleep_forever()
    assert scope.cancelled_caught
    assert in_flight.count == 0
