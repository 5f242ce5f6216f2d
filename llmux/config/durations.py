"""Durations as people write them: `90s`, `5m`, `1h30m`, `250ms`."""

from __future__ import annotations

import re

UNITS_S = {"d": 86400.0, "h": 3600.0, "m": 60.0, "s": 1.0, "ms": 0.001}
"""Seconds in each unit, the largest first, as they must stand in a duration."""

_NUMBER = "[0-9]+(?:\\.[0-9]+)?"
DURATION_PATTERN = "^(?=.)" + "".join(f"({_NUMBER}{unit})?" for unit in UNITS_S) + "$"
"""Regular expression of a duration for the JSON Schema."""

_DURATION = re.compile("".join(f"(?:({_NUMBER}){unit})?" for unit in UNITS_S))


def duration_s(text: str) -> float:
    """Return the seconds of a duration with units, each at most once, the largest first.

    Raises:
        ValueError: It is none.
    """
    found = _DURATION.fullmatch(text)
    if found is None or not text:
        raise ValueError(
            "expected float, got str: a duration is written as 90s, 5m, 1h30m or 250ms"
        )
    parts = zip(found.groups(), UNITS_S.values(), strict=True)
    # Rounded, since 0.001 has no exact form in binary.
    return round(sum(float(number) * unit_s for number, unit_s in parts if number), 9)
