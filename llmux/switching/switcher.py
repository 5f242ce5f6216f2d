"""The switch, on one page: drain, sleep, wake, let in, and only then the next.

Requests stand in line, operators place orders, and `Switcher.run`, the only task that switches,
does one thing at a time: it decides in synchronous code, opens a nursery and starts one task in it
that carries the order out. That task holds the switch lock until the settle barrier is passed.
What each step does to its model is in `llmux.switching.steps`.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from functools import partial
from typing import Literal

import trio
from trio_util import RepeatedEvent

from llmux.config import PolicyConfig
from llmux.errors import (
    HookError,
    LlmuxError,
    ManualMode,
    ModelAsleep,
    ModelNotFound,
    NotReady,
    QueueFull,
    ShuttingDown,
    SwitcherDied,
    WouldSwitch,
)
from llmux.http.clients import NO_PLACE, Place
from llmux.observe.feed import Feed
from llmux.observe.journal import NO_JOURNAL, Journal
from llmux.observe.logs import get_logger
from llmux.observe.metrics import Metrics
from llmux.observe.schemas import Pin, PinChange, SwitchRecord
from llmux.policy import GroupView, LineFirst, LookAgain, Policy, SwitchTo
from llmux.policy.base import by_name
from llmux.policy.estimates import Measures
from llmux.switching.admission import Check, Serving
from llmux.switching.awake import AwakeRecord, Entry
from llmux.switching.commands import Order
from llmux.switching.health import IN_USE, Health
from llmux.switching.hints import NO_HINTS, Hints
from llmux.switching.idle import NO_IDLE_RULES, IdleRules, idle_order
from llmux.switching.inflight import Flight
from llmux.switching.model import AT_REST, NO_TRAITS, Model, Phase, Traits
from llmux.switching.observer import Chronicle
from llmux.switching.orphans import end_marked
from llmux.switching.pins import Pins
from llmux.switching.steps import Hooks, ModelHooks, Steps, SwitchAbandoned, cut_sockets

Mode = Literal["auto", "manual"]
State = Literal["idle", "active", "switching"]

log = get_logger(__name__)


class Switcher:
    """Switches the models of one group.

    Attributes:
        models: The group's models by name; each knows its own phase, line and requests.
        measures: What was seen so far: costs, drains, absences, rates, latencies.
        health: Looks after the model that is awake.
        group: Its name.
        on_sleep: Called with each model that is to be put to sleep now.
    """

    def __init__(
        self,
        names: Iterable[str],
        hooks: Hooks,
        policy: Policy,
        metrics: Metrics,
        *,
        settings: PolicyConfig,
        queued_per_model: int = 1000,
        traits: Mapping[str, Traits] | None = None,
        journal_to: Journal = NO_JOURNAL,
        record: AwakeRecord | None = None,
        feed: Feed | None = None,
        group: str = "default",
        idle_rules: IdleRules = NO_IDLE_RULES,
    ) -> None:
        self._changed = RepeatedEvent()
        self.models: dict[str, Model] = {}
        self.measures = Measures()
        self._steps = Steps(
            hooks,
            settings,
            self.measures,
            metrics,
            self._changed,
            on_sleep=self._on_sleep,
            on_asleep=self._on_asleep,
        )
        self._policy = LineFirst(policy, settings, self.measures)
        self.group = group
        self._feed = feed or Feed()
        self._chronicle = Chronicle(group, self.measures, metrics, journal_to, self._feed)
        self._pins = Pins(self._on_pin)
        self._idle_rules = idle_rules
        self._began_at = 0.0
        self._record = record or AwakeRecord(None)
        self.health = Health(lambda: self._in_use, hooks, settings, self._bring_down)
        self._queued_per_model = queued_per_model
        self._mode: Mode = "auto"
        self._orders: deque[Order] = deque()
        self._switch_lock = trio.Lock()
        self._closed_with: LlmuxError | None = None  # why nobody is let in any more
        self.on_sleep: Callable[[str], object] = lambda _model: None
        self._when_asleep: dict[str, Callable[[], None]] = {}
        self._leaving: dict[str, Callable[[], None]] = {}
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
        return next((model for model in self.models.values() if model.is_awake), None)

    @property
    def _in_use(self) -> Model | None:
        """The model that is awake or draining."""
        return next((model for model in self.models.values() if model.phase in IN_USE), None)

    @property
    def state(self) -> State:
        """`switching` from the moment that a model stops admitting until one is awake."""
        if self.active is not None:
            return "active"
        at_rest = all(m.phase in AT_REST for m in self.models.values())
        return "idle" if at_rest else "switching"

    @property
    def has_died(self) -> bool:
        """Whether `run` ended though nobody asked it to."""
        return isinstance(self._closed_with, SwitcherDied)

    def die_if_stuck(self) -> bool:
        """Give up if a hook cannot even be ended; returns whether `run` can switch no more."""
        if self._steps.is_stuck:
            log.critical("switcher_stuck", state=repr(self))
            self._close(SwitcherDied())
        return self.has_died

    # ---- The door ----

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

        What is inside can be cut: by a scope of its own, or by one that is around it already.
        Entering may raise ManualMode, QueueFull, WouldSwitch, SwitchTimeout, HookError or
        ShuttingDown, and leaving StreamCut.
        """
        return Serving(
            self.models[name],
            check=self.check_admissible,
            timeout_s=self._steps.settings.request_timeout_secs,
            scope=scope,
            hints=hints,
            request=request,
            place=place,
            find=find,
        )

    def check_admissible(self, model: Model, hints: Hints, place: Place) -> None:
        """Raise what a request for a model of this group is refused with at the door."""
        if self.models.get(model.name) is not model:
            raise ModelNotFound(model.name)  # removed just now
        if self._closed_with is not None:
            raise self._closed_with.with_traceback(None)
        if hints.is_passive:
            if not model.is_awake:
                raise ModelAsleep(model.name, model.phase.value)
            return
        if (refusal := self._pins.refusal(model.name)) is not None:
            raise refusal
        if not model.admits:
            self._check_may_wait(model, hints)
            place.check()
        self.measures.note_arrival(model.name, trio.current_time())

    def _check_may_wait(self, model: Model, hints: Hints) -> None:
        if self._mode == "manual" and not model.is_awake:
            raise ManualMode(model.name, self.active.name if self.active else None)
        if model.waiters.count >= self._queued_per_model:
            message = f"{model.waiters.count} requests already wait for model {model.name}"
            raise QueueFull(message, retry_after_s=self._wait_s(model))
        if hints.never_switch and not model.is_awake:
            raise WouldSwitch(model.name)

    def _wait_s(self, model: Model) -> float:
        """About how long a request that came now would be in line, by what was measured.

        Should the switch begin at once, that is: when it does is for the policy to say.
        """
        active, wait_s = self.active, 0.0
        if active is not model:
            source = active.name if active else None
            wait_s += self.measures.cost_s(source, model.name)
            if active is not None and active.in_flight.count:
                wait_s += self.measures.drain_s(active.name)
        if model.max_in_flight != math.inf:  # as many rounds as there are in line
            latency_s = self.measures.latency_s(model.name, int(model.max_in_flight)) or 0.0
            wait_s += latency_s * model.waiters.count / model.max_in_flight
        return wait_s

    # ---- What operators may do ----

    @property
    def mode(self) -> Mode:
        """In `manual`, nothing but `force_switch` switches."""
        return self._mode

    def set_mode(self, mode: Mode) -> None:
        """Change the mode; entering manual mode refuses all who wait."""
        self._mode = mode
        if mode == "manual":
            active = self.active.name if self.active else None
            for model in self.models.values():
                if not model.is_awake:
                    model.waiters.refuse(ManualMode(model.name, active))
        self._changed.set()

    async def force_switch(self, name: str) -> None:
        """Switch to a model whatever the policy thinks; returns when it is awake.

        While the group is pinned, it is pinned to that model then. The order stands even if the
        caller is cancelled while it waits.

        Raises:
            ModelNotFound, HookError, NotReady, ShuttingDown: Why the model is not awake.
        """
        if self.pinned is not None:
            await self.pin(Pin(model=name, wait=self.pinned.wait))
            return
        await self._follow(Order(self._known(name), "an operator", stands=True, rule="forced"))

    async def put_model_to_sleep(self, name: str) -> None:
        """Drain a model and put it to sleep; a request for it wakes it again.

        Raises:
            ModelNotFound, HookError, ShuttingDown: Why it does not sleep.
        """
        target = self._known(name)
        await self._follow(Order(target, "an operator", stands=True, to="asleep", rule="forced"))

    async def pin(self, pin: Pin) -> None:
        """Switch to a model and keep it awake; returns when it is.

        Requests for the others are refused, or wait, until `unpin`. If the model cannot be woken,
        nothing has changed.

        Raises:
            ModelNotFound, HookError, NotReady, ShuttingDown: Why the model is not awake.
            PinLost: It is, but is not pinned any more.
        """
        order = Order(self._known(pin.model), "an operator", stands=True, rule="pinned")
        placed = self._pins.place(pin)
        order.on_failure = partial(self._take_back, placed)
        await self._follow(order)
        self._pins.keep(placed)

    def _take_back(self, placed: Pin) -> None:
        counted = self.pinned is placed
        self._pins.take_back(placed)
        if counted and (before := self.pinned) is not None and self._closed_with is None:
            model = self.models[before.model]  # put to sleep for it, maybe
            self._orders.append(Order(model, "an operator", stands=True, rule="pinned"))

    def unpin(self) -> None:
        """Leave it to the policy again what is awake; harmless when repeated."""
        self._pins.clear()

    @property
    def pinned(self) -> Pin | None:
        """What the group is pinned to; None: nothing."""
        return self._pins.current

    def _on_pin(self) -> None:
        for model in self.models.values():
            if (refusal := self._pins.refusal(model.name)) is not None:
                model.waiters.refuse(refusal)
        now = self._feed.clock.now()
        self._feed.tell("pin", PinChange(at=now, group=self.group, pinned=self.pinned))
        self._changed.set()

    def _known(self, name: str) -> Model:
        if name not in self.models:
            raise ModelNotFound(name)
        if self._closed_with is not None:
            raise self._closed_with.with_traceback(None)
        return self.models[name]

    async def _follow(self, order: Order) -> None:
        self._orders.append(order)
        self._changed.set()
        await order.wait_ended()
        if order.to == "awake" and not order.target.is_awake:
            raise NotReady(order.target.name)

    @property
    def running(self) -> SwitchRecord | None:
        """The switch that runs; None: none does."""
        return self._chronicle.running

    def eta_s(self, model: Model) -> float | None:
        """Like `_wait_s`, but None where nobody knows."""
        if model.admits:
            return 0.0
        source = self.active.name if self.active else None
        if source != model.name and self.measures.costs.estimate(source, model.name) is None:
            return None
        return self._wait_s(model)

    def add(self, name: str, traits: Traits = NO_TRAITS) -> None:
        """Add a sleeping model, or cancel a pending removal.

        A model that an llmux before this one may have left awake is put to sleep before another
        one wakes.
        """
        self._leaving.pop(name, None)
        if name not in self.models:
            model = self.models[name] = Model(
                name,
                on_enter=self._on_enter,
                on_line=self._on_line,
                on_leave=self._on_leave,
                on_beside=self._changed.set,
                traits=traits,
                drains=self._steps.settings.drain_before_switch,
                socket_idle_s=_socket_idle_s(self._steps.settings),
            )
            if self._record.take_left(name):
                log.warning("model_unsure", model=name, hint="slept before another wakes")
                model.holds_gpu = True
                model.enter(Phase.FAILED)

    def renew(self, name: str, then: Callable[[], None]) -> None:
        """Call `then` while the model sleeps: now, or once it was drained and put to sleep.

        What it was to call before is not called any more.
        """
        model = self.models[name]
        if self._rests(model):
            self.leave_as_is(name)
            then()
            return
        # Done as soon as it sleeps, whatever it is put to sleep for; the order only hastens that.
        self._when_asleep[name] = then
        reason = "its config has changed"
        self._orders.append(Order(model, reason, to="renewed"))
        # Nobody else would wake it again.
        if self._is_kept(model) and model.phase in {Phase.WAKING, Phase.AWAKE}:
            self._orders.append(Order(model, reason, stands=True))
        self._changed.set()

    def leave_as_is(self, name: str) -> None:
        """Take back what `renew` has been told, and the drain for it; harmless when repeated."""
        if self._when_asleep.pop(name, None) is not None:
            self._changed.set()

    def _is_kept(self, model: Model) -> bool:
        """Whether it is awake since an operator wants it so, whoever waits."""
        return self._mode == "manual" or self._pins.model == model.name

    def _rests(self, model: Model) -> bool:
        """Whether it sleeps, and will as long as nothing new is decided."""
        is_asleep = model.phase in AT_REST and not model.holds_gpu
        return is_asleep and not self._switch_lock.locked()

    def is_unused(self, name: str) -> bool:
        """Whether a model could be removed at once."""
        model = self.models[name]
        return self._rests(model) and model.is_unused

    def remove(self, name: str, then: Callable[[], None]) -> None:
        """Have a model no more, and call `then`, once nobody wants it and it sleeps."""
        self._leaving[name] = then
        self.leave_as_is(name)
        self._remove_if_unwanted(self.models[name])

    def _remove_if_unwanted(self, model: Model) -> None:
        if model.name not in self._leaving or not model.is_unused:
            return

        def finish() -> None:
            # It may have come back meanwhile, and somebody may have come before it had left.
            if model.is_unused and (then := self._leaving.pop(model.name, None)) is not None:
                del self.models[model.name]
                self.measures.forget(model.name)
                self._pins.forget(model.name)
                then()

        self.renew(model.name, finish)

    def _remove_those_left(self) -> None:
        """Remove models whose last request was beside the line, and has not come back to it."""
        for name in [name for name in self._leaving if name not in self._when_asleep]:
            self._remove_if_unwanted(self.models[name])

    def apply(
        self,
        settings: PolicyConfig,
        policy: Policy,
        queued_per_model: int,
        idle_rules: IdleRules = NO_IDLE_RULES,
    ) -> None:
        """Use other settings from now on."""
        self._idle_rules = idle_rules
        self._steps.settings = settings
        self._policy = LineFirst(policy, settings, self.measures)
        self._queued_per_model = queued_per_model
        self.health.apply(settings)
        for model in self.models.values():
            model.drains = settings.drain_before_switch
            model.socket_idle_s = _socket_idle_s(settings)
        self._changed.set()

    def stop(self) -> None:
        """Let nobody in any more; `run` returns once the switch that is running has ended."""
        self._close(ShuttingDown())

    async def put_to_sleep(self) -> None:
        """Put to sleep what holds the GPU; only once `run` has ended, which nobody can undo."""
        async with self._switch_lock:
            for model in self.models.values():
                if model.holds_gpu:
                    with suppress(HookError):  # logged
                        hooks = self._steps.hooks_of(model)
                        await self._steps.put_to_sleep(model, model, hooks)

    def _close(self, error: LlmuxError) -> None:
        self._closed_with = self._closed_with or error
        self._steps.close()
        while self._orders:
            self._orders.popleft().end(error)
        for model in self.models.values():
            model.waiters.refuse(error)
        self._changed.set()

    def look_at_sockets(self) -> None:
        """Cut WebSockets that stand in somebody's way; that they are quiet nobody else notices.

        A drain waits for none that is quiet or gives way, nor does a removal. A request that waits
        for a slot gets that of a quiet one.
        """
        for model in self.models.values():
            if not (yielding := model.yielding):
                continue
            is_draining = model.phase is Phase.DRAINING and model.is_drained
            if is_draining or model.name in self._leaving:
                cut_sockets(model, yielding)
            elif model.is_awake and model.waiters.count:
                cut_sockets(model, model.quiet[: model.waiters.count])
            self._changed.set()  # to a policy, and to rules for idle groups, they do not count

    # ---- Deciding ----

    async def run(self) -> None:
        """Follow orders and the policy until stopped. The only task that switches."""
        try:
            await self._take_over()
            self._began_at = trio.current_time()
            self._preload()
            while (order := await self._next_order()) is not None:
                # A nursery for each switch, so that it can be cancelled as a whole.
                async with trio.open_nursery() as switch:  # noqa: ASYNC112
                    switch.start_soon(self._carry_out, order, switch)
        finally:
            # Whatever ends this task: nobody may be left waiting for it. After `stop` a no-op.
            is_cancelled = trio.current_effective_deadline() == -math.inf
            self._close(ShuttingDown() if is_cancelled else SwitcherDied())

    async def _take_over(self) -> None:
        """Find out what an llmux that was killed has left awake; see `llmux.switching.awake`."""
        found = {
            name: entry
            for name, model in self.models.items()
            if (entry := self._record.entry(name)) and not model.holds_gpu  # see `add`
        }
        for name in found:
            self.models[name].holds_gpu = True
        async with self._switch_lock:
            for name, entry in found.items():
                await self._take_over_one(self.models[name], entry)
            if self.active is not None:
                await self.active.let_in()

    async def _take_over_one(self, model: Model, entry: Entry) -> None:
        if entry.mark:
            await end_marked(entry.mark)
        alone = self.active is None and entry.state == "awake"
        if alone and await self.health.is_alive(model):
            log.info("model_adopted", model=model.name)
            model.enter(Phase.AWAKE)
        else:  # it is in the way of any other
            log.warning("model_unsure", model=model.name, hint="slept before another wakes")
            model.enter(Phase.FAILED)

    def _preload(self) -> None:
        """Wake what the config says, unless something is awake, or an operator was faster."""
        if self._orders:
            return
        model = self.models.get(self._idle_rules.preload or "")
        if model is not None and not any(each.holds_gpu for each in self.models.values()):
            self._orders.append(Order(model, "at the start", stands=True, rule="preload"))

    async def _next_order(self) -> Order | None:
        while self._closed_with is None:
            self._remove_those_left()
            if self._orders:
                return self._orders.popleft()
            order, look_again_at = self._decide() if self._mode == "auto" else (None, math.inf)
            if order is not None:
                return order
            with trio.move_on_at(look_again_at):
                # No checkpoint since the snapshot: no change can be missed.
                await self._changed.wait()
        return None

    def _decide(self) -> tuple[Order | None, float]:
        """What to do now, and when to look again at the latest."""
        decision = self._policy.decide(self._view())
        if isinstance(decision, SwitchTo):
            target, rule = self.models[decision.model], decision.rule
            stands = not target.wanted_by
            return Order(target, decision.reason, stands=stands, rule=rule), math.inf
        look_again_at = decision.at if isinstance(decision, LookAgain) else math.inf
        if self.pinned is not None or not self._heeds_idleness:
            return None, look_again_at
        order, at = idle_order(
            self.models,
            self._idle_rules,
            self._began_at,
            trio.current_time(),
            min_active_s=self._steps.settings.min_active_secs,
        )
        return order, min(at, look_again_at)

    @property
    def _heeds_idleness(self) -> bool:
        is_short = any(model.idle_sleep_s != math.inf for model in self.models.values())
        return is_short or self._idle_rules.standby is not None

    def _view(self) -> GroupView:
        active = self.active
        shown = list(self.models.values())
        if (pin := self.pinned) is not None:  # then there are no others
            shown = [each for each in shown if each is active or each.name == pin.model]
        return GroupView(
            now=trio.current_time(),
            active=active.name if active else None,
            active_since=active.awake_since if active else None,
            models=by_name(model.view() for model in shown),
            measures=self.measures.estimates,
        )

    # ---- The switch ----

    async def _carry_out(self, order: Order, nursery: trio.Nursery) -> None:
        target = order.target
        async with self._switch_lock:
            # From here on no model changes that is in its way, nor is one removed; and each step is
            # taken with the hooks that its model has now, whatever is reloaded meanwhile.
            try:
                if self.models.get(target.name) is not target:  # it is gone, and sleeps
                    order.end(NotReady(target.name) if order.to == "awake" else None)
                    return
                hooks = self._steps.hooks_of(target)
                if order.to != "awake":
                    await self._retire(order, hooks)
                    return
                if not target.is_awake:
                    await self._switch(order, hooks, nursery)
                await target.let_in()  # the barrier: returns once each has settled
                order.end()
            except SwitchAbandoned:
                log.info("switch_abandoned", to=target.name)
                if self.active is not None:
                    await self.active.let_in()
            except HookError as error:
                target.waiters.refuse(error)
                order.end(error)
                await self._give_up(target, hooks, error)
            except (ShuttingDown, NotReady) as error:
                order.end(error)
            finally:
                order.end(ShuttingDown())  # heard only if this task was cancelled

    async def _switch(self, order: Order, hooks: ModelHooks, nursery: trio.Nursery) -> None:
        """Drain and put to sleep what is in the way, then wake the target.

        Args:
            order: What is wanted.
            hooks: The target's.
            nursery: Runs what goes on beside this.

        Raises:
            HookError: The target is not awake.
            SwitchAbandoned: The target is not wanted any more; what was drained is awake again, or
                sleeps, and so does the target.
        """
        target = order.target
        in_the_way = [(each, self._steps.hooks_of(each)) for each in self._in_the_way_of(target)]
        first = in_the_way[0][0] if in_the_way else None
        source = first.name if first else None
        with self._chronicle.switch(order, first) as tally:
            prefetch = self._steps.prefetch(target, source, hooks, nursery)
            try:
                for model, its_hooks in in_the_way:
                    tally.drain_s += await self._drain(model, order)
                    self._check_open()
                    tally.hooks_s += await self._steps.put_to_sleep(model, target, its_hooks)
                # What of it the drain and the sleep did not hide is a cost of the switch.
                tally.hooks_s += await self._steps.wait_prefetched(
                    prefetch, lambda: self._is_in_vain(order)
                )
                self._check_open()
                self._check_wanted(order)
                tally.hooks_s += await self._steps.wake_while(
                    lambda: self._is_wake_wanted(order), target, source, hooks
                )
            finally:
                prefetch.abandon()
        if source is not None and source not in self.models:  # removed once it slept
            self.measures.forget(source)

    async def _retire(self, order: Order, hooks: ModelHooks) -> None:
        """Put a model to sleep for no other: it is down, or its config has changed.

        Raises:
            HookError: The GPU is still taken.
        """
        model = order.target
        if not self._is_wanted(order):
            order.end()  # it was taken back, or it has slept meanwhile
            return
        if order.to == "down" and model.is_awake:
            model.enter(Phase.DRAINING)
            await model.waiters.wait_settled()
            model.in_flight.cut()
            await model.in_flight.wait_empty()
        elif order.to != "down":
            await self._drain(model, order)
        self._check_open()
        if model.phase is Phase.DRAINING or (model.holds_gpu and order.to != "down"):
            await self._steps.put_to_sleep(model, model, hooks)
        self._on_asleep(model)  # it slept already
        order.end()

    async def _bring_down(self, model: Model) -> None:
        """A model does not answer any more: cut its requests and put it to sleep."""
        log.error("model_down", model=model.name, in_flight=model.in_flight.count)
        model.in_flight.cut()  # also those that a drain waits for
        if not model.is_awake or self._closed_with is not None:
            return
        if model.is_warming:
            model.fell()
        # Nobody else might wake it again, and somebody has wanted it awake.
        orders = [Order(model, "down", stands=True, to="down")]
        if self._is_kept(model) and model.falls < 2:  # not for ever
            orders.append(Order(model, "down", stands=True))
        self._orders.extendleft(reversed(orders))
        self._changed.set()
        with suppress(LlmuxError):  # logged; whoever waits will hear of it
            await orders[-1].wait_ended()

    def _check_open(self) -> None:
        """After `stop` no further hook is started."""
        if self._closed_with is not None:
            raise self._closed_with.with_traceback(None)

    def _is_wanted(self, order: Order) -> bool:
        """Whether somebody waits for its target to be awake, or nobody for anything else."""
        if order.to == "renewed":
            return order.target.name in self._when_asleep
        if order.stands or (order.to == "awake" and order.target.wanted_by):
            return True
        return not any(model.wanted_by for model in self.models.values())

    def _is_in_vain(self, order: Order) -> bool:
        return self._closed_with is not None or not self._goes_on(order)

    def _goes_on(self, order: Order) -> bool:
        """Whether a switch does in which no hook of its target was started yet."""
        return self._is_wanted(order) and self._is_wake_wanted(order)

    def _is_wake_wanted(self, order: Order) -> bool:
        """Whether a wake may begin, or go on: always, unless wakes may be abandoned."""
        target, abandons = order.target, order.target.abandons_wakes
        if not (self._steps.settings.abandon_wakes if abandons is None else abandons):
            return True
        if self._closed_with is not None:
            return True  # all were sent away, and a hook that runs may use the grace
        if order.to != "awake" or order.stands or self._pins.model == target.name:
            return True
        if order.is_unasked:
            return self._is_wanted(order)
        if target.wanted_by or target.beside_line:
            return True
        return any(each.target is target and each.to == "awake" for each in self._orders)

    def _check_wanted(self, order: Order) -> None:
        if not self._goes_on(order):
            raise SwitchAbandoned

    def _in_the_way_of(self, target: Model) -> list[Model]:
        """Who must sleep before the target may wake: a group holds one model at a time."""
        return [m for m in self.models.values() if m.holds_gpu and m is not target]

    async def _drain(self, model: Model, order: Order) -> float:
        """See `Steps.drain`: as long as the switch is wanted."""
        return await self._steps.drain(
            model, order.target, lambda: self._goes_on(order), self._send_away_those_who_stay
        )

    def _send_away_those_who_stay(self, model: Model) -> None:
        """Of those in line for a slot: who may not wait until the model is awake again."""
        if self._mode == "manual":
            model.waiters.refuse(ManualMode(model.name, None))
        model.waiters.refuse(WouldSwitch(model.name), only=lambda waiter: waiter.never_switch)

    async def _give_up(self, target: Model, hooks: ModelHooks, error: HookError) -> None:
        """After a failure: free what the wake took, and put off the target's next try."""
        if target.phase is Phase.WAKING:
            with suppress(HookError):  # logged; the next switch will find it in the way
                await self._steps.put_to_sleep(target, target, hooks, then=Phase.FAILED)
        target.wake_failed(error)

    # ---- Telling ----

    def _on_line(self, model: Model) -> None:
        """A request has joined a line, or left it: the last to leave may end a switch."""
        if self._leaving:
            self._remove_if_unwanted(model)
        self._changed.set()

    def _on_leave(self, model: Model, flight: Flight) -> None:
        """A request has left a model: of interest if others wait, or it was frozen with it."""
        if flight.is_whole and flight.socket is None and not flight.is_passive:
            self.measures.note_served(model.name, flight.company, flight.served_s)
        if self._leaving:
            self._remove_if_unwanted(model)
        is_wanted = any(other.wanted_by for other in self.models.values())
        if is_wanted or not model.is_awake or self._is_newly_idle(model):
            self._changed.set()

    def _is_newly_idle(self, model: Model) -> bool:
        return not model.in_flight.in_use and self._heeds_idleness

    def _on_sleep(self, name: str) -> None:
        self.on_sleep(name)

    def _on_asleep(self, model: Model) -> None:
        if (change := self._when_asleep.pop(model.name, None)) is not None:
            change()

    def _on_enter(self, model: Model, left: Phase, stayed_s: float) -> None:
        self._chronicle.phase(model, left, stayed_s)
        self._record.note(model.name, model.standing)
        if model.is_awake and left is Phase.DRAINING:
            self.measures.note_reopened(model.name)
        elif model.is_awake:
            self.measures.note_open(model.name, trio.current_time(), model.oldest)
        if left is Phase.AWAKE:
            self.measures.note_closed(model.name, trio.current_time())


def _socket_idle_s(settings: PolicyConfig) -> float:
    idle_s = settings.websocket_idle_secs
    return math.inf if idle_s is None else idle_s
