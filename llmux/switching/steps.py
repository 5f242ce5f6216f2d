"""The steps of a switch, each on one model: drain, cut, sleep, wake."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from functools import partial

import trio

from llmux.config import HookName
from llmux.errors import HookError, NotAlive
from llmux.observe.events import Drained, Events
from llmux.observe.logs import get_logger
from llmux.switching.awake import AwakeRecord
from llmux.switching.draining import cut_sockets, log_slow_drain, wait_drained
from llmux.switching.group import Group
from llmux.switching.hooks import Hooks, ModelHooks
from llmux.switching.model import Model, Phase
from llmux.switching.prefetch import Prefetch

STEP_SLACK_S = 60.0
"""Time beyond a hook's time-out after which the switcher counts as stuck. Ending a hook takes up to
twice five seconds (SIGTERM, then SIGKILL); the rest is for an overloaded machine."""

FIRST_LOOK_S, LONGEST_LOOK_S = 0.05, 1.0
"""Delays between alive checks after a wake: the first one, which doubles up to the second."""

LEAST_LOOK_S = 1.0
"""Minimum time for an alive check, even if the wake's time ends sooner."""

SLOW_WAKE_S = 60.0
"""Interval at which a model that is still not alive is logged."""

LONGEST_WARM_UP_S = 600.0
"""Time to load for a model whose wake hook has no time-out; the default time-out of wake hooks."""

log = get_logger(__name__)


class SwitchAbandoned(Exception):
    """Raised when no request waits for the target any more, but one for another model does."""


class Steps:
    """The steps of a switch. Only a task that holds the switch lock of their model may take them.

    Args:
        hooks: Runs the hooks.
        group: Supplies the settings, and records measured drains.
        events: Gets an event for each drain.
        record: The models that may be awake, on disk.
        on_asleep: Called with each model that has been put to sleep.
    """

    def __init__(
        self,
        hooks: Hooks,
        group: Group,
        events: Events,
        *,
        record: AwakeRecord,
        on_asleep: Callable[[Model], object],
    ) -> None:
        self._hooks = hooks
        self._group = group
        self._events = events
        self._record = record
        self._on_asleep = on_asleep
        self._must_end_by: dict[object, float] = {}  # of each hook that runs
        self._is_closing = False
        self._looking: set[trio.CancelScope] = set()

    @property
    def is_stuck(self) -> bool:
        """True if a hook is running that could not be ended at its time-out."""
        return trio.current_time() > min(self._must_end_by.values(), default=math.inf)

    # ---- Drain ----

    async def let_line_in_first(self, model: Model, is_wanted: Callable[[], bool]) -> None:
        """Wait until the requests that are in a model's own line now are in flight.

        Without a limit of its slots they would be; `LineFirst` says why they count. Where one model
        is awake at a time, that class does the same before the switch begins.
        """
        group, since = self._group, trio.current_time()
        if not model.is_awake or model.preserves_in_flight or not model.waiters.count:
            return
        in_all = model.in_flight.in_use + model.waiters.count
        settings = group.settings
        limit_s = settings.drain_timeout_secs if settings.on_drain_timeout == "cut" else None
        with trio.move_on_after(math.inf if limit_s is None else limit_s):
            while is_wanted() and (oldest := model.waiters.oldest) is not None and oldest <= since:
                await group.changed.wait()
        group.measures.note_line_first(model.name, trio.current_time() - since, in_all)

    async def drain(
        self,
        model: Model,
        target: Model,
        is_wanted: Callable[[], bool],
        on_settled: Callable[[Model], object],
    ) -> float:
        """Stop admitting, and wait until the last request in flight has ended.

        Args:
            model: The model to drain; nothing happens unless it is awake.
            target: The model that the switch is for.
            is_wanted: Returns whether the switch is still wanted.
            on_settled: Called with the model once no request is admitted any more, and all admitted
                ones are in flight.

        Returns:
            The duration in seconds.

        Raises:
            SwitchAbandoned: The switch is not wanted any more; the model is awake again.
        """
        if not model.is_awake:
            return 0.0
        started_at = trio.current_time()
        in_flight = model.in_flight.count - len(model.yielding)
        model.enter(Phase.DRAINING)
        await model.waiters.wait_settled()
        on_settled(model)
        # Before they are frozen with the model: frozen requests count as demand to switch back.
        cut_sockets(model, model.yielding)
        if not model.is_drained:
            return 0.0
        async with trio.open_nursery() as nursery:
            nursery.start_soon(log_slow_drain, model)
            nursery.start_soon(self._cancel_when, lambda: not is_wanted(), nursery.cancel_scope)
            await wait_drained(model, self._group.settings)
            nursery.cancel_scope.cancel()
        # If the wait was cancelled, the switch may be wanted again by now, but requests are left.
        if model.in_flight.count or not is_wanted():
            model.enter(Phase.AWAKE)
            raise SwitchAbandoned
        drained_s = trio.current_time() - started_at
        if in_flight:
            self._group.measures.note_drained(model.name, in_flight, drained_s)
        self._events.drained.tell(Drained(model.name, target.name, drained_s))
        return drained_s

    async def cut(self, model: Model) -> None:
        """Stop admitting, and cut all requests; returns once they have ended."""
        if model.is_awake:
            model.enter(Phase.DRAINING)
            await model.waiters.wait_settled()  # a granted request must be counted to be cut
            model.in_flight.cut()
            await model.in_flight.wait_empty()

    async def _cancel_when(self, is_over: Callable[[], bool], wait: trio.CancelScope) -> None:
        """Cancel a wait of the switch as soon as `is_over()` is true."""
        while not is_over():
            await self._group.changed.wait()
        wait.cancel()

    # ---- Sleep ----

    def hooks_of(self, model: Model) -> ModelHooks:
        """Return a model's current hooks, for all steps of a command that starts now."""
        return self._hooks.of(model.name)

    async def put_to_sleep(
        self,
        model: Model,
        target: Model,
        hooks: ModelHooks,
        then: Phase = Phase.ASLEEP,
        *,
        is_deep: bool = False,
    ) -> float:
        """Run the sleep hook, and once more if `verify_asleep` finds GPU memory still in use.

        Args:
            model: The model to put to sleep.
            target: The model that the switch is for.
            hooks: The hooks of `model`.
            then: The phase to enter afterwards.
            is_deep: True to run the stop hook instead, as if there is not enough for it asleep.

        Returns:
            The hook time in seconds.

        Raises:
            HookError: GPU memory is still in use; the model is FAILED and still holds the GPU.
        """
        started_at = trio.current_time()
        self._group.on_sleep(model.name)
        ledger = self._group.room.ledger
        may_sleep = ledger.may_sleep(model.name)
        is_deep |= not may_sleep and model.may_stop and hooks.has("stop")
        if not is_deep:  # even if there is no room for that: it is down, or llmux ends
            ledger.sleep(model.name, is_forced=not may_sleep)
        if model.phase is not Phase.SLEEPING:  # a cancelled switch may have got this far
            model.enter(Phase.SLEEPING)
        hook: HookName = "stop" if is_deep else "sleep"
        attempts = 2
        while attempts:
            attempts -= 1
            try:
                await self._sleep_and_verify(model, target, hooks, hook)
                break
            except HookError as error:
                if not attempts and is_deep and self._is_closing:
                    # Rather asleep without room for that than left awake.
                    attempts, is_deep, hook = 1, False, "sleep"
                    ledger.sleep(model.name, is_forced=True)
                if not attempts:
                    model.last_error = error
                    model.enter(Phase.FAILED)
                    raise
                log.warning("sleep_retried", model=model.name, to=target.name)
        model.holds_gpu = False
        give_back = ledger.stopped if is_deep else ledger.slept
        give_back(model.name)
        model.enter(then)
        self._on_asleep(model)
        return trio.current_time() - started_at

    async def stop(self, model: Model, target: Model, hooks: ModelHooks) -> None:
        """Run the stop hook of a model that sleeps, so that it needs nothing any more.

        Raises:
            HookError: It may still need something.
        """
        with self._record.unsure(model.name):
            await self._run_hook(hooks, "stop", source=model.name, target=target.name)
        self._group.room.ledger.stopped(model.name)
        log.info("model_stopped", model=model.name, to=target.name)

    async def _sleep_and_verify(
        self, model: Model, target: Model, hooks: ModelHooks, hook: HookName
    ) -> None:
        about = {"source": model.name, "target": target.name}
        try:
            await self._run_hook(hooks, hook, **about)
        except HookError as error:
            # The model may sleep nevertheless, for which `verify_asleep` is the authority.
            log.error("sleep_hook_failed", model=model.name, to=target.name, error=error.details)
            if not error.was_started or hook == "stop":
                raise  # the hook has done nothing to free the GPU, or not all
        if hooks.has("verify_asleep"):
            await self._run_hook(hooks, "verify_asleep", **about)

    # ---- Wake ----

    def prefetch(
        self, target: Model, source: str | None, hooks: ModelHooks, nursery: trio.Nursery
    ) -> Prefetch:
        """Start the target's prefetch hook, if it has one and another model has to sleep first."""
        hook = partial(hooks.run, "prefetch", source=source or "", target=target.name)
        prefetch = Prefetch(hook)
        if source is None or not hooks.has("prefetch"):
            prefetch.skip()
        else:
            nursery.start_soon(prefetch.run)
        return prefetch

    async def wait_prefetched(self, prefetch: Prefetch, is_in_vain: Callable[[], bool]) -> float:
        """Wait for the prefetch hook until `is_in_vain()`; returns the wait in seconds."""
        started_at = trio.current_time()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._cancel_when, is_in_vain, nursery.cancel_scope)
            await prefetch.wait_ended()
            nursery.cancel_scope.cancel()
        return trio.current_time() - started_at

    async def wake(self, target: Model, source: str | None, hooks: ModelHooks) -> float:
        """Run the wake hook, then wait until the model is alive; returns the time in seconds.

        The wake hook's time-out limits both together.

        Raises:
            HookError: The hook failed, or the model was not alive in time.
        """
        started_at = trio.current_time()
        timeout_s = hooks.timeout_s("wake")
        target.holds_gpu = True
        target.enter(Phase.WAKING)
        await self._run_hook(hooks, "wake", source=source or "", target=target.name)
        await self._wait_alive(target, source or "", hooks, started_at + timeout_s)
        warm_up_s = LONGEST_WARM_UP_S if timeout_s == math.inf else timeout_s
        target.warm_by = started_at + warm_up_s
        target.wake_succeeded()
        self._group.room.ledger.woke(target.name)
        target.enter(Phase.AWAKE)
        return trio.current_time() - started_at

    async def wake_while(
        self,
        is_wanted: Callable[[], bool],
        target: Model,
        source: str | None,
        hooks: ModelHooks,
    ) -> float:
        """Like `wake`; when not wanted any more, end the hook and put the model to sleep.

        Raises:
            HookError: As for `wake`; or GPU memory is still in use.
            SwitchAbandoned: It was not wanted any more; the model sleeps.
        """
        started_at, failure = trio.current_time(), None
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._cancel_when, lambda: not is_wanted(), nursery.cancel_scope)
            try:
                await self.wake(target, source, hooks)
            except HookError as error:
                failure = error  # raised outside the nursery, which would wrap it in a group
            nursery.cancel_scope.cancel()
        if failure is not None:
            raise failure
        if target.is_awake:
            return trio.current_time() - started_at
        log.info("wake_abandoned", model=target.name)
        await self.put_to_sleep(target, target, hooks)
        raise SwitchAbandoned

    async def clean_up(self, target: Model, hooks: ModelHooks, error: HookError) -> None:
        """Free the GPU after a failed wake, and delay the target's next attempt."""
        target.last_error = error  # shown from now on: a server may take long to stop
        if target.phase is Phase.WAKING:
            with suppress(HookError):  # logged; the next switch puts it to sleep again
                await self.put_to_sleep(target, target, hooks, then=Phase.FAILED)
        target.wake_failed(error)

    def close(self) -> None:
        """Stop waiting for models to become alive, since no request will be admitted any more."""
        self._is_closing = True
        for look in self._looking:
            look.cancel()

    async def _wait_alive(
        self, target: Model, source: str, hooks: ModelHooks, deadline: float
    ) -> None:
        """Run the alive hook until it succeeds or `close` is called; see `_look_until_alive`."""
        if self._is_closing:
            return
        look = trio.CancelScope()
        self._looking.add(look)
        try:
            with look, self._watched(deadline + LEAST_LOOK_S + STEP_SLACK_S):
                await self._look_until_alive(target, source, hooks, deadline)
        finally:
            self._looking.remove(look)

    async def _look_until_alive(
        self, target: Model, source: str, hooks: ModelHooks, deadline: float
    ) -> None:
        """Run the alive hook until it succeeds, at increasing intervals.

        Args:
            target: The model, whose wake hook has succeeded.
            source: The model that the switch has left, if any.
            hooks: The hooks of `target`.
            deadline: Time limit; the last check may take up to `LEAST_LOOK_S` longer.

        Raises:
            NotAlive: It has not succeeded in time.
        """
        began_at = now = logged_at = trio.current_time()
        pause_s, failure = FIRST_LOOK_S, None
        while True:
            try:
                with trio.move_on_at(max(deadline, now + LEAST_LOOK_S)) as look:
                    await hooks.run(
                        "alive", source=source, target=target.name, expects_failure=True
                    )
                if not look.cancelled_caught:
                    return
            except HookError as error:
                failure = error
            now = trio.current_time()
            if now >= deadline:
                raise NotAlive(target.name, now - began_at, failure)
            if now - logged_at >= SLOW_WAKE_S:
                logged_at = now
                _log_slow_wake(target, now - began_at, failure)
            await trio.sleep(min(pause_s, deadline - now))
            now = trio.current_time()
            pause_s = min(2 * pause_s, LONGEST_LOOK_S)

    async def _run_hook(
        self, hooks: ModelHooks, hook: HookName, *, source: str, target: str
    ) -> None:
        """Run a sleep, stop, verify or wake hook, and watch its time limit; raises HookError."""
        with self._watched(trio.current_time() + hooks.timeout_s(hook) + STEP_SLACK_S):
            await hooks.run(hook, source=source, target=target)

    @contextmanager
    def _watched(self, must_end_by: float) -> Iterator[None]:
        watch = object()
        self._must_end_by[watch] = must_end_by
        try:
            yield
        finally:
            del self._must_end_by[watch]


def _log_slow_wake(model: Model, waited_s: float, failure: HookError | None) -> None:
    reason = "" if failure is None else failure.reason
    log.warning("wake_not_alive", model=model.name, waited_secs=round(waited_s, 1), reason=reason)
