"""The expected waits of a status: computed when somebody asks, and kept for a while.

A forecast takes milliseconds, and seconds of simulated traffic may take tens of them. So it is made
in slices between which other tasks run, and lasts in proportion to what it took.
"""

from __future__ import annotations

from typing import NamedTuple

import trio

from llmux.observe.logs import get_logger
from llmux.policy import LineFirst
from llmux.simulate.forecast import Rollout, Scene, scene_of
from llmux.switching.switchboard import Switchboard
from llmux.switching.switcher import Switcher

FRESH_S = 1.0
"""How long a forecast is used at least."""

MOST_SHARE = 0.05
"""Share of the time that forecasts may take, as long as somebody asks for them."""

PATIENCE_S = 0.25
"""Longest wait of an answer for new forecasts; models without one show what is known without."""

log = get_logger(__name__)


class Forecast(NamedTuple):
    """An expected wait.

    Attributes:
        wait_s: In seconds; None: unknown.
        until: When it is outdated (Trio's clock).
    """

    wait_s: float | None
    until: float


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

    def of(self, model: str) -> float | None:
        """Return the forecast for a model that does not admit requests now; None: not known."""
        made = self._made.get(model)
        return None if made is None or made.until < trio.current_time() else made.wait_s

    async def refresh(self) -> None:
        """Make the forecasts that are missing or outdated, as many as there is time for."""
        with trio.move_on_after(PATIENCE_S):
            async with self._lock:
                for switcher in list(self._board.groups.values()):  # a reload changes them
                    await self._refresh_group(switcher)

    async def _refresh_group(self, switcher: Switcher) -> None:
        if switcher.mode != "auto" or switcher.pinned is not None:
            self._forget(switcher)  # the policy decides nothing
            return
        # Models that requests wait for come first: others may not get their turn.
        waited_for = sorted(switcher.models.values(), key=lambda model: not model.wanted_by)
        for model in [each.name for each in waited_for if not (each.admits or each.is_failing)]:
            is_unable = self._unable.get(switcher.group) is switcher.policy
            if is_unable or model not in switcher.models:
                continue
            made = self._made.get(model)
            if made is None or made.until < trio.current_time():
                await self._make(switcher, model)

    async def _make(self, switcher: Switcher, model: str) -> None:
        policy, slice_at, took_s, wait_s = switcher.policy, trio.current_time(), 0.0, None
        keeps_s = 0.0
        try:
            rollout = Rollout(_scene(switcher), model)
            for _ in rollout.slices():
                took_s += trio.current_time() - slice_at
                await trio.lowlevel.checkpoint()
                slice_at = trio.current_time()
            took_s += trio.current_time() - slice_at
            wait_s, keeps_s = rollout.wait_s, FRESH_S
        except Exception:  # whatever a user's policy raises when it is copied or asked
            self._unable[switcher.group] = policy
            log.warning("policy_not_copied", group=switcher.group, exc_info=True)
        finally:  # one that takes too long must not start over for each answer
            until = trio.current_time() + max(keeps_s, took_s / MOST_SHARE)
            self._made[model] = Forecast(wait_s, until)

    def _forget(self, switcher: Switcher) -> None:
        for model in switcher.models:
            self._made.pop(model, None)


def _scene(switcher: Switcher) -> Scene:
    running = switcher.running
    return scene_of(
        switcher.models.values(),
        switcher.policy,
        switcher.measures,
        now=trio.current_time(),
        target=running.target if running else None,
    )
