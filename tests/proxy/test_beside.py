"""Work in threads: it ends with its request, and leaves nothing in memory."""

from __future__ import annotations

import gc
import threading
import weakref
from collections.abc import Iterator

import pytest
import trio

from llmux.errors import BadRequest
from llmux.openai.scanning import Pause
from llmux.proxy.beside import run_beside


class Held:
    """Stands for a body; bytes have no weak references."""


@pytest.fixture(autouse=True)
def uncollected() -> Iterator[None]:
    """As in `llmux serve`, where collections are rare."""
    gc.disable()
    yield
    gc.enable()


async def test_what_comes_out_of_it_is_the_result() -> None:
    assert await run_beside(lambda _: 3, trio.CapacityLimiter(1)) == 3


async def test_an_error_holds_nothing_that_it_came_by() -> None:
    bodies: list[weakref.ref[Held]] = []

    def fail(pause: Pause) -> None:
        body = Held()
        bodies.append(weakref.ref(body))
        try:
            raise RecursionError
        except RecursionError as error:
            raise BadRequest("x") from error

    with pytest.raises(BadRequest):
        await run_beside(fail, trio.CapacityLimiter(1))
    assert bodies[0]() is None


async def test_work_for_nobody_ends_and_holds_nothing() -> None:
    bodies: list[weakref.ref[Held]] = []
    begun, ended = threading.Event(), threading.Event()

    def work(pause: Pause) -> None:
        body = Held()
        bodies.append(weakref.ref(body))
        begun.set()
        try:
            while True:
                pause()
        finally:
            ended.set()

    with trio.fail_after(10), trio.CancelScope() as scope:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(run_beside, work, trio.CapacityLimiter(1))
            await trio.to_thread.run_sync(begun.wait)
            scope.cancel()
    assert scope.cancelled_caught
    assert ended.is_set()
    assert bodies[0]() is None
