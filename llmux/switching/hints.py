"""What one request asks of the policy for itself; all but `never` need `policy.client_hints`."""

from __future__ import annotations

import math
from dataclasses import dataclass

from llmux.errors import BadRequest
from llmux.http.syntax import Headers
from llmux.openai.headers import header

LOWEST_PRIORITY, HIGHEST_PRIORITY = 0.001, 1000.0
"""One request must not drown a line's sums, nor be lost in them to rounding."""


@dataclass(frozen=True, slots=True)
class Hints:
    """One request's wishes.

    Attributes:
        weight: What its age counts for when lines are weighed; 1 for an ordinary request.
        max_wait_s: After so many seconds in line it gives up; infinity: never.
        never_switch: Be refused rather than cause a switch.
        is_passive: Only look at a model that is awake: no use of it, and no reason to wake it.
    """

    weight: float = 1.0
    max_wait_s: float = math.inf
    never_switch: bool = False
    is_passive: bool = False


NO_HINTS = Hints()
NEVER_SWITCH = Hints(never_switch=True)
PASSIVE = Hints(is_passive=True)


def read_hints(headers: Headers) -> Hints:
    """The hints in a request's headers.

    Raises:
        BadRequest: A hint is there, but says nothing that is understood.
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
