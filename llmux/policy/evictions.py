"""The sets of models whose eviction makes room for another one."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from llmux.policy.room import Amounts, less, more

EXACT = 9
"""Number of models that are awake up to which all minimal sets are found: at most 2^9 are tried.
Beyond that, one set is chosen greedily."""

Sets = tuple[tuple[str, ...], ...]


class Evictions:
    """Finds the sets to evict. A set is minimal: none of its models could stay.

    Results are kept, since they change with the models that are awake, and not with each request.
    """

    def __init__(self) -> None:
        self._known: dict[tuple[object, ...], Sets] = {}

    def __deepcopy__(self, _memo: object) -> Evictions:
        return self  # a forecast's copy of a policy may use what is known: it never changes

    def minimal(self, missing: Amounts, freed: Mapping[str, Amounts]) -> Sets:
        """Return the minimal sets of models whose eviction frees what is missing.

        Args:
            missing: What is missing of each resource; 0 or less where there is enough.
            freed: What the eviction of each model would free. Beyond `EXACT` models, a greedy
                choice takes them in this order.

        Returns:
            One empty set if nothing is missing, and no set if all of `freed` is not enough.
        """
        if max(missing) <= 0:
            return ((),)
        if len(freed) > EXACT:
            return _greedy(missing, freed)
        key = (missing, *freed.items())
        found = self._known.get(key)
        if found is None:
            if len(self._known) > 10_000:
                self._known.clear()
            found = self._known[key] = _all_minimal(missing, freed)
        return found


def _all_minimal(missing: Amounts, freed: Mapping[str, Amounts]) -> Sets:
    found: list[tuple[str, ...]] = []
    if not freed:
        return ()
    # What a model needs more of asleep than awake, others may have to give back.
    least = tuple(map(min, zip(*freed.values(), strict=True)))
    scarce = [lacks > 0 or amount < 0 for lacks, amount in zip(missing, least, strict=True)]
    helpful = [
        (name, amounts)
        for name, amounts in freed.items()
        if any(is_scarce and amount > 0 for is_scarce, amount in zip(scarce, amounts, strict=True))
    ]

    def extend(start: int, chosen: tuple[str, ...], lacks: Amounts) -> None:
        for at in range(start, len(helpful)):
            name, amounts = helpful[at]
            still = less(lacks, amounts)
            if max(still) <= 0:
                if _is_minimal((*chosen, name), freed, still):
                    found.append((*chosen, name))
            else:
                extend(at + 1, (*chosen, name), still)

    extend(0, (), missing)
    return tuple(found)


def _is_minimal(chosen: Sequence[str], freed: Mapping[str, Amounts], still: Amounts) -> bool:
    """Return whether each model of a sufficient set is needed; `still` is what is missing then."""
    return not any(max(more(still, freed[name])) <= 0 for name in chosen)


def _greedy(missing: Amounts, freed: Mapping[str, Amounts]) -> Sets:
    allowed = dict(freed)
    chosen, still = _chosen(missing, allowed)
    while max(still) > 0:
        # Some may need what is missing now themselves, asleep: do without the last of them.
        takers = [name for name in chosen if _helps(still, less((0,) * len(still), freed[name]))]
        if not takers:
            return ()
        del allowed[takers[-1]]
        chosen, still = _chosen(missing, allowed)
    for name in reversed(chosen[:-1]):  # the last to be chosen comes first: it is ranked lowest
        without = more(still, freed[name])
        if max(without) <= 0:
            chosen.remove(name)
            still = without
    return (tuple(chosen),)


def _chosen(missing: Amounts, freed: Mapping[str, Amounts]) -> tuple[list[str], Amounts]:
    """Take each time the first model that helps; return them, and what is missing then."""
    chosen: list[str] = []
    left = dict(freed)
    while max(missing) > 0:
        name = next((name for name, amounts in left.items() if _helps(missing, amounts)), None)
        if name is None:
            break
        chosen.append(name)
        missing = less(missing, left.pop(name))
    return chosen, missing


def _helps(missing: Amounts, freed: Amounts) -> bool:
    return any(lacks > 0 < amount for lacks, amount in zip(missing, freed, strict=True))
