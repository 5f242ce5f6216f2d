"""All requests under way: listed, cancelled by their ids, and told to the event feed."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import islice

import trio

from llmux.errors import RequestCancelled, RequestNotFound
from llmux.observe.events import Events
from llmux.observe.feed import Feed
from llmux.observe.schemas import RequestChanges, RequestInfo, RequestList, RequestPhase
from llmux.observe.summary import RequestSummary
from llmux.openai.tokens import Rates
from llmux.proxy.journey import Journey
from llmux.proxy.lane import Lane

MOST_TOLD = 50
"""Requests in one batch of the feed: two hundred a second are more than anybody can look at."""

MOST_PATH_BYTES = 256
MOST_METHOD_BYTES = 32
"""Longer ones are cut: clients may send 64 KiB, which would push other events off the feed."""


class Journeys:
    """All requests that are on their way, oldest first."""

    def __init__(self, feed: Feed, events: Events) -> None:
        self._feed = feed
        self._under_way: dict[str, Journey] = {}
        self.rates = Rates(feed.clock.now, trio.current_time)
        self._begun = 0
        self._ended: list[RequestInfo] = []  # since the last batch of the feed
        self._omitted = 0
        feed.look_up(self._look)
        feed.look_up(self.rates.news)
        events.request_ended.listen(self._note_end)

    def __iter__(self) -> Iterator[Journey]:
        """Those that are on their way now; nobody may be added meanwhile."""
        return iter(self._under_way.values())

    def begin(self, lane: Lane) -> Journey:
        """A request has come."""
        self._begun += 1
        journey = Journey(f"{self._feed.boot}-{self._begun}", lane)
        self._under_way[journey.id] = journey
        return journey

    def end(self, journey: Journey) -> None:
        """It has ended."""
        del self._under_way[journey.id]

    def _note_end(self, summary: RequestSummary) -> None:
        """Keep for the feed that a request has ended, and how many tokens it got."""
        if summary.tokens_out:
            self.rates.add(summary.model, summary.tokens_out)
        if self._feed.is_heard:
            if len(self._ended) < MOST_TOLD:
                self._ended.append(self._info(summary, "ended"))
            else:
                self._omitted += 1

    def list(self, limit: int) -> RequestList:
        """The oldest of them."""
        return RequestList(
            at=self._feed.clock.now(),
            total=len(self._under_way),
            requests=[
                self._info(each.summary(), each.phase)
                for each in islice(self._under_way.values(), limit)
            ],
        )

    def cancel(self, id: str) -> None:  # noqa: A002
        """Have a request end with an error.

        Raises:
            RequestNotFound: It is not there, or no more.
        """
        if (journey := self._under_way.get(id)) is None:
            raise RequestNotFound(id)
        journey.cancel(RequestCancelled())

    def _look(self) -> tuple[str, RequestChanges] | None:
        """Return the changes since the last call, or None."""
        changed = list(islice(self._changed(), MOST_TOLD + 1))
        ended, omitted = self._ended, self._omitted + (len(changed) > MOST_TOLD)
        self._ended, self._omitted = [], 0
        if not (changed or ended):
            return None
        told = changed[:MOST_TOLD]
        for journey in told:
            journey.told = journey.phase
        return "requests", RequestChanges(
            at=self._feed.clock.now(),
            changed=[self._info(journey.summary(), journey.phase) for journey in told],
            ended=ended,
            omitted=omitted,
        )

    def _changed(self) -> Iterator[Journey]:
        return (each for each in self._under_way.values() if each.told != each.phase)

    def _info(self, summary: RequestSummary, phase: RequestPhase) -> RequestInfo:
        unix, first_byte_s = self._feed.clock.unix, summary.first_byte_s
        has_ended = phase == "ended"
        return RequestInfo(
            id=summary.id,
            model=summary.model,
            phase=phase,
            arrived=unix(summary.arrived_at),
            waited_secs=round(summary.wait_s, 3),
            client=summary.client,
            method=summary.method[:MOST_METHOD_BYTES].decode("latin-1"),
            path=summary.path[:MOST_PATH_BYTES].decode("latin-1"),
            bytes_in=summary.bytes_in,
            bytes_out=summary.bytes_out,
            ended=unix(summary.ended_at) if has_ended else None,
            status=summary.status if has_ended or first_byte_s is not None else None,
            first_byte_secs=_rounded(first_byte_s, 3),
            tokens_in=summary.tokens_in,
            tokens_out=summary.tokens_out,
            tokens_per_sec=_rounded(summary.tokens_per_s if has_ended else None, 1),
        )


def _rounded(number: float | None, digits: int) -> float | None:
    return None if number is None else round(number, digits)
