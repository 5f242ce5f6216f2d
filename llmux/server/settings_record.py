"""What the journal says of a start, a reload and the end: `llmux replay` needs the settings."""

from __future__ import annotations

import math
from collections.abc import Callable
from contextlib import suppress
from typing import Any

import msgspec
import trio

from llmux.config import Config
from llmux.observe.journal import SharedMemory, Started, Stopped
from llmux.simulate.recorded import record_of
from llmux.switching.switchboard import Switchboard
from llmux.switching.switcher import Switcher


def started(
    config: Config, boot: str = "", board: Switchboard | None = None
) -> Callable[[float], Started]:
    """Return a journal entry for a start, or a reload, at the current time.

    Args:
        config: The config in use.
        boot: See `Started`.
        board: Knows the memory that models share; None if none do.
    """
    now = trio.current_time()
    options: dict[str, Any] = {}
    with suppress(TypeError, ValueError, RecursionError):  # YAML has values that JSON lacks
        options = msgspec.json.decode(msgspec.json.encode(config.policy.options))
    memory = {} if board is None else _memory_of(config, board)
    return lambda offset_s: Started(
        at=now + offset_s,
        policy=config.policy.name,
        groups={model.name: model.group for model in config.models.values()},
        slots={m.name: m.max_in_flight for m in config.models.values() if m.max_in_flight},
        max_wait_s=config.policy.max_wait_secs,
        min_active_s=config.policy.min_active_secs,
        freezes=[m.name for m in config.models.values() if m.preserves_in_flight],
        options=options,
        drains=config.policy.drain_before_switch,
        boot=boot,
        memory=memory,
    )


def stopped() -> Callable[[float], Stopped]:
    """Return a journal entry for the end, at the current time."""
    now = trio.current_time()
    return lambda offset_s: Stopped(now + offset_s)


def _memory_of(config: Config, board: Switchboard) -> dict[str, SharedMemory]:
    found = {}
    for name, switcher in board.groups.items():
        if (memory := _shared(config, switcher)) is not None:
            found[name] = memory
    return found


def _shared(config: Config, switcher: Switcher) -> SharedMemory | None:
    """Return the memory that the models of a group share; None where one is awake at a time."""
    shared = switcher.room.shared
    if shared is None:
        return None
    return record_of(
        shared.memory,
        shared.touches,
        overlapping_hooks=shared.overlapping_hooks,
        keep=[model.name for model in switcher.models.values() if model.is_kept],
        busy=math.inf if config.busy is None else config.busy,
    )
