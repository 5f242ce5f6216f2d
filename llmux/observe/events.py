"""The one seam for telling: typed events, handed to everybody who listens.

    requests, switching, hooks, reloads ──▶ Events ──▶ logs, metrics, feed, journal, traces

Code that does something tells of it here and knows nothing of the listeners; a new metric, say, is
one more listener. Listeners are called at once, in the order in which they came, by the task that
tells: they must neither wait nor raise. Most are in `llmux.observe.listeners`. Each kind of event
has a channel of its own, so that telling is one loop over the few that want that kind, and costs
nothing where nobody does.

Counts that change with every request are not told but looked up, by those who want them
(`Metrics.watch_counts`, `Feed.watch_counts`).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Generic, TypeVar

from llmux.errors import HookError
from llmux.observe.clock import WallClock
from llmux.observe.schemas import (
    AliveChange,
    CordonChange,
    FailingChange,
    HookRun,
    ModeChange,
    ModelState,
    PinChange,
    Reloaded,
    SwitchRecord,
    SwitchResult,
)
from llmux.observe.summary import RequestSummary

E = TypeVar("E")


class Channel(Generic[E]):
    """Hands events of one kind to its listeners."""

    __slots__ = ("_listeners",)

    def __init__(self) -> None:
        self._listeners: tuple[Callable[[E], object], ...] = ()

    def listen(self, listener: Callable[[E], object]) -> None:
        """Call this with each event from now on."""
        self._listeners += (listener,)

    def leave(self, listener: Callable[[E], object]) -> None:
        """Call this no longer."""
        self._listeners = tuple(each for each in self._listeners if each != listener)

    def tell(self, event: E) -> None:
        for listener in self._listeners:
            listener(event)


@dataclass(frozen=True, slots=True)
class PhaseChanged:
    """A model has entered another phase.

    Attributes:
        at: Trio's time.
        model: Its name.
        state: The phase that it is in now.
        left: The phase that it was in.
        stayed_s: Seconds that it was in that.
    """

    at: float
    model: str
    state: ModelState
    left: ModelState
    stayed_s: float


@dataclass(frozen=True, slots=True)
class Drained:
    """A model that a switch leaves has finished its requests.

    Attributes:
        source: The model.
        target: The model that is to be woken.
        took_s: How long the drain took, in seconds.
    """

    source: str
    target: str
    took_s: float


@dataclass(frozen=True, slots=True)
class SwitchEnded:
    """A switch has ended, in whatever way.

    Attributes:
        record: As the control API shows it: Unix times, rounded.
        result: How it ended; the record has the same.
        started_at, ended_at: Trio's times.
        drain_s: Of the whole, seconds until the last request of the source had ended.
        hooks_s: Of the whole, run time of hooks.
        cost_s: The new estimate of what a switch of this pair costs; None unless it succeeded.
    """

    record: SwitchRecord
    result: SwitchResult
    started_at: float
    ended_at: float
    drain_s: float
    hooks_s: float
    cost_s: float | None


@dataclass(frozen=True, slots=True)
class HookEnded:
    """A run of a hook has ended, also by a cancellation.

    Attributes:
        run: As the control API shows it: Unix times, rounded.
        took_s: How long it took, in seconds.
        error: Its failure; None if it succeeded.
        expects_failure: True if a failure is no news, because the model is still loading.
    """

    run: HookRun
    took_s: float
    error: HookError | None
    expects_failure: bool

    @property
    def has_failed(self) -> bool:
        """True if it failed and was not expected to."""
        return self.error is not None and not self.expects_failure


class Events:
    """A channel for each kind of event.

    Attributes:
        clock: Gives the Unix times of events that carry them.
    """

    def __init__(self, clock: WallClock | None = None) -> None:
        self.clock = clock or WallClock()
        self.phase_changed = Channel[PhaseChanged]()
        self.drained = Channel[Drained]()
        self.switch_started = Channel[SwitchRecord]()
        self.switch_ended = Channel[SwitchEnded]()
        self.request_ended = Channel[RequestSummary]()
        self.hook_started = Channel[HookRun]()
        self.hook_ended = Channel[HookEnded]()
        self.alive_changed = Channel[AliveChange]()
        self.failing_changed = Channel[FailingChange]()
        self.pin_changed = Channel[PinChange]()
        self.mode_changed = Channel[ModeChange]()
        self.cordon_changed = Channel[CordonChange]()
        self.reloaded = Channel[Reloaded]()
