"""Groups and sets of llmux that say what llama-swap's rules say of models awake together.

In llmux, the models of one group take turns, but for those that share a set, and groups do not know
of each other. So models that may not be awake together share a group, and so do those between them;
then groups are joined until one model of each may be awake at the same time. Where two models of a
group may be awake together, it gets sets.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from itertools import combinations, islice, product
from typing import Any

from llmux.base.exclusions import MOST_LISTED, limits_of

MOST_CHOICES = 20_000
"""Limit for the combinations that are tried, above which all models share one group."""

MayCoexist = Callable[[Iterable[str]], bool]

Sets = list[list[str]]
"""Sets of models; models in none are awake alone."""


def allowed_by_sets(sets: Sequence[frozenset[str]]) -> MayCoexist:
    """Return the rule of llama-swap's matrix: some set contains them all, or there is only one."""

    def may_coexist(models: Iterable[str]) -> bool:
        wanted = frozenset(models)
        return len(wanted) < 2 or any(wanted <= each for each in sets)

    return may_coexist


def allowed_by_groups(groups: Mapping[str, Mapping[str, Any]], models: Iterable[str]) -> MayCoexist:
    """Return the rule of llama-swap's groups; models in none are in one that is exclusive."""
    group_of = dict.fromkeys(models, "")
    for name, group in groups.items():
        group_of |= dict.fromkeys(
            map(str, group.get("members") or ()), name
        )  # some may be no models

    def unloads(group: str, other: str) -> bool:
        is_exclusive = groups.get(group, {}).get("exclusive", True)
        return bool(is_exclusive and not groups.get(other, {}).get("persistent", False))

    def are_apart(one: str, other: str) -> bool:
        a, b = group_of[one], group_of[other]
        if a == b:
            return bool(groups.get(a, {}).get("swap", True))
        return unloads(a, b) or unloads(b, a)

    return lambda wanted: not any(are_apart(*pair) for pair in combinations(wanted, 2))


def make_groups(
    models: Sequence[str], may_coexist: MayCoexist, *, pairs_decide: bool
) -> list[list[str]]:
    """Return groups of models, in the order of their first models.

    Args:
        models: All of them.
        may_coexist: The rule.
        pairs_decide: True if models may be awake together whenever each two of them may.
    """
    groups = [[model] for model in models]
    for pair in combinations(models, 2):
        if not may_coexist(pair):
            groups = _joined(groups, *pair)
    while not pairs_decide and (apart := _forbidden_choice(groups, may_coexist)) is not None:
        groups = _joined(groups, *apart)
    return groups


def sets_of_pairs(models: Sequence[str], may_coexist: MayCoexist) -> Sets:
    """Return the largest sets of models of which each two may be awake together.

    There may be very many: the search ends behind the first that are too many for a config.
    """
    beside = {
        one: {other for other in models if one != other and may_coexist((one, other))}
        for one in models
    }

    def extend(chosen: tuple[str, ...], left: set[str], seen: set[str]) -> Iterator[list[str]]:
        if not left and not seen:  # as C. Bron and J. Kerbosch find cliques
            yield sorted(chosen, key=models.index)
        pivot = max(left | seen, key=lambda name: len(beside[name] & left), default="")
        for name in [name for name in models if name in left - beside.get(pivot, set())]:
            yield from extend((*chosen, name), left & beside[name], seen & beside[name])
            left, seen = left - {name}, seen | {name}

    return [*islice(extend((), {*models}, set()), MOST_LISTED + 1)]


def are_for_llmux(sets: Sets) -> bool:
    """Return whether llmux can keep to these sets."""
    try:
        limits_of(tuple(map(tuple, sets)))
    except ValueError:
        return False
    return True


def lost_pairs(groups: Sequence[Sequence[str]], may_coexist: MayCoexist) -> list[tuple[str, str]]:
    """Return the pairs that llama-swap lets be awake together, and these groups do not."""
    return [pair for group in groups for pair in combinations(group, 2) if may_coexist(pair)]


def _joined(groups: list[list[str]], one: str, other: str) -> list[list[str]]:
    first, second = (next(group for group in groups if name in group) for name in (one, other))
    if first is second:
        return groups
    rest = [group for group in groups if group is not second]
    rest[rest.index(first)] = first + second
    return rest


def _forbidden_choice(
    groups: Sequence[Sequence[str]], may_coexist: MayCoexist
) -> tuple[str, str] | None:
    """Return two models of different groups that some forbidden choice contains; None: all fits."""
    choices = 1
    for group in groups:
        choices *= len(group)
    if len(groups) > 1 and choices > MOST_CHOICES:
        return groups[0][0], groups[1][0]
    for choice in product(*groups):
        if not may_coexist(choice):
            return choice[0], choice[1]
    return None
