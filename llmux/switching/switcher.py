r"""The switch, on one page: drain, sleep, wake, let in, and only then the next.

**Theory of operation**

Each model has a phase (`llmux.switching.core`; `docs/design.md` draws them). A switch moves the
models that its command names through theirs:

    evicted   AWAKE -> DRAINING -> SLEEPING -> ASLEEP
    target                                    ASLEEP -> WAKING -> AWAKE -> let in -> next command
                                                               \-> SLEEPING -> FAILED

`Switcher.run` loops: *decide* in synchronous code (`decision`), then *carry out* the one command
that came of it (`steps`), as a task in a nursery of its own. Everything else in llmux only changes
what the next decision, or the running command, sees: requests join and leave lines (`admission`),
operators and reloads queue commands (`wishes`, `membership`), health checks report a model that is
down (`health`).

Rules, which the other modules rely on:

1.  Only the task of a command starts hooks that change what is awake, and takes `Steps`. It holds
    the switch lock from its start until the barrier (rule 7); `run` starts no other before.
2.  A command names whom to wake and whom to evict. Which evictions make room is the placement's to
    say (`placement`); nothing else knows how many models fit on a GPU. It is asked as the command
    starts, and again before the wake: a reload may have added a model that was left awake.
3.  No checkpoint lies between a decision and the wait for a change, so that no change is missed.
    Other tasks may run between a decision and the start of its command: what they may have changed
    (the evictions, whether its target is still there) is looked at by the start, in one go.
4.  A phase changes in `ModelState.move_to` alone, against the table of transitions.
5.  Only AWAKE admits. Check and count happen without a checkpoint in between, so that a request is
    either counted before its model drains, or not let in.
6.  A command is asked again at each change whether it is still wanted. Until a hook of its target
    was started it can be abandoned: a drained model goes back to AWAKE. Afterwards only
    `abandon_wakes` allows that.
7.  *Settle barrier*: a switch ends only when each request that it let in is in flight or gone. No
    request is woken only to find its model leaving again.
8.  A command goes on with the hooks that its models had when it began, or came. A model's hooks
    change, and a model is removed, only while it sleeps and no command runs, or as the last act of
    its sleep.
9.  Each command ends exactly once, with its outcome. Whatever ends `run` closes the group: no
    request and no caller is left waiting.

**Who may call what.** Any task may call the public methods, except `run` (once) and `put_to_sleep`
(after `run` has ended). They never wait for a hook, but for those that return once their command is
carried out; cancelling such a wait does not cancel the command.

**Why there are no locks** but the one of rule 1: a group's state lives in one Trio thread, and is
read and written in synchronous code, which nothing interrupts. The switch lock excludes nobody, for
one command runs at a time; it says that one does (`Membership` asks), and would notice a second.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from functools import partial

import trio

from llmux.config import PolicyConfig
from llmux.errors import HookError, LlmuxError, NotReady, ShuttingDown, SwitcherDied
from llmux.observe.events import Events
from llmux.observe.logs import get_logger
from llmux.observe.schemas import Pin, SwitchRecord
from llmux.policy import Policy
from llmux.switching.admission import Door
from llmux.switching.awake import AwakeRecord
from llmux.switching.commands import BringDown, Command, Wake
from llmux.switching.decision import Decider
from llmux.switching.draining import look_at_sockets
from llmux.switching.group import Group, State
from llmux.switching.health import Health, HeardSince
from llmux.switching.idle import NO_IDLE_RULES, IdleRules
from llmux.switching.membership import Membership
from llmux.switching.model import NO_TRAITS, Model, Phase, Traits
from llmux.switching.observer import Chronicle, Tally
from llmux.switching.steps import Hooks, ModelHooks, Steps, SwitchAbandoned
from llmux.switching.takeover import take_over
from llmux.switching.waits import eta_s
from llmux.switching.wishes import Wishes

log = get_logger(__name__)


class Switcher:
    """Switches the models of one group.

    Attributes:
        group: The group's name.
        models: The group's models by name; each knows its own phase, line and requests.
        measures: Costs, drains, absences, rates and latencies seen so far.
        health: Looks after the model that is awake.
    """

    def __init__(
        self,
        names: Iterable[str],
        hooks: Hooks,
        policy: Policy,
        events: Events,
        *,
        settings: PolicyConfig,
        queued_per_model: int = 1000,
        traits: Mapping[str, Traits] | None = None,
        record: AwakeRecord | None = None,
        group: str = "default",
        idle_rules: IdleRules = NO_IDLE_RULES,
    ) -> None:
        state = self._group = Group(
            group, settings, queued_per_model=queued_per_model, idle_rules=idle_rules
        )
        self.group, self.models, self.measures = group, state.models, state.measures
        self._hooks = hooks
        self._record = record or AwakeRecord(None)
        self._chronicle = Chronicle(group, state.measures, events)
        self._door = Door(state)
        self._members = Membership(state, self._record, self._chronicle)
        self._decider = Decider(state, policy)
        self._steps = Steps(hooks, state, events, on_asleep=self._members.note_asleep)
        self.health = Health(lambda: state.in_use, hooks, settings, self._bring_down)
        wishes = Wishes(state, self._chronicle.pin)
        # The parts' own methods, under the names by which the rest of llmux calls them.
        self.serving, self.check_admissible = self._door.serving, self._door.check_admissible
        self.set_mode, self.force_switch = wishes.set_mode, wishes.force_switch
        self.put_model_to_sleep = wishes.put_model_to_sleep
        self.pin, self.unpin = wishes.pin, wishes.unpin
        self.add, self.remove = self._members.add, self._members.remove
        self.renew, self.leave_as_is = self._members.renew, self._members.leave_as_is
        self.is_unused = self._members.is_unused
        self.look_at_sockets = partial(look_at_sockets, state)
        self.eta_s = partial(eta_s, state)
        for name in names:
            self.add(name, (traits or {}).get(name, NO_TRAITS))

    def __repr__(self) -> str:
        name = f" {self.active.name!r}" if self.active else ""
        flying = sum(model.in_flight.count for model in self.models.values())
        waiting = sum(model.waiters.count for model in self.models.values())
        return f"<Switcher {self.state.upper()}{name}, {flying} in flight, {waiting} waiting>"

    @property
    def active(self) -> Model | None:
        """The model that is awake and admits requests."""
        return self._group.active

    @property
    def state(self) -> State:
        """`switching` from the moment that a model stops admitting until one is awake."""
        return self._group.state

    @property
    def pinned(self) -> Pin | None:
        """The pin of the group, or None."""
        return self._group.pins.current

    @property
    def running(self) -> SwitchRecord | None:
        """The switch that runs, or None."""
        return self._chronicle.running

    @property
    def has_died(self) -> bool:
        """Whether `run` ended though nobody asked it to."""
        return isinstance(self._group.closed_with, SwitcherDied)

    def die_if_stuck(self) -> bool:
        """Give up if a hook cannot even be ended; returns whether `run` can switch no more."""
        if self._steps.is_stuck:
            log.critical("switcher_stuck", state=repr(self))
            self._close(SwitcherDied())
        return self.has_died

    def connect(self, heard_since: HeardSince, on_sleep: Callable[[str], object]) -> None:
        """Say how to know that a backend sends, and what to do before a model is put to sleep."""
        self.health.heard_since, self._group.on_sleep = heard_since, on_sleep

    def apply(
        self,
        settings: PolicyConfig,
        policy: Policy,
        queued_per_model: int,
        idle_rules: IdleRules = NO_IDLE_RULES,
    ) -> None:
        """Use other settings from now on."""
        self._members.apply(settings, queued_per_model, idle_rules)
        self._decider.use(policy)
        self.health.apply(settings)

    def stop(self) -> None:
        """Stop admitting requests; `run` returns once the command that is running has ended."""
        self._close(ShuttingDown())

    def _close(self, error: LlmuxError) -> None:
        self._steps.close()
        self._group.close(error)

    async def put_to_sleep(self) -> None:
        """Put to sleep what holds the GPU; only once `run` has ended, for nothing wakes it then."""
        async with self._group.switch_lock:
            for model in self.models.values():
                if model.holds_gpu:
                    with suppress(HookError):  # logged
                        hooks = self._steps.hooks_of(model)
                        await self._steps.put_to_sleep(model, model, hooks)

    # ---- The loop ----

    async def run(self) -> None:
        """Carry out one command after the other until stopped. The only task that switches."""
        try:
            await take_over(self._group, self._record, self._hooks, self.health)
            self._decider.begin()
            while (command := await self._next_command()) is not None:
                # A nursery for each switch, so that it is cancelled as a whole.
                async with trio.open_nursery() as switch:  # noqa: ASYNC112
                    switch.start_soon(self._carry_out, command, switch)
        finally:
            # Whatever ends this task: nobody may be left waiting for it. After `stop` a no-op.
            is_cancelled = trio.current_effective_deadline() == -math.inf
            self._close(ShuttingDown() if is_cancelled else SwitcherDied())

    async def _next_command(self) -> Command | None:
        while self._group.closed_with is None:
            self._members.remove_unwanted()
            command, look_again_at = self._decider.decide()
            if command is not None:
                return command
            with trio.move_on_at(look_again_at):
                # No checkpoint since the snapshot: no change can be missed.
                await self._group.changed.wait()
        return None

    # ---- The switch ----

    async def _carry_out(self, command: Command, switch: trio.Nursery) -> None:
        # From here on no model changes that is in the way, nor is one removed. Other tasks may have
        # run since the decision, so the evictions are named now, without a checkpoint after.
        self._group.switch_lock.acquire_nowait()
        command = self._decider.place(command)
        target, outcome = command.target, command.outcome
        try:
            if self.models.get(target.name) is not target:  # removed since the command was queued
                outcome.end(command.error_if_removed)
                return
            hooks = self._steps.hooks_of(target)
            if not isinstance(command, Wake):
                await self._retire(command, hooks)
                return
            if not target.is_awake:
                await self._switch(command, hooks, switch)
            await target.let_in()  # the barrier: returns once each has settled
            outcome.end()
        except SwitchAbandoned:
            log.info("switch_abandoned", to=target.name)
            await self._group.let_in()
        except HookError as error:
            target.waiters.refuse(error)
            outcome.end(error)
            await self._steps.clean_up(target, hooks, error)
        except (ShuttingDown, NotReady) as error:
            outcome.end(error)
        finally:
            outcome.end(ShuttingDown())  # of consequence only if this task was cancelled
            self._group.switch_lock.release()

    async def _switch(self, wake: Wake, hooks: ModelHooks, switch: trio.Nursery) -> None:
        """Drain and put to sleep the models to evict, then wake the target.

        Args:
            wake: The command.
            hooks: The target's.
            switch: Runs the prefetch hook beside.

        Raises:
            HookError: The target is not awake.
            SwitchAbandoned: The target is not wanted any more; a drained model is awake again, or
                sleeps, and the target sleeps.
        """
        group, steps, target = self._group, self._steps, wake.target
        first = wake.evict[0] if wake.evict else None
        source = first.name if first else None
        with self._chronicle.switch(wake, first) as tally:
            prefetch = steps.prefetch(target, source, hooks, switch)
            try:
                await self._evict(wake.evict, wake, tally)
                # Only what the drain and the sleep did not hide of it is a cost of the switch.
                tally.prefetch_s = await steps.wait_prefetched(
                    prefetch, lambda: group.closed_with is not None or not wake.goes_on(group)
                )
                self._check_goes_on(wake)
                # Meanwhile a reload may have added a model that an earlier llmux has left awake.
                while late := group.evictions_for(target):
                    await self._evict(late, wake, tally)
                    self._check_goes_on(wake)
                # No checkpoint since the placement was asked, until the target holds the GPU.
                tally.wake_s = await steps.wake_while(
                    lambda: wake.is_wake_wanted(group), target, source, hooks
                )
            finally:
                prefetch.abandon()
        if source is not None and source not in self.models:  # removed once it slept
            self.measures.forget(source)

    async def _evict(self, models: Sequence[Model], wake: Wake, tally: Tally) -> None:
        """Drain models and put them to sleep, in this order; raises as `_switch`."""
        steps = self._steps
        for model, hooks in [(model, steps.hooks_of(model)) for model in models]:
            tally.drain_s += await self._drain(model, wake)
            self._group.check_open()
            tally.sleeps_s[model.name] = await steps.put_to_sleep(model, wake.target, hooks)

    def _check_goes_on(self, wake: Wake) -> None:
        self._group.check_open()
        if not wake.goes_on(self._group):
            raise SwitchAbandoned

    async def _retire(self, command: Command, hooks: ModelHooks) -> None:
        """Put a model to sleep for no other one.

        Raises:
            HookError: The GPU is still taken.
        """
        model, is_down = command.target, isinstance(command, BringDown)
        if command.is_wanted(self._group):  # else it was taken back, or has slept meanwhile
            if is_down:
                await self._steps.cut(model)
            else:
                await self._drain(model, command)
            self._group.check_open()
            if model.phase is Phase.DRAINING or (model.holds_gpu and not is_down):
                await self._steps.put_to_sleep(model, model, hooks)
            self._members.note_asleep(model)  # it slept already
        command.outcome.end()

    async def _bring_down(self, model: Model) -> None:
        """Cut a model's requests and put it to sleep: it does not answer any more."""
        log.error("model_down", model=model.name, in_flight=model.in_flight.count)
        model.in_flight.cut()  # also those that a drain waits for
        if not model.is_awake or self._group.closed_with is not None:
            return
        if model.is_warming:
            model.fell()
        commands: list[Command] = [BringDown(model, "down", stands=True)]
        # No request and no policy might wake it again, and an operator has wanted it awake; but
        # not for ever.
        if self._group.is_kept(model) and model.falls < 2:
            commands.append(Wake(model, "down", stands=True))
        self._group.queue_first(*commands)
        with suppress(LlmuxError):  # logged; whoever waits will hear of it
            await commands[-1].wait()

    async def _drain(self, model: Model, command: Command) -> float:
        """See `Steps.drain`: for as long as the command is wanted."""
        return await self._steps.drain(
            model,
            command.target,
            lambda: command.goes_on(self._group),
            self._door.refuse_those_who_may_not_wait,
        )
