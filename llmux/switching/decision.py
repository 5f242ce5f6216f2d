"""Decides on the next command of a group, and places it.

It is the first queued command that can begin, or else one from the policy, or else one from the
idle rules. All of this is synchronous: `Switcher` starts to wait for a change without a checkpoint
after the decision, so that it misses none.
"""

from __future__ import annotations

import math
from collections.abc import Collection
from dataclasses import replace

import trio

from llmux.errors import NoRoom
from llmux.observe.logs import get_logger
from llmux.policy import Decision, LineFirst, LookAgain, Policy, SwitchTo
from llmux.policy.base import LEAST_STEP_S
from llmux.policy.placing import Placing
from llmux.policy.room import Amounts
from llmux.switching.commands import Command, Reconfigure, Sleep, Stop, Wake
from llmux.switching.group import Group
from llmux.switching.idle import Idleness
from llmux.switching.ledger import Hold
from llmux.switching.model import Model
from llmux.switching.placing import Placer
from llmux.switching.running import Running
from llmux.switching.views import view_of

REFUSED_S = 1.0
"""Time until a policy is asked again whose decision had no room."""

RELIEF_S = 10.0
"""Shortest time between two attempts to put one model to sleep for room, or for a change."""

log = get_logger(__name__)


class Decider:
    """Decides on the next command of one group.

    Attributes:
        policy: The policy that it asks.
    """

    def __init__(self, group: Group, policy: Policy, placer: Placer) -> None:
        self._group = group
        self._placer = placer
        self._began_at = 0.0
        self._why_it_stays = ""
        self._relieved_at: dict[str, float] = {}
        self._idled: dict[str, tuple[int, float]] = {}  # the last try: the model's stay, and when
        self.use(policy)

    def use(self, policy: Policy) -> None:
        """Use another policy, with the group's current settings."""
        self._has_looked_back = self._has_overcommitted = False
        self.policy = LineFirst(Placing(policy), self._group.settings, self._group.measures)

    def begin(self) -> None:
        """Start counting idle time, and queue the wake of the model that the config preloads."""
        self._began_at = trio.current_time()
        group = self._group
        model = group.models.get(group.idle_rules.preload or "")
        if model is None:
            return
        if group.shares_memory:
            is_free = not model.holds_gpu and max(group.room.ledger.missing(model.name)) <= 0
        else:
            is_free = not any(each.holds_gpu for each in group.models.values())
        # An operator's command may be queued already; it takes precedence.
        if is_free and not group.commands:
            group.queue(Wake(model, "at the start", stands=True, rule="preload"))

    def decide(self) -> tuple[Running | None, float]:
        """Return the next command, or None and when to decide again (Trio's clock, seconds)."""
        group = self._group
        running, lacks_room = self._place_queued()
        if running is not None:
            return running, math.inf
        relieve_at = math.inf
        # Where one model is awake at a time, one that is stranded sleeps before another wakes.
        if group.shares_memory or len(group.awake) > 1:
            running, relieve_at = self._relieve()
            if running is not None:
                return running, math.inf
        # While an operator's command waits for the room that others will leave, none begin.
        if group.mode == "manual" or lacks_room:
            return None, relieve_at
        command, look_again_at = self._choose()
        at, no_room = min(look_again_at, relieve_at), set[str]()
        while command is not None:
            if (running := self._placer.place(command)) is not None:
                if command.rule == "idle":
                    self._idled[command.target.name] = command.target.stay, trio.current_time()
                return running, math.inf
            at = min(at, self._note_refused(command))
            no_room.add(command.target.name)
            # Another model that is out of use may sleep, and make room.
            is_idle = command.rule == "idle" and group.shares_memory
            command, _ = self._idle_command(no_room) if is_idle else (None, at)
        return None, at

    def _note_refused(self, command: Command) -> float:
        """Log a decision for which there is no room; returns when to decide again."""
        if not self._has_overcommitted and command.rule not in {"idle", "standby"}:
            self._has_overcommitted = True
            evict = ", ".join((isinstance(command, Wake) and command.evict) or ())
            target = command.target.name
            log.warning("policy_overcommits", group=self._group.name, to=target, evict=evict)
        return trio.current_time() + REFUSED_S

    def _place_queued(self) -> tuple[Running | None, bool]:
        """Place the first queued command that can begin, in order for each model.

        Returns:
            It, if any; and whether one waits for room, and not only for its own model.
        """
        group = self._group
        while True:
            held_up: dict[str, Command] = {}
            for command in list(group.commands):
                if command.target.name in held_up:
                    continue
                if (running := self._placer.place(command)) is not None:
                    group.commands.remove(command)
                    return running, False
                held_up[command.target.name] = command
            if group.running or not held_up:
                lacks_room = not all(self._is_moving(each.target) for each in held_up.values())
                return None, lacks_room
            for name, command in held_up.items():  # nothing can end that would make room
                group.commands.remove(command)
                log.warning("no_room", model=name, command=type(command).__name__.lower())
                command.outcome.end(NoRoom(name))

    def _relieve(self) -> tuple[Running | None, float]:
        """Put a model to sleep for a config change that waits, or where memory is lacking.

        Returns:
            The command, if there is one; and when to try again.
        """
        now, at = trio.current_time(), math.inf
        for command in (*self._changes(), *self._reliefs()):
            model = command.target
            due_at = self._relieved_at.get(model.name, -math.inf) + RELIEF_S
            if due_at > now:  # its hook has just failed
                at = min(at, due_at)
            elif (running := self._placer.place(command)) is not None:
                self._relieved_at[model.name] = now
                if isinstance(command, Reconfigure) and self._group.is_kept(model):
                    self._group.commands.append(Wake(model, command.reason, stands=True))
                return running, math.inf
        return None, at

    def _changes(self) -> list[Command]:
        """Return the sleeps for config changes that had no room when they were queued."""
        group = self._group
        queued = {command.target.name for command in group.commands}
        waiting = [model for name, model in group.models.items() if name in group.changes]
        return [
            Reconfigure(model, "its config has changed")
            for model in waiting
            if model.is_awake and model.name not in queued and not self._is_moving(model)
        ]

    def _reliefs(self) -> list[Command]:
        """Return what would help where more is held than there is, as after a reload."""
        group = self._group
        ledger = group.room.ledger
        if not ledger.is_overcommitted:
            return []
        lacks = ledger.projected()

        def helps(freed: Amounts) -> bool:
            return any(free < 0 < back for free, back in zip(lacks, freed, strict=True))

        def costs(model: Model) -> tuple[bool, bool, float]:
            has_to_stay = model.is_kept or model.name in group.pins.models
            return has_to_stay, model.in_flight.in_use > 0, model.used_at

        awake = sorted((m for m in group.awake if helps(ledger.freed(m.name))), key=costs)
        if any(map(self._is_moving, awake)):
            return []  # it is let in just now, and may leave then
        commands: list[Command] = [
            Sleep(
                model,
                "the models that are awake need more than there is",
                stands=True,
                rule="overcommitted",
            )
            for model in awake
        ]
        asleep = (m for m in group.models.values() if m.may_stop and not self._is_moving(m))
        commands += [
            Stop(
                model,
                "the models that sleep need more than there is",
                stands=True,
                rule="overcommitted",
            )
            for model in sorted(asleep, key=lambda m: m.used_at)
            if ledger.hold(model.name) is Hold.ASLEEP and helps(ledger.held(model.name))
        ]
        return commands

    def _is_moving(self, model: Model) -> bool:
        return self._group.switch_lock.holds(model.name)

    def _choose(self) -> tuple[Command | None, float]:
        """Ask the policy, and then the idle rules if it wants no switch."""
        group = self._group
        decision = self.policy.decide(view_of(group))
        if isinstance(decision, SwitchTo):
            self._why_it_stays = ""
            target = group.models[decision.model]
            if group.shares_memory and (target.is_awake or self._is_moving(target)):
                return None, self._evict_instead(decision)
            # A policy of the user's own may choose what the view says that it may not.
            if target.is_failing and not group.may_try(target):
                return None, group.trial_at(target)
            return self._wake(target, decision), math.inf
        # A policy of the user's own may return None to stay.
        self._why_it_stays = getattr(decision, "why", "")
        look_again_at = self._next_look(decision)
        has_pin = group.pins.current is not None and not group.shares_memory
        if has_pin or not group.has_idle_rules:
            return None, look_again_at
        command, at = self._idle_command()
        return command, min(at, look_again_at)

    def _evict_instead(self, decision: SwitchTo) -> float:
        """Let a running switch evict other models, if its own ones still drain.

        Returns:
            When to decide again.
        """
        group = self._group
        for running in group.running:
            plan = running.plan
            if plan in group.room.ledger.plans and plan.target == decision.model:
                if {*decision.evict} == {*plan.evict}:
                    continue
                if self._placer.replan(running, decision.evict):
                    return trio.current_time()
                if not running.is_fixed:
                    running.is_fixed = True  # so that the policy decides on something else
                    return trio.current_time()
        return math.inf

    def _next_look(self, decision: Decision | None) -> float:
        if not isinstance(decision, LookAgain):
            return math.inf
        now = trio.current_time()
        if not decision.is_ahead(now) and not self._has_looked_back:
            self._has_looked_back = True
            hint = f"LookAgain needs a time after view.now; asked again every {LEAST_STEP_S} s"
            log.warning("policy_looks_back", group=self._group.name, hint=hint)
        return decision.next_at(now)

    @property
    def why_it_stays(self) -> str:
        """Why the model that is awake stays although requests wait for others; empty: none do."""
        group, active = self._group, self._group.active
        if active is None or not any(each.wanted_by for each in group.others(active)):
            return ""
        if group.shares_memory:
            pins = [
                p
                for m in group.models.values()
                if m.wanted_by and (p := group.pins.holds_up(m.name))
            ]
            return f"{pins[0].model} is pinned" if pins else self._why_it_stays
        pin = group.pins.current
        return f"{active.name} is pinned" if pin else self._why_it_stays

    def _wake(self, target: Model, decision: SwitchTo) -> Wake:
        return Wake(
            target,
            decision.reason,
            rule=decision.rule,
            stands=not target.wanted_by,
            evict=decision.evict if self._group.shares_memory else None,
            is_trial=target.is_failing,
        )

    def _idle_command(self, no_room: Collection[str] = ()) -> tuple[Command | None, float]:
        """Ask the idle rules.

        Args:
            no_room: Models to leave alone, since there is no room for what they need then.
        """
        group, now = self._group, trio.current_time()
        standby = group.models.get(group.idle_rules.standby or "")
        is_failing = standby is not None and standby.is_failing
        rules = Idleness(
            rules=group.idle_rules,
            began_at=self._began_at,
            now=now,
            min_active_s=group.settings.min_active_secs,
            standby_from=group.trial_at(standby) if standby and is_failing else -math.inf,
        )
        if group.shares_memory:
            moving = [m.name for m in group.models.values() if self._is_moving(m)]
            # One that stays since a stop hook has failed, which ran to make room for its sleep.
            failed = {
                name: began_at + RELIEF_S
                for name, (stay, began_at) in self._idled.items()
                if began_at + RELIEF_S > now
                and (model := group.models.get(name)) is not None
                and model.is_awake
                and model.stay == stay
            }
            spared = {*moving, *group.pins.models, *failed, *no_room}
            command, at = rules.of_several(group.models, spared)
            at = min([at, *failed.values()])
        else:
            command, at = rules.of_one(group.models, group.active)
        if is_failing and isinstance(command, Wake):
            command = replace(command, is_trial=True)
        return command, at
