"""All groups behind one front: each model name leads to the switcher of its group."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from itertools import chain

import trio
from trio_util import periodic

from llmux.config import Config, ModelConfig
from llmux.errors import GroupNotFound, ModelNotFound
from llmux.http.clients import NO_PLACE, Place
from llmux.observe.events import Events
from llmux.observe.metrics import Counts, ModelGauges
from llmux.observe.pauses import leave_out_pauses
from llmux.observe.schemas import ModeChange, Pin
from llmux.policy import Policy, load_policy
from llmux.switching.admission import Check, Serving
from llmux.switching.awake import AwakeRecord
from llmux.switching.group import Mode, State
from llmux.switching.health import HeardSince
from llmux.switching.hints import NO_HINTS, Hints
from llmux.switching.idle import NO_IDLE_RULES, IdleRules
from llmux.switching.model import Model, Traits
from llmux.switching.steps import Hooks
from llmux.switching.switcher import Switcher

WATCH_S = 1.0
"""How often it is looked whether the switchers get on."""


class Switchboard:
    """One switcher for each group of models; groups never wait for each other.

    Attributes:
        groups: The switchers by group, in the config's order.
        on_death: Called when a switcher can get on no more: its hook cannot even be ended.
    """

    def __init__(
        self,
        config: Config,
        hooks: Hooks,
        events: Events,
        *,
        record: AwakeRecord | None = None,
    ) -> None:
        self._record = record or AwakeRecord(None)
        self._mode: Mode = "auto"
        self._hooks = hooks
        self._events = events
        self._heard_since: HeardSince = lambda _model, _since: False
        self._on_sleep: Callable[[str], object] = lambda _model: None
        self._ports: dict[str, int | None] = {}
        self._used: dict[str, ModelConfig] = {}  # not yet changed, where that has to wait
        self._switcher_of: dict[str, Switcher] = {}
        self._running: trio.Nursery | None = None
        self._is_stopped = False
        self.groups: dict[str, Switcher] = {}
        policies = self.policies_for(config)
        for model in config.models.values():
            self._add(config, model, policies[model.group])
        self._ended = trio.Event()
        self.on_death: Callable[[], object] = lambda: None

    def __repr__(self) -> str:
        return f"<Switchboard {dict(self.groups)!r}>"

    # ---- The door ----

    def serving(
        self,
        model: str,
        scope: trio.CancelScope | None = None,
        hints: Hints = NO_HINTS,
        *,
        request: str = "",
        place: Place = NO_PLACE,
    ) -> Serving:
        """The only way into a model; see `Switcher.serving`.

        Raises:
            ModelNotFound: No model has this name.
        """
        switcher = self.switcher_of(model)
        return switcher.serving(model, scope, hints, request=request, place=place, find=self._find)

    def _find(self, model: str) -> tuple[Model, Check] | None:
        """A model and its door, where there is one by this name now."""
        switcher = self._switcher_of.get(model)
        return None if switcher is None else (switcher.models[model], switcher.check_admissible)

    def switcher_of(self, model: str) -> Switcher:
        """The switcher of a model's group.

        Raises:
            ModelNotFound: No model has this name.
        """
        try:
            return self._switcher_of[model]
        except KeyError:
            raise ModelNotFound(model) from None

    async def refused(self, model: str) -> None:
        """A model's backend has refused a connection; see `Health.refused`.

        Whoever asks counts as beside the line, so that the model is not removed meanwhile.
        """
        if (switcher := self._switcher_of.get(model)) is not None:
            await switcher.health.refused(switcher.models[model])

    async def silent(self, model: str) -> None:
        """A model's backend has sent nothing for too long; see `Health.silent`."""
        if (switcher := self._switcher_of.get(model)) is not None:
            await switcher.health.silent(switcher.models[model])

    def look_at_sockets(self) -> None:
        """See `Switcher.look_at_sockets`; for all groups, and called often."""
        for switcher in self.groups.values():
            switcher.look_at_sockets()

    def connect(self, heard_since: HeardSince, on_sleep: Callable[[str], object]) -> None:
        """Say how it can be known that bytes come from a backend, and what to do when it sleeps."""
        self._heard_since, self._on_sleep = heard_since, on_sleep
        for switcher in self.groups.values():
            switcher.connect(heard_since, on_sleep)

    # ---- What it is doing ----

    @property
    def state(self) -> State:
        """`switching` while any group is, else `active` if any is, else `idle`."""
        states = {switcher.state for switcher in self.groups.values()}
        return next(s for s in ("switching", "active", "idle") if s in states)

    @property
    def active_model(self) -> str | None:
        """The model that is awake; with several groups, the first group's that has one."""
        return next((name for name in self.active_models.values() if name), None)

    @property
    def active_models(self) -> dict[str, str | None]:
        """The model that is awake in each group."""
        return {
            group: switcher.active.name if switcher.active else None
            for group, switcher in self.groups.items()
        }

    @property
    def models(self) -> dict[str, Model]:
        """Every model, in the config's order."""
        return dict(
            chain.from_iterable(switcher.models.items() for switcher in self.groups.values())
        )

    @property
    def registered_models(self) -> list[str]:
        """The names of all models."""
        return list(self._switcher_of)

    def is_registered(self, model: str) -> bool:
        """Whether a model of this name exists; aliases are not names."""
        return model in self._switcher_of

    def model_port(self, model: str) -> int | None:
        """The local port of a model's backend; None if unknown, or if it has a URL instead."""
        return self._ports.get(model)

    def in_flight_count(self, model: str) -> int:
        """How many requests are in flight on a model at this instant."""
        return self.switcher_of(model).models[model].in_flight.count

    @property
    def queue_depths(self) -> dict[str, int]:
        """How many requests wait for each model at this instant."""
        return {name: model.queued for name, model in self.models.items()}

    def estimated_switch_cost(self, source: str | None, target: str) -> float | None:
        """Seconds of hook time that a switch should take; None if it was never seen."""
        return self.switcher_of(target).measures.costs.estimate(source, target)

    def estimated_costs(self) -> dict[str, dict[str, float]]:
        """Every known cost in seconds, by source (`idle`: nothing was awake) and target."""
        costs: dict[str, dict[str, float]] = {}
        for switcher in self.groups.values():
            for source in (None, *switcher.models):
                known = switcher.measures.costs.estimates_from(source)
                if known:
                    costs.setdefault(source or "idle", {}).update(known)
        return costs

    def gauges(self) -> Counts:
        now = trio.current_time()
        return {
            name: ModelGauges(
                queued=model.queued,
                in_flight=model.in_flight.count,
                group=group,
                state=model.phase.value,
                oldest_wait_s=0.0 if model.oldest is None else now - model.oldest,
            )
            for group, switcher in self.groups.items()
            for name, model in switcher.models.items()
        }

    def in_flight_and_queued(self) -> dict[str, tuple[int, int]]:
        return {name: (model.in_flight.count, model.queued) for name, model in self.models.items()}

    # ---- What operators may do ----

    @property
    def mode(self) -> Mode:
        """`auto`, or `manual`: then nothing but `force_switch` switches, in any group."""
        return self._mode

    def set_mode(self, mode: Mode) -> None:
        """Change the mode of all groups; entering manual mode refuses all who wait."""
        self._mode = mode
        for switcher in self.groups.values():
            switcher.set_mode(mode)
        self._events.mode_changed.tell(ModeChange(at=self._events.clock.now(), mode=mode))

    async def force_switch(self, model: str) -> None:
        """Switch a model's group to it; see `Switcher.force_switch`."""
        await self.switcher_of(model).force_switch(model)

    async def put_model_to_sleep(self, model: str) -> None:
        """Drain a model and put it to sleep; see `Switcher.put_model_to_sleep`."""
        await self.switcher_of(model).put_model_to_sleep(model)

    async def pin(self, pin: Pin) -> None:
        """Keep a model of its group awake; see `Switcher.pin`."""
        await self.switcher_of(pin.model).pin(pin)

    def unpin(self, group: str | None = None) -> None:
        """Leave it to the policy again what is awake in a group, or in all.

        Raises:
            GroupNotFound: There is none of this name.
        """
        if group is not None and group not in self.groups:
            raise GroupNotFound(group)
        for name, switcher in self.groups.items():
            if group in {None, name}:
                switcher.unpin()

    def config_of(self, model: str) -> ModelConfig:
        """The config of a model, as it is used now."""
        return self._used[model]

    # ---- Another config ----

    def _add(self, config: Config, model: ModelConfig, policy: Policy) -> None:
        switcher = self.groups.get(model.group)
        if switcher is None:
            switcher = self.groups[model.group] = Switcher(
                (),
                self._hooks,
                policy,
                self._events,
                settings=config.policy,
                queued_per_model=config.limits.queued_per_model,
                record=self._record,
                group=model.group,
                idle_rules=idle_rules_of(config, model.group),
            )
            switcher.connect(self._heard_since, self._on_sleep)
            self._start(switcher)
        switcher.set_mode(self._mode)
        switcher.add(model.name, traits_of(model))
        self._used[model.name] = model
        self._switcher_of[model.name] = switcher
        self._ports[model.name] = model.port

    def refuses(self, config: Config) -> Iterator[str]:
        """What of another config cannot be done now, one line each."""
        for name, switcher in self._switcher_of.items():
            model = config.models.get(name)
            moves = model is not None and self.groups.get(model.group) is not switcher
            if moves and not switcher.is_unused(name):
                yield f"models.{name}.group: cannot change while the model is in use"

    def policies_for(self, config: Config) -> dict[str, Policy]:
        """A policy for each group that there is or will be: one each, for it may remember things.

        Raises:
            ConfigError: One cannot be made.
        """
        groups = {*self.groups, *(model.group for model in config.models.values())}
        return {group: load_policy(config.policy, config.directory) for group in sorted(groups)}

    def apply(
        self,
        old: Config,
        new: Config,
        policies: Mapping[str, Policy],
        use: Callable[[str, ModelConfig | None], None],
    ) -> None:
        """Bring all groups to another config that `refuses` has nothing against.

        Args:
            old: The one before.
            new: The one to use.
            policies: What `policies_for` has made of it.
            use: Called with each model and its new config, when it is used; None: it is gone.
        """
        for switcher in self.groups.values():
            rules = idle_rules_of(new, switcher.group)
            policy = policies[switcher.group]
            switcher.apply(new.policy, policy, new.limits.queued_per_model, rules)
            switcher.set_mode(self._mode)
        for name in [name for name in self._switcher_of if name not in new.models]:
            self._remove(name, use)
        for model in new.models.values():
            before, has_it = old.models.get(model.name), self._switcher_of.get(model.name)
            used = self._used.get(model.name, model)
            if has_it is not None and has_it is not self.groups.get(model.group):
                self._remove(model.name, use)  # at once: it is not in use
                has_it = None
            if has_it is None:
                use(model.name, model)
                self._add(new, model, policies[model.group])
            elif model != before or model != used:
                has_it.add(model.name)  # it may be being removed
                self._change(model, use, waits=model.needs_sleep_after(used))

    def _remove(self, name: str, use: Callable[[str, ModelConfig | None], None]) -> None:
        switcher = self._switcher_of[name]

        def forget() -> None:
            del self._switcher_of[name], self._ports[name], self._used[name]
            use(name, None)
            if not switcher.models:
                del self.groups[switcher.group]
                switcher.stop()

        switcher.remove(name, forget)

    def _change(
        self, model: ModelConfig, use: Callable[[str, ModelConfig | None], None], *, waits: bool
    ) -> None:
        switcher = self._switcher_of[model.name]

        def change() -> None:
            self._used[model.name] = model
            use(model.name, model)
            self._ports[model.name] = model.port
            switcher.models[model.name].apply(traits_of(model))

        if waits:
            switcher.renew(model.name, change)
        else:
            switcher.leave_as_is(model.name)
            change()

    # ---- Its life ----

    @property
    def is_healthy(self) -> bool:
        """Whether every group's switcher can make progress."""
        return not any(switcher.has_died for switcher in self.groups.values())

    async def run(self) -> None:
        """Run every group's switcher until `stop`."""
        self._record.load(self.models)
        try:
            for mark in self._record.left_marks():
                await self._hooks.end_marked(
                    mark
                )  # it would wake a model that nobody puts to sleep
            async with trio.open_nursery() as beside:
                beside.start_soon(self._watch_switchers)
                beside.start_soon(leave_out_pauses)
                async with trio.open_nursery() as self._running:
                    for switcher in self.groups.values():
                        self._start(switcher)
                beside.cancel_scope.cancel()
        finally:
            self._running = None
            self._ended.set()

    def _start(self, switcher: Switcher) -> None:
        if self._running is not None and not self._is_stopped:
            self._running.start_soon(self._run, switcher)

    @staticmethod
    async def _run(switcher: Switcher) -> None:
        async with trio.open_nursery() as beside:
            beside.start_soon(switcher.health.watch)
            await switcher.run()
            beside.cancel_scope.cancel()

    async def _watch_switchers(self) -> None:
        """Notice one whose hook cannot even be ended."""
        async for _ in periodic(WATCH_S):
            stuck = [group for group, each in self.groups.items() if each.die_if_stuck()]
            if stuck:
                self.on_death()

    def end(self) -> None:
        """End `run` at once, after `stop`: a hook that runs is ended like one over its time."""
        if self._running is not None:
            self._running.cancel_scope.cancel()

    @property
    def has_ended(self) -> bool:
        """Whether `run` has."""
        return self._ended.is_set()

    async def wait_ended(self) -> None:
        """Wait until `run` has ended: no hook runs then, and none will."""
        await self._ended.wait()

    async def put_to_sleep(self) -> None:
        """Run the sleep hooks of all models that hold a GPU; only once `run` has ended."""
        async with trio.open_nursery() as nursery:
            for switcher in self.groups.values():
                nursery.start_soon(switcher.put_to_sleep)

    def stop(self) -> None:
        """Let nobody in any more, in any group; `run` ends with the switches that are running."""
        self._is_stopped = True
        for switcher in self.groups.values():
            switcher.stop()


def traits_of(model: ModelConfig) -> Traits:
    """What the config says of a model that its switcher must know."""
    limit, idle_s = model.max_in_flight, model.idle_sleep_secs
    return Traits(
        math.inf if limit is None else limit,
        model.preserves_in_flight,
        math.inf if idle_s is None else idle_s,
        model.abandon_wakes,
    )


def idle_rules_of(config: Config, group: str) -> IdleRules:
    """What the config says of an idle group."""
    rules = config.groups.get(group)
    if rules is None:
        return NO_IDLE_RULES
    return IdleRules(rules.standby, rules.standby_after_secs, rules.preload)
