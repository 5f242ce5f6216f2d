"""The outlook: expected waits of requests that arrive now, for routers in front of several hosts.

While the event feed has readers, the outlook is told about once a second, and at once when a model
changes its phase or the host its state; forecasts are renewed before that, as their allowance
permits. While nobody reads, nothing is done.
"""

from __future__ import annotations

from itertools import accumulate

import trio

from llmux.api.forecasts import Forecasts
from llmux.observe.events import Events
from llmux.observe.feed import Feed
from llmux.observe.outlook_series import OutlookGauges
from llmux.observe.schemas import HostState, ModelOutlook, Outlook
from llmux.switching.model import Model
from llmux.switching.switchboard import Switchboard
from llmux.switching.switcher import Switcher

EVERY_S = 1.0
"""Interval between two outlooks while nothing changes."""

LEAST_S = 0.05
"""Least interval: changes that follow each other more closely are told together."""


class Outlooks:
    """Finds out what to expect, and tells those who read the feed.

    Args:
        board: The switchers.
        feed: Told of it.
        forecasts: The expected waits.
    """

    def __init__(self, board: Switchboard, feed: Feed, forecasts: Forecasts) -> None:
        self._board = board
        self._feed = feed
        self._forecasts = forecasts
        self._changed = trio.Event()
        self._told: HostState | None = None
        feed.look_up(self._news)

    def watch(self, events: Events) -> None:
        """Tell of these changes at once."""
        events.phase_changed.listen(lambda _: self.hurry())
        events.failing_changed.listen(lambda _: self.hurry())
        events.mode_changed.listen(lambda _: self.hurry())
        events.cordon_changed.listen(lambda _: self.hurry())
        events.pin_changed.listen(lambda _: self.hurry())
        events.reloaded.listen(lambda _: self.hurry())

    def hurry(self) -> None:
        """Tell of the outlook at once, not only when the time has come."""
        self._changed.set()

    async def run(self) -> None:
        """Tell of the outlook while somebody reads, for ever."""
        while True:
            await self._feed.wait_heard()
            self._changed = trio.Event()  # before looking: later changes are told next time
            await self._forecasts.refresh()
            self._feed.tell_now("outlook", self.now())
            await trio.sleep(LEAST_S)
            with trio.move_on_after(EVERY_S - LEAST_S):
                await self._changed.wait()

    async def fresh(self) -> Outlook:
        """Return the outlook, after the forecasts that are outdated."""
        await self._forecasts.refresh()
        return self.now()

    def gauges(self) -> OutlookGauges:
        """Return the outlook for a scrape, with the forecasts that there are.

        Those that are outdated are renewed soon after, for the next scrape.
        """
        switchers = list(self._board.groups.values())
        found = [(each, model) for each in switchers for model in each.models.values()]
        for _, model in found:
            if not model.admits:
                self._forecasts.ask(model.name)
        return OutlookGauges(
            waits_s={m.name: self._forecasts.eta_s(each, m) for each, m in found},
            waiting=sum(model.queued for _, model in found),
            running=sum(model.in_flight.count for _, model in found),
            awake=[model.name for _, model in found if model.is_awake],
            wanted=[model.name for _, model in found if model.queued and not model.is_awake],
            most_awake=sum(map(most_awake, switchers)),
        )

    def now(self) -> Outlook:
        """Return the outlook with the forecasts that there are."""
        board = self._board
        self._told = board.host_state
        return Outlook(
            at=self._feed.clock.now(),
            boot=self._feed.boot,
            state=self._told,
            models={
                model.name: self._model(switcher, model)
                for switcher in board.groups.values()
                for model in switcher.models.values()
            },
        )

    def _model(self, switcher: Switcher, model: Model) -> ModelOutlook:
        measures, in_flight = switcher.measures, model.in_flight.count
        refusal = switcher.refusal(model)
        config = self._board.config_of(model.name)
        latency_s = measures.latency_s(model.name, max(1, model.in_flight.in_use))
        return ModelOutlook(
            wait_secs=_rounded(self._forecasts.eta_s(switcher, model)),
            refused=None if refusal is None else refusal.code,
            awake=model.is_awake,
            running=in_flight,
            waiting=model.queued,
            max_in_flight=config.max_in_flight,
            arrivals_per_sec=round(measures.arrivals_per_s(model.name, trio.current_time()), 4),
            latency_secs=_rounded(latency_s),
            cost_secs=0.0 if model.is_awake else _rounded(switcher.cost_s(model)),
            aliases=list(config.alias_names),
        )

    def _news(self) -> tuple[str, Outlook] | None:
        """Return the outlook if the host's state has changed: it may stop, or die."""
        if self._told in {None, self._board.host_state}:
            return None
        return "outlook", self.now()


def most_awake(switcher: Switcher) -> int:
    """Return an upper bound of the number of a group's models that may be awake together."""
    if switcher.room.shared is None:
        return 1
    memory = switcher.room.ledger.memory
    counts = []
    for place, amount in enumerate(memory.amounts):
        sizes = sorted(needs.awake[place] for needs in memory.needs.values())
        counts.append(sum(total <= amount for total in accumulate(sizes)))
    return max(1, min(counts))


def _rounded(seconds: float | None) -> float | None:
    return None if seconds is None else round(seconds, 3)
