"""Hook lanes: which hook may start, and when."""

from __future__ import annotations

import trio
import trio.testing
from trio_util import RepeatedEvent

from llmux.switching.lanes import Lanes

GPU = frozenset({"gpu"})


async def test_a_hook_that_is_not_wanted_any_more_does_not_start_though_it_could() -> None:
    changed = RepeatedEvent()
    lanes = Lanes(changed)
    is_over = False
    started: list[bool] = []

    async def wait() -> None:
        async with lanes.turn(2, lambda: GPU, lambda: True, lambda: is_over) as may_go:
            started.append(may_go)

    async with trio.open_nursery() as nursery:
        async with lanes.turn(1, lambda: GPU, lambda: True, lambda: False):
            nursery.start_soon(wait)
            await trio.testing.wait_all_tasks_blocked()
            is_over = True
            # The lanes are free from now on, too.
    assert started == [False]


async def test_a_reload_may_change_what_a_hook_touches_that_waits() -> None:
    changed = RepeatedEvent()
    lanes = Lanes(changed)
    touches, is_ready = frozenset[str](), False
    order: list[str] = []

    async def wait() -> None:
        async with lanes.turn(2, lambda: touches, lambda: is_ready, lambda: False):
            order.append("second")

    async with trio.open_nursery() as nursery:
        async with lanes.turn(1, lambda: GPU, lambda: True, lambda: False):
            nursery.start_soon(wait)
            await trio.testing.wait_all_tasks_blocked()
            touches, is_ready = GPU, True
            changed.set()
            await trio.testing.wait_all_tasks_blocked()
            order.append("first")
    assert order == ["first", "second"]
