"""Scheduling hints in a request's headers; all but `never` need `policy.client_hints`."""

from __future__ import annotations

import math
from dataclasses import dataclass

from llmux.errors import BadRequest
from llmux.http.syntax import Headers
from llmux.openai.headers import header

LOWEST_PRIORITY, HIGHEST_PRIORITY = 0.001, 1000.0
"""Bounds of a request's weight: it must neither dominate the sum of a line's ages, nor be lost in
it to rounding."""


@dataclass(frozen=True, slots=True)
class Hints:
    """The hints of one request.

    Attributes:
        weight: The factor by which its age counts when lines are compared; 1 by default.
        max_wait_s: Seconds in line after which it gives up; infinity: never.
        never_switch: True if it is to be refused rather than cause a switch.
        is_passive: True if it only inspects a model that is awake: it neither counts as use of the
            model nor wakes it.
    """

    weight: float = 1.0
    max_wait_s: float = math.inf
    never_switch: bool = False
    is_passive: bool = False


NO_HINTS = Hints()
NEVER_SWITCH = Hints(never_switch=True)
PASSIVE = Hints(is_passive=True)


def read_hints(headers: Headers) -> Hints:
    """Read the hints in a request's headers.

    Raises:
        BadRequest: A hint has an invalid value.
    """
    switch = header(headers, b"x-llmux-switch").lower()
    if switch not in {b"", b"never"}:
        raise BadRequest("x-llmux-switch: expected 'never'")
    return Hints(
        weight=_number(headers, b"x-llmux-priority", 1.0, LOWEST_PRIORITY, HIGHEST_PRIORITY),
        max_wait_s=_number(headers, b"x-llmux-max-wait", math.inf, 0.0, math.inf),
        never_switch=switch == b"never",
    )


def _number(headers: Headers, name: bytes, default: float, lowest: float, highest: float) -> float:
    value = header(headers, name)
    if not value:
        return default
    try:
        number = float(value)
    except ValueError:
        number = math.nan
    if not (0 < number < math.inf and lowest <= number <= highest):
        limits = "" if math.isinf(highest) else f" from {lowest:g} to {highest:g}"
        raise BadRequest(f"{name.decode()}: expected a positive number{limits}")
    return number
