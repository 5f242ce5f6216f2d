"""Switches, phases and hook runs, as events and in the history."""

from __future__ import annotations

from typing import Literal

from llmux.observe.schemas.base import ModelState, Shape

SwitchResult = Literal["success", "failure", "abandoned"]


class PhaseChange(Shape, frozen=True):
    """A model has changed its state.

    Attributes:
        at: When.
        model: The model.
        state: Its new state.
        left: Its previous state.
    """

    at: float
    model: str
    state: ModelState
    left: ModelState


class AliveTrouble(Shape, frozen=True):
    """Failures in a row of the alive hook of a model that is awake.

    Attributes:
        failures: Their number.
        limit: Number of failures after which the model counts as down.
        error: Why the last one failed.
    """

    failures: int
    limit: int
    error: str


class AliveChange(Shape, frozen=True):
    """The alive hook of a model that is awake has failed, or has succeeded again.

    Attributes:
        at: When.
        model: The model.
        trouble: The failures so far; null: it has succeeded again.
    """

    at: float
    model: str
    trouble: AliveTrouble | None


class FailingChange(Shape, frozen=True):
    """A model whose wake keeps failing has begun, or ceased, to be `failing`.

    Attributes:
        at: When.
        model: The model.
        failing: True if it is failing now.
        failed_wakes: Number of its failed wakes in a row.
        error: Why the last one failed; null: it has succeeded, or its server stopped after it.
    """

    at: float
    model: str
    failing: bool
    failed_wakes: int
    error: str | None = None


class SwitchRecord(Shape, frozen=True, rename={"source": "from", "target": "to"}):
    """A switch; sent when it begins and again when it has ended.

    Attributes:
        id: Its number since the start of llmux.
        group: Its group.
        source: The model that was awake and is put to sleep, the first of several; null: none.
        target: The model to wake.
        started: When it began.
        ended: When it ended; null: it is running.
        result: How it ended; null: it is running.
        reason: The reason for it, in words.
        rule: The rule of the policy that decided on it, or another origin: forced, pinned, standby,
            ...
        request: The request that had waited longest for the target; null: none.
        waiting: Number of requests that waited for the target when it began.
        expected_secs: Expected duration, from earlier hooks and drains; null: unknown.
        drain_secs: Part of the duration spent on the drain of the source, the longest of several.
        hook_secs: Part of the duration spent in hooks.
        error: Why it failed.
        evicts: The models that it puts to sleep; `from` is the first of them.
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
    evicts: tuple[str, ...] = ()


class HookRun(Shape, frozen=True):
    """A run of a hook; sent when it begins and again when it has ended.

    Attributes:
        model: The model whose hook it is.
        hook: The hook's name.
        started: When it began.
        duration_secs: Its duration; null: it is running.
        ok: True if it succeeded; null: it is running.
        error: Why it failed.
        output: The last lines of its output.
    """

    model: str
    hook: str
    started: float
    duration_secs: float | None = None
    ok: bool | None = None
    error: str | None = None
    output: str = ""
