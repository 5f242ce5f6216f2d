"""Work on large bodies, in a thread beside the event loop."""

from __future__ import annotations

import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeVar

import trio

from llmux.errors import LlmuxError
from llmux.openai.scanning import Pause, TooLong

T = TypeVar("T")


@dataclass
class _Failed:
    error: BaseException


PAUSE_EVERY_S = 0.0005
"""Longest time for which work holds the interpreter lock, if it offers pauses as often."""


async def run_beside(work: Callable[[Pause], T], limiter: trio.CapacityLimiter) -> T:
    """Run work in a thread, and cancel it at its next pause if the caller is cancelled.

    An abandoned thread would continue, with a body in memory that is not counted.

    Args:
        work: The work. It must call its argument often, which yields to the event loop, and ends
            the work when cancelled.
        limiter: Limits concurrent threads.

    Raises:
        LlmuxError, TooLong: The work's own errors, without their tracebacks. In Trio, an error from
            a thread forms a reference cycle with all frames that it passed, and these hold the
            body: it would stay in memory until the next garbage collection.
    """
    done = await trio.to_thread.run_sync(_without_frames, work, limiter=limiter)
    if not isinstance(done, _Failed):
        return done
    await trio.lowlevel.checkpoint_if_cancelled()
    try:
        raise done.error
    finally:
        del done  # a cycle, too


def _without_frames(work: Callable[[Pause], T]) -> T | _Failed:
    try:
        return work(_Pauses().take)
    except (LlmuxError, TooLong, trio.Cancelled) as error:
        traceback.clear_frames(error.__traceback__)
        error.__context__ = error.__cause__ = error.__traceback__ = None
        return _Failed(error)


class _Pauses:
    """The pauses of one piece of work; a pause that follows the last one closely is left out.

    Some work offers one every few microseconds, and `time.sleep(0)` takes 60 (Linux adds its timer
    slack). Without the sleep, the thread would mostly have the lock back before the event loop
    could take it.
    """

    def __init__(self) -> None:
        self._last = time.perf_counter()

    def take(self) -> None:
        """Yield the interpreter lock to the event loop; raises trio.Cancelled once cancelled."""
        if time.perf_counter() - self._last >= PAUSE_EVERY_S:
            trio.from_thread.check_cancelled()
            time.sleep(0)
            self._last = time.perf_counter()
