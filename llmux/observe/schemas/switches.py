"""Switches, phases and hook runs, as events and in the history."""

from __future__ import annotations

from typing import Literal

from llmux.observe.schemas.base import ModelState, Shape

SwitchResult = Literal["success", "failure", "abandoned"]


class PhaseChange(Shape, frozen=True):
    """A model has changed its state.

    Attributes:
        at: When.
        model: Which.
        state: What it is now.
        left: What it was.
    """

    at: float
    model: str
    state: ModelState
    left: ModelState


class SwitchRecord(Shape, frozen=True, rename={"source": "from", "target": "to"}):
    """A switch, told when it begins and again when it has ended.

    Attributes:
        id: Its number since the start of llmux.
        group: Where.
        source: What was awake; null: nothing.
        target: What is to be awake.
        started: When it began.
        ended: When it was over; null: it runs.
        result: How it ended; null: it runs.
        reason: Why, in words.
        rule: Which rule of the policy, or who else has decided: forced, pinned, standby, ...
        request: The request that had waited longest for it, if any did.
        waiting: How many waited for it when it began.
        expected_secs: How long it should take: what its hooks and the drain took before; null:
            nobody knows.
        drain_secs: Of the whole, until the last request of the source had ended.
        hook_secs: Of the whole, run time of hooks.
        error: Why it failed.
    """

    id: int
    group: str
    source: str | None
    target: str
    started: float
    ended: float | None = None
    result: SwitchResult | None = None
    reason: str = ""
    rule: str = ""
    request: str | None = None
    waiting: int = 0
    expected_secs: float | None = None
    drain_secs: float = 0.0
    hook_secs: float = 0.0
    error: str | None = None


class HookRun(Shape, frozen=True):
    """A run of a hook, told when it begins and again when it has ended.

    Attributes:
        model: Whose.
        hook: Which.
        started: When.
        duration_secs: How long it took; null: it runs.
        ok: Whether it succeeded; null: it runs.
        error: Why it failed.
        output: The last lines that it printed.
    """

    model: str
    hook: str
    started: float
    duration_secs: float | None = None
    ok: bool | None = None
    error: str | None = None
    output: str = ""
