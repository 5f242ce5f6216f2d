"""Describe a model to Ollama's clients where its server does not: it is asleep, or no Ollama."""

from __future__ import annotations

from http import HTTPStatus

from llmux.openai.ollama import HAS_NO_SHOW, asks_to_show, description
from llmux.proxy.held import Bodies
from llmux.proxy.journey import Journey
from llmux.upstream import Answer


class NoDescription(Exception):
    """The server of a model that is awake has no description of it."""


def check_describes(journey: Journey, answer: Answer) -> None:
    """Raise NoDescription if a description is wanted, and the answer says that there is none."""
    if answer.status in HAS_NO_SHOW and asks_to_show(journey.target):
        raise NoDescription


async def describe(journey: Journey, created: float, bodies: Bodies) -> None:
    """Answer in place of the model's server.

    Args:
        journey: The request.
        created: Unix time.
        bodies: Where the memory of the answer is counted.
    """
    journey.lane.body.release()
    body = description(journey.asked, created)
    headers = [(b"content-type", b"application/json"), (b"content-length", b"%d" % len(body))]
    status = HTTPStatus.OK
    with bodies.answering(len(body)):
        await journey.lane.reply(status, [*headers, *journey.answers(status)], body)
