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


async def run_beside(work: Callable[[Pause], T], limiter: trio.CapacityLimiter) -> T:
    """Work in a thread, one that ends at its next pause once nobody waits for it.

    A thread that was given up on would go on, with a body in memory that nobody counts.

    Args:
        work: What to do. Its argument lets the event loop have the interpreter, and ends the work.
        limiter: How many may work at a time.

    Raises:
        LlmuxError, TooLong: What the work raises, without its traceback. In Trio, an error from a
            thread is part of a reference cycle with all frames that it has come through, and these
            hold the body: it would stay in memory until the next garbage collection.
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
        return work(_pause)
    except (LlmuxError, TooLong, trio.Cancelled) as error:
        traceback.clear_frames(error.__traceback__)
        error.__context__ = error.__cause__ = error.__traceback__ = None
        return _Failed(error)


def _pause() -> None:
    """Let the event loop have the interpreter; raises trio.Cancelled once nobody waits any more."""
    trio.from_thread.check_cancelled()
    time.sleep(0)
