"""The sequence of a switch: drain, sleep, wake, admit.

`Carrier.carry_out` is the task of one command. It runs in the nursery of `Switcher.run`; what it
evicts, it drains and puts to sleep in a nursery of its own. The rules are in `switcher`.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractAsyncContextManager, AsyncExitStack

import trio

from llmux.errors import HookError, LlmuxError, NoRoom, NotReady, ShuttingDown
from llmux.observe.logs import get_logger
from llmux.switching.admission import Door
from llmux.switching.breaker import after_failure
from llmux.switching.commands import BringDown, Stop, Wake
from llmux.switching.group import Group
from llmux.switching.hooks import ModelHooks
from llmux.switching.membership import Membership
from llmux.switching.model import Model, Phase
from llmux.switching.observer import Chronicle, Tally
from llmux.switching.placing import Placer
from llmux.switching.running import Eviction, Running
from llmux.switching.steps import Steps, SwitchAbandoned

log = get_logger(__name__)


class Carrier:
    """Carries out the commands of one group."""

    def __init__(
        self,
        group: Group,
        *,
        steps: Steps,
        placer: Placer,
        door: Door,
        members: Membership,
        chronicle: Chronicle,
    ) -> None:
        self._group = group
        self._steps = steps
        self._placer = placer
        self._door = door
        self._members = members
        self._chronicle = chronicle

    async def carry_out(self, running: Running) -> None:
        """Carry out a command whose models are locked; unlock them at the end."""
        async with trio.open_nursery() as beside:  # for a prefetch hook
            try:
                await self._carry_out(running, beside)
            finally:
                running.command.outcome.end(ShuttingDown())  # if this task was cancelled
                self._placer.end(running)

    async def _carry_out(self, running: Running, beside: trio.Nursery) -> None:
        command, target = running.command, running.target
        if self._group.models.get(target.name) is not target:  # removed since it was queued
            command.outcome.end(command.error_if_removed)
            return
        hooks = self._steps.hooks_of(target)
        async with AsyncExitStack() as lane:
            try:
                if not isinstance(command, Wake):
                    await self._retire(running)
                    return
                if not target.is_awake:
                    await self._switch(running, command, hooks, lane, beside)
                await lane.aclose()
                await target.let_in()  # the settle barrier
                command.outcome.end()
            except SwitchAbandoned:
                log.info("switch_abandoned", to=target.name)
                await self._let_in(target.name)
                if command.stands:
                    command.outcome.end(NoRoom(target.name))
            except HookError as error:
                if isinstance(command, Stop):  # which says nothing of its wakes
                    command.outcome.end(error)
                    return
                target.waiters.refuse(after_failure(target, error))
                command.outcome.end(error)
                # Still in its lanes: nothing else wakes there until it sleeps.
                await self._steps.clean_up(target, hooks, error)
            except (ShuttingDown, NotReady) as error:
                command.outcome.end(error)

    async def _let_in(self, name: str) -> None:
        """Admit the line of a model that stays awake after all."""
        model = self._group.models.get(name)
        if model is not None and model.is_awake:
            await model.let_in()

    async def _switch(
        self,
        running: Running,
        wake: Wake,
        hooks: ModelHooks,
        lane: AsyncExitStack,
        beside: trio.Nursery,
    ) -> None:
        """Drain and put to sleep the models to evict, then wake the target.

        Args:
            running: The command.
            wake: The same.
            hooks: The hooks of the target.
            lane: Gets the lanes of the wake hook, to be left once the target is awake or asleep.
            beside: Nursery for the prefetch hook.

        Raises:
            HookError: A hook failed; the target is not awake.
            SwitchAbandoned: The target is not wanted any more, and sleeps; models to evict are
                awake again or sleep.
        """
        group, steps, target = self._group, self._steps, wake.target
        if wake.is_trial and not wake.goes_on(group):  # somebody is served since the decision
            raise SwitchAbandoned
        source = next(iter(running.plan.evict), None)
        evict = [each.model for each in running.evictions.values()]
        with self._chronicle.switch(wake, evict) as tally:
            prefetch = steps.prefetch(target, source, hooks, beside)
            running.is_waking = True
            try:
                await self._make_room(running, tally)
                # The switch costs only the part of the prefetch that outlasts drain and sleep.
                tally.prefetch_s = await steps.wait_prefetched(
                    prefetch, lambda: group.closed_with is not None or not wake.goes_on(group)
                )
                self._check_goes_on(running)
                while not await lane.enter_async_context(self._lane_of_wake(running)):
                    await lane.aclose()
                    self._check_goes_on(running)
                    await self._make_room(running, tally)
                    self._check_goes_on(running)
                # No checkpoint since the lane and the memory were free, until both are taken.
                tally.was_stopped = group.room.is_stopped(target.name)
                group.room.ledger.wake(running.plan)
                self._placer.lock(running)
                tally.wake_s = await steps.wake_while(
                    lambda: wake.is_wake_wanted(group), target, source, hooks
                )
            finally:
                running.is_waking = False
                prefetch.abandon()
        if source is not None and source not in group.models:  # removed once it slept
            group.measures.forget(source)

    def _lane_of_wake(self, running: Running) -> AbstractAsyncContextManager[bool]:
        """Wait for the lanes and the memory of a wake, or until there is more to evict."""
        group, ledger, target = self._group, self._group.room.ledger, running.target
        return group.room.lanes.turn(
            running.number,
            lambda: group.room.touches(target.name),
            lambda: not self._placer.has_stranded(running) and ledger.may_wake(running.plan),
            lambda: self._placer.has_stranded(running) or not self._goes_on(running),
        )

    # ---- Make room ----

    async def _make_room(self, running: Running, tally: Tally) -> None:
        """Drain the models to evict and put them to sleep; raises like `_switch`.

        All at a time, but in order where one model is awake at a time.
        """
        self._placer.add_stranded(running)
        async with trio.open_nursery() as nursery:

            def begin(each: Eviction | Model) -> None:
                if isinstance(each, Eviction):
                    nursery.start_soon(self._evict, running, each)
                else:
                    nursery.start_soon(self._stop, running, each)

            running.begin = begin
            for eviction in list(running.evictions.values()):
                if eviction.is_over:
                    continue
                if self._group.shares_memory:
                    begin(eviction)
                else:
                    await self._evict(running, eviction)
            for name in running.plan.stop:
                if name not in running.evictions and not self._group.room.is_stopped(name):
                    begin(self._group.models[name])
        running.begin = None
        evictions = running.evictions.values()
        tally.drain_s = max((each.drain_s for each in evictions), default=0.0)
        tally.sleeps_s |= {e.model.name: e.sleep_s for e in evictions if e.sleep_s is not None}
        if running.failure is not None:
            raise running.failure

    async def _evict(self, running: Running, eviction: Eviction) -> None:
        """Drain one model and put it to sleep, or let it stay if it is called off."""
        try:
            await self._put_away(running, eviction)
        except SwitchAbandoned as abandoned:
            if not eviction.is_called_off:
                self._fail(running, abandoned)
        except LlmuxError as error:
            self._fail(running, error)
        finally:
            eviction.is_over = True
            self._placer.lock(running)
        # If it stays after all, at once: others may still be busy with their hooks.
        await self._let_in(eviction.model.name)

    def _fail(self, running: Running, error: Exception) -> None:
        running.failure = running.failure or error
        self._group.changed.set()  # what still drains for it stays

    async def _put_away(self, running: Running, eviction: Eviction) -> None:
        group, model = self._group, eviction.model

        def is_wanted() -> bool:
            is_off = eviction.is_called_off or running.failure is not None
            return not is_off and self._is_wanted(running)

        if group.shares_memory:
            await self._steps.let_line_in_first(model, is_wanted)
            group.check_open()
            if not is_wanted():
                raise SwitchAbandoned
        eviction.drain_s = await self._steps.drain(
            model, running.target, is_wanted, self._door.refuse_if_switch_needed
        )
        group.check_open()
        async with self._lane_of_sleep(running, model, is_wanted) as may_go:
            if not may_go:
                group.check_open()
                if model.phase is Phase.DRAINING:
                    model.enter(Phase.AWAKE)
                raise SwitchAbandoned
            eviction.may_stay = False
            eviction.sleep_s = await self._steps.put_to_sleep(
                model, running.target, eviction.hooks, is_deep=model.name in running.plan.stop
            )

    def _lane_of_sleep(
        self, running: Running, model: Model, is_wanted: Callable[[], bool]
    ) -> AbstractAsyncContextManager[bool]:
        """Wait for the lanes of a sleep hook, and for what the model needs asleep."""
        group, name = self._group, model.name

        def is_ready() -> bool:
            is_forced = name in running.plan.stop or isinstance(running.command, BringDown)
            return is_forced or group.room.ledger.may_sleep(name)

        return group.room.lanes.turn(
            running.number,
            lambda: group.room.touches(name),
            is_ready,
            lambda: group.closed_with is not None or not is_wanted(),
        )

    async def _stop(self, running: Running, model: Model) -> None:
        """Stop a model that sleeps, since what it needs asleep is needed."""
        room = self._group.room
        lane = room.lanes.turn(
            running.number,
            lambda: room.touches(model.name),
            lambda: True,
            lambda: not self._goes_on(running),
        )
        try:
            async with lane as may_go:
                if may_go:
                    await self._steps.stop(model, running.target, self._steps.hooks_of(model))
        except LlmuxError as error:
            self._fail(running, error)

    # ---- Whether to go on ----

    def _is_wanted(self, running: Running) -> bool:
        """Return whether a command goes on, as long as no hook of its target was started."""
        ledger = self._group.room.ledger
        if not (ledger.is_possible(running.plan) or self._placer.has_stranded(running)):
            return False  # the config has less memory now
        return running.command.goes_on(self._group) or not ledger.may_drop(running.plan)

    def _goes_on(self, running: Running) -> bool:
        is_open = self._group.closed_with is None
        return is_open and running.failure is None and self._is_wanted(running)

    def _check_goes_on(self, running: Running) -> None:
        self._group.check_open()
        if not self._is_wanted(running):
            raise SwitchAbandoned

    # ---- Commands that wake no model ----

    async def _retire(self, running: Running) -> None:
        """Put a model to sleep without waking another one.

        Raises:
            HookError: GPU memory is still in use.
        """
        group, command = self._group, running.command
        model, is_down = command.target, isinstance(command, BringDown)
        if command.is_wanted(group):  # else it was cancelled, or the model has slept since
            if is_down:
                await self._steps.cut(model)
            group.check_open()
            for name in running.plan.stop:
                if name not in running.evictions:
                    await self._stop(running, group.models[name])
            if isinstance(running.failure, LlmuxError) and not isinstance(command, Stop):
                command.outcome.end(running.failure)  # it stays, and that says nothing of it
                return
            for eviction in running.evictions.values():
                await self._put_away(running, eviction)
                if group.shares_memory and eviction.sleep_s is not None:
                    group.measures.note_slept(model.name, eviction.sleep_s)
            if running.failure is not None:
                raise running.failure
            self._members.note_asleep(model)  # in case it slept already, so no step has said so
        command.outcome.end()
