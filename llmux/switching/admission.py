"""Admission: admits, queues or refuses requests, and tracks each one until its last byte."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import TracebackType
from typing import Protocol

import trio

from llmux.errors import (
    Cordoned,
    LlmuxError,
    ManualMode,
    ModelAsleep,
    ModelNotFound,
    QueueFull,
    SwitchTimeout,
    WouldSwitch,
)
from llmux.http.clients import NO_PLACE, Place
from llmux.observe.logs import get_logger
from llmux.switching.breaker import refusal
from llmux.switching.group import Group
from llmux.switching.hints import NO_HINTS, Hints
from llmux.switching.inflight import Flight
from llmux.switching.model import Model
from llmux.switching.waits import retry_after_s


class Check(Protocol):
    """Raises LlmuxError for a request that may neither be admitted nor wait."""

    def __call__(self, model: Model, hints: Hints, place: Place, *, is_new: bool) -> None:
        """Check; `is_new` is False for a request that has been in line before."""


log = get_logger(__name__)


class Serving:
    """One request's stay at a model: `async with switcher.serving(name): ...`, also repeatedly.

    Entering waits until the model admits the request. The model then stays awake until the context
    is left, by whatever way. No other code in llmux touches lines or in-flight counts.

    Attributes:
        flight: The request in flight, once admitted; kept after it has left.
        queued: True if it had to wait; also set if entering failed.
        waited_s: Seconds that it waited in all.
        left_line_at: When its last wait ended (Trio's clock, seconds); 0 if it never waited.
    """

    __slots__ = (
        "_check", "_find", "_hints", "_model", "_place", "_request", "_scope", "_timeout_s",
        "_waits_since",
        "flight", "left_line_at", "queued", "waited_s",
    )  # fmt: skip

    def __init__(
        self,
        model: Model,
        *,
        check: Check,
        timeout_s: float | None,
        scope: trio.CancelScope | None = None,
        hints: Hints = NO_HINTS,
        request: str = "",
        find: Callable[[str], tuple[Model, Check] | None] | None = None,
        place: Place = NO_PLACE,
    ) -> None:
        self._find = find
        self.queued = False
        self.waited_s = 0.0
        self.left_line_at = 0.0
        self._model = model
        self._place = place
        self._check = check
        self._scope = scope
        self._hints = hints
        self._timeout_s = min(math.inf if timeout_s is None else timeout_s, hints.max_wait_s)
        self.flight: Flight | None = None
        self._request = request
        self._waits_since: float | None = None

    @property
    def is_in(self) -> bool:
        """True while it is in flight."""
        return self.flight is not None and self.flight.is_in

    @property
    def is_waiting(self) -> bool:
        """True while it waits, in line or for a retry."""
        return self._waits_since is not None

    @property
    def is_warm(self) -> bool:
        """True if the backend has answered since the model was woken."""
        return self._model.is_warm

    @property
    def is_warming(self) -> bool:
        """True if the model's server may still be loading."""
        return self._model.is_warming

    def note_loading(self, reason: str) -> None:
        """Log, once per wake, that the model's server is still loading or refuses connections."""
        if self._model.loads_since is None:
            now = self._model.loads_since = trio.current_time()
            waits_s = round(self._model.warm_by - now, 1)
            log.warning("backend_loads", model=self._model.name, reason=reason, waits_secs=waits_s)

    def note_warm(self) -> None:
        self._model.note_warm()

    async def pause(self, seconds: float) -> None:
        """Sleep while in flight, for a server that is still loading; counts as waiting.

        Raises:
            SwitchTimeout: All waits together have reached the request's limit.
        """
        began_at = trio.current_time()
        left_s = self._timeout_s - self.waited_s
        try:
            await trio.sleep(max(0.0, min(seconds, left_s)))
        finally:
            self.waited_s += trio.current_time() - began_at
        if left_s <= seconds:
            log.warning("request_timeout", model=self._model.name, timeout_secs=self._timeout_s)
            raise SwitchTimeout

    @property
    def waited_so_far_s(self) -> float:
        """`waited_s`, including the current wait."""
        waits_s = 0.0 if self._waits_since is None else trio.current_time() - self._waits_since
        return self.waited_s + waits_s

    @property
    def is_passive(self) -> bool:
        """True if its path only inspects the model (`passive`)."""
        return self._hints.is_passive

    def refuse(self, error: LlmuxError) -> None:
        """Refuse the request if it waits in line."""
        self._model.waiters.refuse(error, only=lambda waiter: waiter.request == self._request)

    async def __aenter__(self) -> Serving:
        """Wait until the request is admitted.

        Raises:
            LlmuxError: The request is refused: on arrival, in line, or after too long a wait.
        """
        is_new = not self.queued
        try:
            self._check(self._model, self._hints, self._place, is_new=is_new)
        except ModelNotFound:
            # A reload removed the model since the request was read, or moved it to another group.
            if self._find is None or (found := self._find(self._model.name)) is None:
                raise
            self._model, self._check = found
            self._check(self._model, self._hints, self._place, is_new=is_new)
        # No checkpoint between these checks and the count.
        if self._hints.is_passive:
            self.flight = self._model.look(self._scope)
        elif self._model.admits:
            self.flight = self._model.in_flight.enter(self._scope)
        else:
            self.flight = await self._wait()
        self.flight.__enter__()
        return self

    async def _wait(self) -> Flight:
        with self._place.taken(), self.waiting():
            return await self._model.wait_admitted(
                self._scope,
                self._hints.weight,
                never_switch=self._hints.never_switch,
                request=self._request,
            )

    @contextmanager
    def waiting(self) -> Iterator[None]:
        """Count the time in this context as waiting, and limit it.

        Raises:
            SwitchTimeout: All waits together have reached the request's limit.
        """
        self._waits_since = arrived_at = trio.current_time()
        self.queued, self.flight = True, None
        try:
            with trio.fail_after(max(0.0, self._timeout_s - self.waited_s)):
                yield
        except trio.TooSlowError:
            log.warning("request_timeout", model=self._model.name, timeout_secs=self._timeout_s)
            raise SwitchTimeout from None
        finally:
            self.left_line_at = trio.current_time()
            self.waited_s += self.left_line_at - arrived_at
            self._waits_since = None

    @contextmanager
    def waiting_beside_line(self) -> Iterator[None]:
        """Like `waiting`, for the time between a refused connection and the next attempt."""
        with self._model.beside(), self._place.taken(), self.waiting():
            yield

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> bool | None:
        """Leave; without a checkpoint, so that it cannot be cancelled half-way.

        Raises:
            StreamCut: llmux itself cut the request.
        """
        assert self.flight is not None
        return self.flight.__exit__(kind, error, traceback)


class Door:
    """Admits requests to the models of one group, queues them, or refuses them."""

    def __init__(self, group: Group) -> None:
        self._group = group
        # Bound once: `check` runs for each request.
        self._models, self._pins, self._measures = group.models, group.pins, group.measures

    def serving(
        self,
        name: str,
        scope: trio.CancelScope | None = None,
        hints: Hints = NO_HINTS,
        *,
        request: str = "",
        find: Callable[[str], tuple[Model, Check] | None] | None = None,
        place: Place = NO_PLACE,
    ) -> Serving:
        """The only way into a model: `async with switcher.serving(name): ...`.

        The body can be cut through `scope`, which must enclose it, or else through a scope of its
        own. Entering may raise ManualMode, QueueFull, WouldSwitch, SwitchTimeout, HookError or
        ShuttingDown; leaving may raise StreamCut.
        """
        return Serving(
            self._models[name],
            check=self.check_admissible,
            timeout_s=self._group.settings.request_timeout_secs,
            scope=scope,
            hints=hints,
            request=request,
            place=place,
            find=find,
        )

    def check_admissible(self, model: Model, hints: Hints, place: Place, *, is_new: bool) -> None:
        """Raise LlmuxError if a request may neither enter a model of this group nor wait for it."""
        if (error := self.refusal(model, hints, is_new=is_new)) is not None:
            # Some are raised for many callers; each raise would lengthen their traceback.
            raise error.with_traceback(None)
        if hints.is_passive:
            return
        if not model.admits:
            place.check()
        self._measures.note_arrival(model.name, trio.current_time())

    def refusal(
        self, model: Model, hints: Hints = NO_HINTS, *, is_new: bool = True
    ) -> LlmuxError | None:
        """Return the error for a request that may neither enter a model nor wait; None if it may.

        Args:
            model: The model.
            hints: What the request asks for.
            is_new: False if the request has been in line before.
        """
        if self._models.get(model.name) is not model:
            return ModelNotFound(model.name)  # removed just now
        if self._group.closed_with is not None:
            return self._group.closed_with
        if hints.is_passive:
            return None if model.is_awake else ModelAsleep(model.name, model.phase.value)
        if self._group.is_cordoned and is_new:
            return Cordoned()
        if (pinned := self._pins.refusal(model.name)) is not None:
            return pinned
        return None if model.admits else self._refusal_in_line(model, hints)

    def _refusal_in_line(self, model: Model, hints: Hints) -> LlmuxError | None:
        group = self._group
        if group.mode == "manual" and not model.is_awake:
            return ManualMode(model.name, group.awake_names)
        if model.waiters.count >= group.queued_per_model:
            message = f"{model.waiters.count} requests already wait for model {model.name}"
            return QueueFull(message, retry_after_s=retry_after_s(group, model))
        if hints.never_switch and not model.is_awake:
            return WouldSwitch(model.name)
        return refusal(group, model)

    def refuse_if_switch_needed(self, model: Model) -> None:
        """Refuse requests in line for a model that stops admitting, if they may not wait for it.

        They waited for a slot. From now on they would wait for a switch back to the model.
        """
        if self._group.mode == "manual":
            model.waiters.refuse(ManualMode(model.name, None))
        model.waiters.refuse(WouldSwitch(model.name), only=lambda waiter: waiter.never_switch)
