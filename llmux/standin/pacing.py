"""Made-up text, and the pace at which its tokens are sent."""

from __future__ import annotations

import itertools
from collections.abc import Iterator

import trio


def generate(model: str, count: int) -> Iterator[str]:
    """Yield a number of made-up tokens, always the same; the model's name comes first."""
    words = f"{model} is a stand-in and makes these words up.".split()
    for index, word in enumerate(itertools.islice(itertools.cycle(words), count)):
        yield f" {word}" if index else word


async def wait_for_token(rate: float, number: int, began: float) -> None:
    """Wait until a token is due; a late token does not delay the next.

    Args:
        rate: Tokens per second; 0 for no pauses.
        number: Number of the token, from 1.
        began: When the answer began, on Trio's clock.
    """
    if rate:
        await trio.sleep_until(began + number / rate)
