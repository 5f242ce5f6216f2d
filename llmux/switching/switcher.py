r"""The switch, on one page: drain, sleep, wake, admit.

**Theory of operation**

Each model has a phase (`llmux.switching.core`; `docs/design.md` draws them). A switch moves the
models of its command through these phases:

    evicted   AWAKE -> DRAINING -> SLEEPING -> ASLEEP
    target                                    ASLEEP -> WAKING -> AWAKE -> let in -> unlock
                                                               \-> SLEEPING -> FAILED

`Switcher.run` loops: *decide* on a command (`decision`), *place* it (`placing`: choose what it
evicts, promise it memory, lock its models), both in synchronous code, and *carry it out*
(`carrying`) as a task of its own. Everything else in llmux only changes the state that the next
decision, or a running command, sees: requests join and leave lines (`admission`), operators and
reloads queue commands (`wishes`, `membership`), health checks report a model that is down
(`health`).

Where one model is awake at a time, a command locks all models, so commands run one by one. Where
models share memory, several commands run, each with models of its own. They meet in `Room` only:

    lock      no model is part of two commands
    ledger    memory is promised when a command is placed, taken before a hook starts, and given
              back once a sleep is verified; a switch waits only for its own evictions and for
              earlier commands, so there is no cycle
    lanes     hooks that touch the same resource run one at a time, those of earlier commands first

Rules, which the other modules rely on:

1.  Only the task of a command calls `Steps`, which runs the hooks that wake models and put them to
    sleep, and only for models that the command has locked. It holds the switch lock from its
    placement until the settle barrier (rule 7).
2.  A command names the model to wake; the placement names the models to evict. It is asked again
    before the wake: a reload may have added a model left awake.
3.  No checkpoint lies between a decision, its placement and the wait for a change, so that no
    change is missed. Nor does one lie between the check that memory and lanes are free and the
    moment when they are taken.
4.  Only `ModelState.move_to` changes a phase, and it checks the table of transitions.
5.  Only AWAKE admits. A request is checked and counted without a checkpoint in between, so it is
    either counted before its model drains, or not admitted.
6.  At each change, a running command checks whether it is still wanted. Until a hook of its target
    has been started it can be abandoned: a draining model goes back to AWAKE. After that, only
    `abandon_wakes` permits it. A switch on whose evictions later ones rely goes on.
7.  *Settle barrier*: a switch ends only when each request that it admitted is in flight or gone.
    So no request is woken only to find that its model is leaving again.
8.  A command uses the hooks that its models had when it was placed, or when they were added. A
    model's hooks change, and a model is removed, only while it sleeps and no command has locked it,
    or as the last act of its sleep.
9.  Each command ends exactly once, with an outcome. When `run` ends, for whatever reason, it closes
    the group, so that no request and no caller is left waiting.

**Who may call what.** Any task may call the public methods, except `run` (once) and `put_to_sleep`
(after `run` has ended). Only methods that return once their command has been carried out wait for
hooks; cancelling such a wait does not cancel the command.

**Why no task waits for a lock**: a group's state is read and written by synchronous code in one
Trio thread, which nothing can interrupt. A command is placed only if its models are free, so the
switch lock makes none wait; it shows which models move, and would reveal a model in two commands.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from functools import partial

import trio

from llmux.config import PolicyConfig
from llmux.errors import HookError, LlmuxError, ShuttingDown, SwitcherDied
from llmux.observe.events import Events
from llmux.observe.logs import get_logger
from llmux.observe.schemas import Pin, SwitchRecord
from llmux.policy import LineFirst, Policy
from llmux.switching.admission import Door
from llmux.switching.awake import AwakeRecord
from llmux.switching.breaker import Breaker
from llmux.switching.carrying import Carrier
from llmux.switching.commands import BringDown, Command, Wake
from llmux.switching.decision import Decider
from llmux.switching.draining import look_at_sockets
from llmux.switching.group import AskForecast, Group, Mode, State
from llmux.switching.health import Health, HeardSince
from llmux.switching.hooks import Hooks
from llmux.switching.idle import NO_IDLE_RULES, IdleRules
from llmux.switching.membership import Membership
from llmux.switching.memory import GroupMemory
from llmux.switching.model import NO_TRAITS, Model, Traits
from llmux.switching.observer import Chronicle
from llmux.switching.placing import Placer
from llmux.switching.progress import Progress
from llmux.switching.room import Room
from llmux.switching.running import Running
from llmux.switching.steps import Steps
from llmux.switching.takeover import take_over
from llmux.switching.waits import cost_s, eta_s
from llmux.switching.wishes import Wishes

log = get_logger(__name__)


class Switcher:
    """Switches the models of one group.

    Attributes:
        group: The group's name.
        models: The group's models by name.
        measures: Costs, drains, absences, rates and latencies seen so far.
        health: Checks the model that is awake.
        progress: Looks whether this switcher goes on.
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
        memory: GroupMemory | None = None,
    ) -> None:
        state = self._group = Group(
            group, settings, queued_per_model=queued_per_model, idle_rules=idle_rules
        )
        self.group, self.models, self.measures = group, state.models, state.measures
        self._hooks = hooks
        self._record = record or AwakeRecord(None)
        self._chronicle = Chronicle(group, state.measures, events)
        self._door = Door(state)
        self._breaker = Breaker(state, events)
        self._members = Membership(state, self._record, self._chronicle)
        self._steps = Steps(
            hooks, state, events, record=self._record, on_asleep=self._members.note_asleep
        )
        placer = self._placer = Placer(state, self._steps.hooks_of)
        self._decider = Decider(state, policy, placer)
        self._carrier = Carrier(
            state,
            steps=self._steps,
            placer=placer,
            door=self._door,
            members=self._members,
            chronicle=self._chronicle,
        )
        self.health = Health(lambda: state.in_use, hooks, settings, self._bring_down, events)
        self.progress = Progress(state, lambda: self._steps.is_stuck)
        wishes = Wishes(state, self._chronicle.pin)
        # Methods of the parts that the rest of llmux calls through the switcher.
        self.serving, self.check_admissible = self._door.serving, self._door.check_admissible
        self.set_mode, self.force_switch = wishes.set_mode, wishes.force_switch
        self.set_cordoned, self.refusal = wishes.set_cordoned, self._door.refusal
        self.put_model_to_sleep = wishes.put_model_to_sleep
        self.pin, self.unpin = wishes.pin, wishes.unpin
        self.add, self.remove = self._members.add, self._members.remove
        self.renew, self.leave_as_is = self._members.renew, self._members.leave_as_is
        self.is_unused = self._members.is_unused
        self.look_at_sockets = partial(look_at_sockets, state)
        self.eta_s, self.cost_s = partial(eta_s, state), partial(cost_s, state)
        self.use_memory = self._members.use_memory
        for name in names:
            self.add(name, (traits or {}).get(name, NO_TRAITS))
        self.use_memory(memory)

    def __repr__(self) -> str:
        name = f" {self.active.name!r}" if self.active else ""
        flying = sum(model.in_flight.count for model in self.models.values())
        waiting = sum(model.waiters.count for model in self.models.values())
        return f"<Switcher {self.state.upper()}{name}, {flying} in flight, {waiting} waiting>"

    @property
    def active(self) -> Model | None:
        """The model that is awake and admits requests, the first if several are; or None."""
        return self._group.active

    @property
    def state(self) -> State:
        """`switching` from when a model stops admitting until one is awake."""
        return self._group.state

    @property
    def pinned(self) -> Pin | None:
        """The last pin of the group, or None."""
        return self._group.pins.current

    @property
    def awake(self) -> list[Model]:
        """The models that are awake and admit requests."""
        return self._group.awake

    @property
    def running(self) -> SwitchRecord | None:
        """The running switch, the first if several are; or None."""
        return next(iter(self._chronicle.switches), None)

    @property
    def switches(self) -> list[SwitchRecord]:
        """The running switches, in the order in which they began."""
        return self._chronicle.switches

    @property
    def pins(self) -> list[Pin]:
        """The pins in force, the last one first."""
        return self._group.pins.in_force

    @property
    def shares_memory(self) -> bool:
        """True if several models may be awake."""
        return self._group.shares_memory

    @property
    def room(self) -> Room:
        """The memory that the models share."""
        return self._group.room

    @property
    def busy(self) -> float:
        """Number of models that may be at work at once on one resource; infinity: all."""
        busy = self._group.busy
        return math.inf if busy is None else busy

    @property
    def mode(self) -> Mode:
        """In `manual`, only operators' commands switch."""
        return self._group.mode

    @property
    def policy(self) -> LineFirst:
        """The policy that decides."""
        return self._decider.policy

    @property
    def why_it_stays(self) -> str:
        """Why the model that is awake stays although requests wait for others; empty: none do."""
        return self._decider.why_it_stays

    @property
    def has_died(self) -> bool:
        """True if `run` ended without `stop`, or is stuck."""
        return isinstance(self._group.closed_with, SwitcherDied)

    def die_if_stuck(self) -> bool:
        """Close the group if a hook cannot be ended; returns `has_died`."""
        if self._steps.is_stuck:
            log.critical("switcher_stuck", state=repr(self))
            self._close(SwitcherDied())
        return self.has_died

    def connect(
        self, heard_since: HeardSince, on_sleep: Callable[[str], object], forecast: AskForecast
    ) -> None:
        """Set these callbacks; see `HeardSince`, `Group.on_sleep` and `AskForecast`."""
        self.health.heard_since, self._group.on_sleep = heard_since, on_sleep
        self._group.ask_forecast = forecast

    def apply(
        self,
        settings: PolicyConfig,
        policy: Policy,
        queued_per_model: int,
        idle_rules: IdleRules = NO_IDLE_RULES,
    ) -> None:
        """Use another policy and other settings from now on."""
        self._members.apply(settings, queued_per_model, idle_rules)
        self._decider.use(policy)
        self.health.apply(settings)

    def stop(self) -> None:
        """Stop admitting requests; `run` returns once the running command has ended."""
        self._close(ShuttingDown())

    def _close(self, error: LlmuxError) -> None:
        self._steps.close()
        self._group.close(error)

    async def put_to_sleep(self) -> None:
        """Put all models that hold the GPU to sleep; call it only after `run` has ended."""
        steps, ledger = self._steps, self._group.room.ledger
        left = [model for model in self.models.values() if model.holds_gpu]
        while left:
            # Those first that may sleep now: they may make room for what others need asleep.
            model = min(left, key=lambda each: not ledger.may_sleep(each.name))
            left.remove(model)
            for each in self._placer.in_the_way_of_sleep(model):
                with suppress(HookError):  # logged; then the model is stopped itself, if it can be
                    await steps.stop(each, model, steps.hooks_of(each))
            with suppress(HookError):
                await steps.put_to_sleep(model, model, steps.hooks_of(model))

    # ---- The loop ----

    async def run(self) -> None:
        """Carry out commands until stopped. The only task that begins them."""
        try:
            await take_over(self._group, self._record, self._hooks, self.health)
            self._decider.begin()
            async with trio.open_nursery() as commands:
                while (running := await self._next_command()) is not None:
                    commands.start_soon(self._carrier.carry_out, running)
        finally:
            # No request or caller may be left waiting, however this ends. After `stop`, a no-op.
            is_cancelled = trio.current_effective_deadline() == -math.inf
            self._close(ShuttingDown() if is_cancelled else SwitcherDied())

    async def _next_command(self) -> Running | None:
        while self._group.closed_with is None:
            self.progress.came_round()
            # Where one model is awake at a time, one command runs at a time.
            if self._group.shares_memory or not self._group.running:
                self._members.remove_unwanted()
                self._breaker.look()
                running, look_again_at = self._decider.decide()
                if running is not None:
                    return running
            else:
                look_again_at = math.inf
            with trio.move_on_at(look_again_at):
                # No checkpoint since the snapshot: no change can be missed.
                await self._group.changed.wait()
        return None

    # ---- A model that does not answer ----

    async def _bring_down(self, model: Model) -> None:
        """Cut the requests of a model that no longer answers, and put it to sleep."""
        log.error("model_down", model=model.name, in_flight=model.in_flight.count)
        model.in_flight.cut()  # at once: a drain may be waiting for these requests
        if not model.is_awake or self._group.closed_with is not None:
            return
        if model.is_warming:
            model.fell()
        commands: list[Command] = [BringDown(model, "down", stands=True)]
        # In manual mode, or while pinned, no request and no policy would wake it again. Not if it
        # fell twice in a row before it was warm: then it is left to the operator.
        if self._group.is_kept(model) and model.falls < 2:
            commands.append(Wake(model, "down", stands=True))
        self._group.queue_first(*commands)
        with suppress(LlmuxError):  # logged, and reported to requests in line
            await commands[-1].wait()
