"""Learn from answers, complete or still being sent, which models made which stored objects."""

from __future__ import annotations

from http import HTTPStatus

from llmux.proxy.journey import Journey
from llmux.proxy.stored import Stored, ids_of


class Makers:
    """Remembers the ids of the objects that models have made.

    Args:
        most: Limit for remembered ids.
    """

    def __init__(self, most: int) -> None:
        self._stored = Stored(most)
        # Requests whose answers may hold ids. A client may use an id while the answer is still
        # being sent, so openings are searched on demand; the number says how much was searched.
        self._watched: dict[Journey, int] = {}

    def limit(self, most: int) -> None:
        self._stored.most = most

    def watch(self, journey: Journey) -> None:
        """Expect ids in the answer to this request."""
        self._watched[journey] = 0

    def end(self, journey: Journey) -> None:
        """Search the answer to a request that has ended, if it was watched."""
        if self._watched and self._watched.pop(journey, None) is not None:
            self._learn(journey, is_over=True)

    def find(self, id: str) -> str | None:  # noqa: A002
        """Return the model that made an object; empty for the fallback, None if unknown."""
        maker = self._stored.maker(id)
        if maker is None:
            for journey, searched in self._watched.items():
                answer = journey.answer
                if answer is not None and len(answer.seen.opening) > searched:
                    self._watched[journey] = len(answer.seen.opening)
                    self._learn(journey)
            maker = self._stored.maker(id)
        return maker

    def _learn(self, journey: Journey, *, is_over: bool = False) -> None:
        answer = journey.answer
        if answer is None or not HTTPStatus.OK <= answer.status < HTTPStatus.MULTIPLE_CHOICES:
            return
        is_chunked, opening = answer.framing == "chunked", answer.seen.opening
        ending = answer.seen.ending() if is_over else b""
        for each in ids_of(answer.headers, opening, ending, is_chunked=is_chunked):
            self._stored.note(each, journey.model)
