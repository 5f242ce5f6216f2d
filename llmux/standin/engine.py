"""State of the model that a stand-in pretends to have: awake or asleep, and counters.

It counts what llmux must never do: send a request to a sleeping model, and put a model to sleep
during a request.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import trio

from llmux.standin.http1 import HttpError
from llmux.standin.options import Options


class Engine:
    """A model that sleeps and wakes as vLLM's do.

    Attributes:
        asleep: True if it would refuse a request.
        in_flight: Requests that it is answering.
        served: Requests that it has answered to the end.
        mistakes: Requests that arrived while it slept, and sleeps during a request, which vLLM's
            engine may not survive.
    """

    def __init__(self, options: Options) -> None:
        self.asleep = options.asleep
        self.in_flight = 0
        self.served = 0
        self.mistakes = 0
        self._options = options

    @contextmanager
    def serving(self) -> Iterator[None]:
        """Count a request for the model.

        Raises:
            HttpError: The model is asleep.
        """
        if self.asleep:
            self.mistakes += 1
            raise HttpError(503, f"{self._options.model} is asleep")
        self.in_flight += 1
        try:
            yield
            self.served += 1
        finally:
            self.in_flight -= 1

    async def sleep(self) -> None:
        if self.in_flight:
            self.mistakes += 1
        if not self.asleep:
            self.asleep = True  # before the wait: a request that arrives meanwhile is a mistake
            await trio.sleep(self._options.sleep_s)

    async def wake(self) -> None:
        if self.asleep:
            await trio.sleep(self._options.wake_s)
            self.asleep = False

    def stats(self) -> dict[str, object]:
        return {
            "model": self._options.model,
            "sleeping": self.asleep,
            "in_flight": self.in_flight,
            "served": self.served,
            "mistakes": self.mistakes,
        }
