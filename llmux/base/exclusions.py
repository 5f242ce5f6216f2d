"""Listed sets of names, as limits: of some names, at most so many may be together.

A set is allowed if it is part of a listed one. The least sets that are not allowed say the same; a
limit stands for many of them, as "at most two of a, b, c and d" for four of three names.
"""

from __future__ import annotations

import functools
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

MOST_LISTED = 1_000
"""Maximum number of listed sets."""

MOST_FORBIDDEN = 2_000
"""Maximum number of least forbidden sets, which may grow exponentially with the listed ones."""

MOST_LIMITS = 64
"""Maximum number of limits."""

TOO_MANY = "the sets overlap in too many ways: list fewer, or say by 'needs' what fits"

Names = frozenset[str]


@dataclass(frozen=True, slots=True)
class Limit:
    """Of `names`, at most `most` may be together."""

    names: tuple[str, ...]
    most: int


@functools.lru_cache(maxsize=64)
def limits_of(listed: tuple[tuple[str, ...], ...]) -> tuple[Limit, ...]:
    """Return limits by which exactly the subsets of the listed sets are allowed.

    Raises:
        ValueError: The sets are too many, or overlap in too many ways.
    """
    if len(listed) > MOST_LISTED:
        raise ValueError(f"lists more than {MOST_LISTED:,} sets")
    if not listed:
        return ()
    largest = maximal(listed)
    order = list(dict.fromkeys(name for each in largest for name in sorted(each)))
    position = {name: at for at, name in enumerate(order)}
    forbidden = [
        tuple(sorted(each, key=position.__getitem__)) for each in _least_forbidden(largest)
    ]
    limits: list[Limit] = []
    for each in sorted(forbidden, key=lambda names: (len(names), [*map(position.get, names)])):
        if not any(len({*each} & {*limit.names}) > limit.most for limit in limits):
            names = _grown(each, order, largest)
            limits.append(Limit(tuple(name for name in order if name in names), len(each) - 1))
            if len(limits) > MOST_LIMITS:
                raise ValueError(TOO_MANY)
    return tuple(limits)


def maximal(sets: Iterable[Iterable[str]]) -> list[Names]:
    """Return the sets that are part of no other, each once, in their order."""
    distinct = list(dict.fromkeys(frozenset(each) for each in sets))
    return [each for each in distinct if not any(each < other for other in distinct)]


def _least_forbidden(largest: Sequence[Names]) -> list[Names]:
    """Return the least sets that are part of none: those with a name outside each (C. Berge)."""
    everything = frozenset[str]().union(*largest)
    found: list[Names] = [frozenset()]
    for each in sorted(largest, key=len, reverse=True):
        outside = everything - each
        missing = [names for names in found if not names & outside]
        found = [names for names in found if names & outside]
        for name in outside:
            parts = [names - {name} for names in found if names & outside == {name}]
            found += [n | {name} for n in missing if not any(part <= n for part in parts)]
            if len(found) > MOST_FORBIDDEN:
                raise ValueError(TOO_MANY)
    return found


def _grown(forbidden: tuple[str, ...], order: Sequence[str], largest: Sequence[Names]) -> set[str]:
    """Return a set of names, as large as is found, of which no more may be together either."""
    names = {*forbidden}
    for name in order:
        if all(len(each & (names | {name})) < len(forbidden) for each in largest):
            names.add(name)
    return names
