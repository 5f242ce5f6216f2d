"""The line and its barrier, without a switcher."""

from __future__ import annotations

import pytest
import trio
from trio.testing import assert_checkpoints, wait_all_tasks_blocked

from llmux.errors import ShuttingDown
from llmux.switching.waiters import Waiter, Waiters


async def test_the_line_keeps_arrival_order() -> None:
    line = Waiters()
    with line.join() as first, line.join() as second:
        assert line.count == 2
        assert line.oldest == first.arrived_at <= second.arrived_at
    assert line.count == 0
    assert line.oldest is None


async def test_grant_returns_once_everyone_has_settled() -> None:
    line = Waiters()
    may_leave = trio.Event()
    granted: list[Waiter] = []

    async def wait() -> None:
        with line.join() as waiter:
            await waiter.wait_granted()
            granted.append(waiter)
            await may_leave.wait()

    async with trio.open_nursery() as nursery:
        nursery.start_soon(wait)
        nursery.start_soon(wait)
        await wait_all_tasks_blocked()
        with trio.move_on_after(0) as scope:
            await line.grant()
        assert scope.cancelled_caught
        await wait_all_tasks_blocked()
        assert len(granted) == 2
        assert repr(line) == "<Waiters 0 waiting, 2 settling>"
        may_leave.set()


async def test_granting_nobody_is_done_at_once() -> None:
    with assert_checkpoints():
        await Waiters().grant()


async def test_a_late_comer_is_not_part_of_the_grant() -> None:
    line = Waiters()
    async with trio.open_nursery() as nursery:
        with line.join() as waiter:
            nursery.start_soon(line.grant)
            await waiter.wait_granted()
            with line.join():
                assert line.count == 1


async def test_a_refusal_is_raised_in_line() -> None:
    line = Waiters()
    with line.join() as waiter:
        line.refuse(ShuttingDown())
        assert line.count == 0
        with pytest.raises(ShuttingDown):
            await waiter.wait_granted()
    line.refuse(ShuttingDown())  # nobody there
