"""Expected waits, for the status and for `Retry-After`: made when asked for, and kept for a while.

A forecast takes milliseconds, and seconds of simulated traffic may take tens of them. So it is made
in slices between which other tasks run, and all forecasts together share an allowance of time.
A refusal does not wait for a forecast: it uses one that is there, and asks for the next.
"""

from __future__ import annotations

import copy
import math
import time
from collections.abc import Iterable
from typing import NamedTuple

import trio

from llmux.observe.logs import get_logger
from llmux.policy import LineFirst
from llmux.simulate.forecast import Scene, scene_of
from llmux.simulate.shared_forecast import Rules, SharedScene, rollout_of, shared_scene_of
from llmux.switching.model import Model
from llmux.switching.switchboard import Switchboard
from llmux.switching.switcher import Switcher

FRESH_S = 0.9
"""How long a forecast is used at least; a little less than the second between two outlooks."""

STALE_S = 60.0
"""How long one is told at most: if there was no time for another, or only scrapes ask."""

MOST_SHARE = 0.05
"""Share of the time that all forecasts together may take, as long as somebody asks for them."""

PATIENCE_S = 0.25
"""Longest wait of an answer for new forecasts; models without one show what is known without."""

LONGEST_S = 86_400.0
"""Longest wait that is foretold: a policy of the user's own may look again in a thousand years."""

OUTRUN_S = 5.0
"""The same, once a switch has begun or ended since."""

cpu_s = time.thread_time
"""Measures what forecasts take. Where others want the core, too, the clock would run faster."""

log = get_logger(__name__)


class GroupState(NamedTuple):
    """The models that are awake, and those that are being woken."""

    awake: tuple[str, ...]
    targets: tuple[str, ...]


class Forecast(NamedTuple):
    """An expected wait.

    Attributes:
        wait_s: In seconds; None: unknown.
        at: When it was made (Trio's clock).
        took_s: Time that it took, in seconds.
        until: When it is outdated (Trio's clock).
        state: What it was made for; it is outdated, too, once this has changed.
    """

    wait_s: float | None
    at: float
    took_s: float
    until: float
    state: GroupState

    def left_s(self, now: GroupState) -> float | None:
        """Return the expected wait of a request that arrives now, if all goes as foretold.

        Once a switch is running, later requests wait less.

        Args:
            now: The present state.
        """
        if self.wait_s is None or (now == self.state and not now.targets):
            return self.wait_s
        return max(0.0, self.wait_s - (trio.current_time() - self.at))


class Allowance:
    """The time that forecasts may take: `MOST_SHARE` of all time, and `PATIENCE_S` at once.

    The last one may exceed it; then the next has to wait until that is made up for.
    """

    def __init__(self) -> None:
        self._left_s = PATIENCE_S
        self._at = -math.inf

    @property
    def is_left(self) -> bool:
        """True if another forecast may be made."""
        now = trio.current_time()
        self._left_s = min(PATIENCE_S, self._left_s + (now - self._at) * MOST_SHARE)
        self._at = now
        return self._left_s > 0

    def use(self, seconds: float) -> None:
        self._left_s -= seconds


class Forecasts:
    """Expected waits of all models.

    Args:
        board: The switchers of all groups.
    """

    def __init__(self, board: Switchboard) -> None:
        self._board = board
        self._lock = trio.Lock()
        self._made: dict[str, Forecast] = {}
        self._unable: dict[str, LineFirst] = {}  # by group, a policy that cannot be asked
        self._allowance = Allowance()
        self._asked_for: set[str] = set()
        self._is_asked = trio.Event()  # is set if and only if a model is asked for

    def eta_s(self, switcher: Switcher, model: Model) -> float | None:
        """Return the expected wait of a request that arrives now; None: unknown.

        It is a forecast where requests wait for the policy, if need be one that is a few seconds
        old. Where there is none, the switch is taken to begin at once.
        """
        if model.admits:
            return 0.0
        rough_s = None if model.is_failing else switcher.eta_s(model)
        if rough_s is None or not self._is_foretold(switcher, model):
            return rough_s
        left_s = self._last_s(switcher, model.name)
        return rough_s if left_s is None else left_s

    def ask(self, model: str) -> float | None:
        """Like `eta_s`, but None if there is no forecast; if it is outdated, `run` makes another.

        Cheap enough for each refusal.
        """
        if self._current(model) is None:
            self._asked_for.add(model)
            self._is_asked.set()
        switcher = self._switcher_of(model)
        if switcher is None or not self._is_foretold(switcher, switcher.models[model]):
            return None
        return self._last_s(switcher, model)

    def _last_s(self, switcher: Switcher, model: str) -> float | None:
        """Return what is left of the last forecast; None: it is too old.

        Where there was no time for another, one from before the last switch says more than that
        the policy would do as the request wants at once; but if it now does, that is known.
        """
        made, state = self._made.get(model), _state(switcher)
        if made is None or (made.state != state and model in state.targets):
            return None
        keeps_s = STALE_S if made.state == state else OUTRUN_S
        return made.left_s(state) if trio.current_time() - made.at <= keeps_s else None

    def _current(self, model: str) -> Forecast | None:
        made, switcher = self._made.get(model), self._switcher_of(model)
        if made is None or switcher is None or made.state != _state(switcher):
            return None
        return None if made.until < trio.current_time() else made

    def _switcher_of(self, model: str) -> Switcher | None:
        groups = self._board.groups.values()  # a reload changes them
        return next((each for each in groups if model in each.models), None)

    async def run(self) -> None:
        """Make the forecasts that `ask` has not found, for ever."""
        while True:
            await self._is_asked.wait()
            asked_for, self._asked_for, self._is_asked = self._asked_for, set(), trio.Event()
            async with self._lock:
                await self._refresh(asked_for)

    async def refresh(self) -> None:
        """Make the forecasts that are missing or outdated, as many as there is time for."""
        with trio.move_on_after(PATIENCE_S):
            async with self._lock:
                names = [name for group in self._board.groups.values() for name in group.models]
                for removed in self._made.keys() - names:
                    del self._made[removed]
                await self._refresh(names)

    async def _refresh(self, names: Iterable[str]) -> None:
        for name in sorted(names, key=self._urgency):
            switcher = self._switcher_of(name)
            if switcher is None or not self._is_foretold(switcher, switcher.models[name]):
                self._made.pop(name, None)
            elif self._current(name) is None and self._allowance.is_left:
                await self._make(switcher, name)

    def _urgency(self, name: str) -> tuple[bool, float]:
        """Order models: those that requests wait for first, then those without a forecast."""
        switcher, made = self._switcher_of(name), self._made.get(name)
        is_wanted = switcher is not None and bool(switcher.models[name].wanted_by)
        return not is_wanted, -math.inf if made is None else made.until

    def _is_foretold(self, switcher: Switcher, model: Model) -> bool:
        """Return whether requests for a model wait for the policy, and the policy can be asked."""
        if switcher.mode != "auto" or switcher.pinned is not None:
            return False
        is_unable = self._unable.get(switcher.group) is switcher.policy
        return not (model.admits or model.is_failing or is_unable)

    async def _make(self, switcher: Switcher, model: str) -> None:
        policy, began_at, took_s, wait_s = switcher.policy, trio.current_time(), 0.0, None
        slice_at, keeps_s, state = cpu_s(), 0.0, _state(switcher)
        try:
            rollout = rollout_of(_scene(switcher), model)
            for _ in rollout.slices():
                took_s += cpu_s() - slice_at
                await trio.lowlevel.checkpoint()
                slice_at = cpu_s()
            took_s += cpu_s() - slice_at
            wait_s, keeps_s = rollout.wait_s, FRESH_S
            if wait_s is not None and wait_s > LONGEST_S:
                wait_s = None
        except Exception:  # whatever a user's policy raises when it is copied or asked
            self._unable[switcher.group] = policy
            log.warning("policy_not_copied", group=switcher.group, exc_info=True)
        finally:  # one that takes too long must not start over for each answer
            self._allowance.use(took_s)
            self._made.pop(model, None)
            all_took_s = took_s + sum(each.took_s for each in self._made.values())
            until = trio.current_time() + max(keeps_s, all_took_s / MOST_SHARE)
            self._made[model] = Forecast(wait_s, began_at, took_s, until, state)


def _state(switcher: Switcher) -> GroupState:
    awake = tuple(model.name for model in switcher.awake)
    return GroupState(awake, tuple(switch.target for switch in switcher.switches))


def _scene(switcher: Switcher) -> Scene | SharedScene:
    now, running = trio.current_time(), switcher.running
    models, policy, measures = switcher.models.values(), switcher.policy, switcher.measures
    room = switcher.room
    if room.shared is None:
        target = running.target if running else None
        return scene_of(models, policy, measures, now=now, target=target)
    ledger = copy.deepcopy(room.ledger)
    ledger.renew(room.memory)  # where models that can be stopped need nothing asleep
    for plan in ledger.plans:
        plan.stop = ()
    rules = Rules(
        touches={name: room.hook_resources(name) for name in switcher.models},
        overlapping_hooks=room.shared.overlapping_hooks,
        keep=[model.name for model in models if model.is_kept],
        busy=switcher.busy,
    )
    return shared_scene_of(models, ledger, policy, measures, now=now, rules=rules)
