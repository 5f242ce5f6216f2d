"""The state that the parts of one group's switcher share.

It holds state and answers questions about it; decisions are made elsewhere. All of it is read and
changed in synchronous code of one thread, so it is always consistent and needs no lock.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from typing import Literal

import trio
from trio_util import RepeatedEvent

from llmux.config import PolicyConfig
from llmux.errors import LlmuxError
from llmux.policy.estimates import Measures
from llmux.switching.commands import Command, Wake
from llmux.switching.failing import trial_at
from llmux.switching.idle import NO_IDLE_RULES, IdleRules
from llmux.switching.model import AT_REST, Model, Phase
from llmux.switching.pins import Pins
from llmux.switching.places import Places
from llmux.switching.room import Room
from llmux.switching.running import Running
from llmux.switching.switchlock import SwitchLock

Mode = Literal["auto", "manual"]
State = Literal["idle", "active", "switching"]

AskForecast = Callable[[str], float | None]
"""Returns the wait of a request that arrives now for the model of this name, in seconds; None: not
known. It returns at once, also for each of many refused requests."""

IN_USE = frozenset({Phase.AWAKE, Phase.DRAINING})


class Group:
    """Models that share a GPU, the commands queued for them, and the settings that apply.

    Attributes:
        name: The group's name in the config.
        models: By name, in the config's order.
        settings: The `policy` section of the config.
        queued_per_model: Limit of the requests in one line.
        idle_rules: Apply while no request needs a model.
        measures: Costs, drains, absences, rates and latencies seen so far.
        mode: In `manual`, only operators' commands switch.
        is_cordoned: True while new requests are refused.
        pins: Models that operators keep awake.
        commands: Queued commands; they take precedence over the policy.
        changes: By model, a callback for when it sleeps: a new config, or the end of a removal.
        leaving: Models that are being removed, each with a callback for when it is gone.
        changed: Set whenever a decision, or the condition of a wait, may have changed.
        room: Who may be awake beside whom.
        busy: Number of models that may be at work on one resource; None: any.
        places: Which models may be at work beside each other.
        running: The commands that are being carried out, in the order in which they began.
        on_sleep: Called with the name of each model that is about to be put to sleep.
        ask_forecast: See `AskForecast`.
        closed_with: The error for all requests and commands once closed; None while open.
    """

    def __init__(
        self,
        name: str,
        settings: PolicyConfig,
        *,
        queued_per_model: int,
        idle_rules: IdleRules = NO_IDLE_RULES,
    ) -> None:
        self.name = name
        self.models: dict[str, Model] = {}
        self.settings = settings
        self.queued_per_model = queued_per_model
        self.idle_rules = idle_rules
        self.measures = Measures()
        self.mode: Mode = "auto"
        self.is_cordoned = False
        self.pins = Pins()
        self.commands: deque[Command] = deque()
        self.changes: dict[str, Callable[[], None]] = {}
        self.leaving: dict[str, Callable[[], None]] = {}
        self.changed = RepeatedEvent()
        self.room = Room(self.changed)
        self.busy: int | None = None
        self.places = Places(self.models, self.room.hook_resources, self.measures)
        self.running: list[Running] = []
        self.pins.fit = lambda models: self.room.fit(models, wakes=models[-1])
        self.on_sleep: Callable[[str], object] = lambda _model: None
        self.ask_forecast: AskForecast = lambda _model: None
        self.closed_with: LlmuxError | None = None

    # ---- Models awake ----

    @property
    def active(self) -> Model | None:
        """The model that is awake and admits requests, the first if several are; or None."""
        return next((model for model in self.models.values() if model.is_awake), None)

    @property
    def active_name(self) -> str | None:
        active = self.active
        return None if active is None else active.name

    @property
    def in_use(self) -> list[Model]:
        """The models that are awake or draining."""
        return [model for model in self.models.values() if model.phase in IN_USE]

    @property
    def awake(self) -> list[Model]:
        """The models that are awake and admit requests."""
        return [model for model in self.models.values() if model.is_awake]

    @property
    def awake_names(self) -> str | None:
        """The names of the models that are awake, for messages; None: none is."""
        return ", ".join(model.name for model in self.awake) or None

    @property
    def switch_lock(self) -> SwitchLock:
        """Held by each running command, for its models, until the settle barrier."""
        return self.room.lock

    @property
    def shares_memory(self) -> bool:
        """True if several models may be awake."""
        return self.room.shared is not None

    def is_waking(self, model: Model) -> bool:
        """Return whether a running switch wakes this model, or will."""
        return any(each.is_waking and each.target is model for each in self.running)

    @property
    def state(self) -> State:
        """`switching` from when a model stops admitting until one is awake."""
        if self.active is not None:
            return "active"
        at_rest = all(model.phase in AT_REST for model in self.models.values())
        return "idle" if at_rest else "switching"

    # ---- Demand ----

    @property
    def is_anyone_waiting(self) -> bool:
        """True if a request waits for any model of the group to be awake."""
        return any(model.wanted_by for model in self.models.values())

    @property
    def has_idle_rules(self) -> bool:
        """True if an unused model is put to sleep, or a standby is woken."""
        is_short = any(model.idle_sleep_s != math.inf for model in self.models.values())
        return is_short or self.idle_rules.standby is not None

    def others(self, model: Model) -> Iterator[Model]:
        """Iterate over the group's other models."""
        return (each for each in self.models.values() if each is not model)

    def is_kept(self, model: Model) -> bool:
        """Return whether operators decide that this model is awake, regardless of demand."""
        return self.mode == "manual" or model.name in self.pins.models

    def may_abandon_wake(self, target: Model) -> bool:
        """Return whether a wake of this model may be given up for lack of demand."""
        abandons = target.abandons_wakes
        if abandons is None:
            abandons = self.settings.abandon_wakes
        # Once closed, no request waits any more, but a running hook may use the rest of the grace.
        return abandons and self.closed_with is None and target.name not in self.pins.models

    def has_queued_wake(self, target: Model) -> bool:
        """Return whether a command to wake this model is queued."""
        return any(isinstance(each, Wake) and each.target is target for each in self.commands)

    def trial_at(self, target: Model) -> float:
        """Return the earliest time at which a failing model may be tried; infinity: unknown."""
        pinned = self.pins.models
        if target.name in pinned:
            return target.retry_at
        if self.pins.holds_up(target.name) is not None:
            return math.inf
        return trial_at(target, self._in_the_way_of(target))

    def _in_the_way_of(self, target: Model) -> Iterable[Model]:
        """Return the models of which some may have to leave for another one."""
        room = self.room
        if self.shares_memory and max(room.ledger.missing(target.name)) <= 0:
            return ()
        touched = room.hook_resources(target.name)
        return [m for m in self.models.values() if room.hook_resources(m.name) & touched]

    def may_try(self, target: Model) -> bool:
        """Return whether a failing model may be tried now."""
        return self.trial_at(target) <= trio.current_time()

    def has_pending_change(self, target: Model) -> bool:
        """Return whether a config change waits for this model to sleep."""
        return target.name in self.changes

    # ---- Queueing and closing ----

    def queue(self, *commands: Command) -> None:
        """Queue commands for the switching task, in this order."""
        self.commands.extend(commands)
        self.changed.set()

    def queue_first(self, *commands: Command) -> None:
        """Queue commands in this order, ahead of those already queued."""
        self.commands.extendleft(reversed(commands))
        self.changed.set()

    def check_open(self) -> None:
        """Raise `closed_with` if the group is closed, so that no further hook is started."""
        if self.closed_with is not None:
            # The same error is raised for many callers; each raise would lengthen its traceback.
            raise self.closed_with.with_traceback(None)

    def close(self, error: LlmuxError) -> None:
        """Refuse all requests and commands, now and from now on; the first error counts."""
        self.closed_with = self.closed_with or error
        while self.commands:
            self.commands.popleft().outcome.end(error)
        for model in self.models.values():
            model.waiters.refuse(error)
        self.changed.set()
