"""Whether a model that was just woken has loaded, by its backend's answers."""

from __future__ import annotations

from http import HTTPStatus

from llmux.proxy.journey import Journey
from llmux.upstream import Answer

ASKS_ONLY = frozenset({b"GET", b"HEAD", b"OPTIONS"})
"""Answers to these methods do not show that a model has loaded: llama.cpp lists it before."""


class StillLoads(Exception):
    """The backend of a model that was just woken answers 503: it is not ready yet."""


def check_loaded(journey: Journey, answer: Answer) -> None:
    """Note that the model has loaded; raises StillLoads if its answer shows that it has not."""
    serving = journey.serving
    assert serving is not None
    if serving.is_warm:
        return
    if answer.status == HTTPStatus.SERVICE_UNAVAILABLE:
        if serving.is_warming and not serving.is_passive:
            raise StillLoads
    elif answer.status == 101 or not (serving.is_passive or journey.lane.method in ASKS_ONLY):
        serving.note_warm()
