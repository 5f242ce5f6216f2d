"""Mistakes in how much memory models share and need: what can never be awake."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import combinations

from llmux.base.exclusions import limits_of
from llmux.config.memory import (
    awake_needs,
    held_asleep,
    is_alone,
    may_stop,
    models_of,
    moving_need,
    resources_of,
    sets_of,
    shares_memory,
    sharing_groups,
)
from llmux.config.memory_names import NEEDS
from llmux.config.models import ModelConfig
from llmux.config.section import Keys
from llmux.config.shape import Config
from llmux.config.sizes import size_text

Found = Iterator[tuple[Keys, str]]


def memory_shortages(config: Config) -> Found:
    """Yield path and message for each model that can never be awake, and what hinders all of them.

    The config has no other mistakes.
    """
    for group in sharing_groups(config):
        models = models_of(config, group)
        for resource in resources_of(config, group):
            yield from _too_much(models, resource, config.resources[resource])
        yield from _apart(config, group, models)
    for model in config.models.values():
        if model.keep and not shares_memory(config, model.group):
            why = "goes with 'needs' or 'sets': of its group, one model is awake at a time"
            yield ("models", model.name, "keep"), why


def _too_much(models: Sequence[ModelConfig], resource: str, amount: int) -> Found:
    """Find out whether there is enough of a resource for each model, and for what stays there."""
    there = f"there are {size_text(amount)} of {resource!r}"
    single = [
        (("models", model.name, key, resource), f"is more than there is: {there}")
        for model in models
        for key in NEEDS
        if isinstance(sizes := getattr(model, key), dict) and sizes.get(resource, 0) > amount
    ]
    if single:
        yield from single
        return
    asleep = held_asleep(models, resource)
    if asleep > amount:
        fixed = (model for model in models if not may_stop(model))
        holders = (m for m in fixed if m.needs_asleep.get(resource))
        told = f"{_listed(holders)} need {size_text(asleep)} of it while they sleep"
        why = "without a 'stop' hook, they cannot be put into a deeper sleep"
        yield ("resources", resource), f"{told}, which is more than there is: {why}"
        return
    for model in models:
        others = asleep - held_asleep([model], resource)
        if moving_need(model, resource) > amount - others:
            left = f"the others need {size_text(others)} while they sleep, and {there}"
            yield _place(model, resource), f"it can never be awake: {left}"
    kept = [model for model in models if model.keep]
    needed = sum(awake_needs(model).get(resource, 0) for model in kept)
    others = held_asleep((model for model in models if not model.keep), resource)
    if len(kept) > 1 and needed + others > amount:
        told = f"{_listed(kept)} need {size_text(needed)} of {resource!r} together"
        rest = f", and the others {size_text(others)} while they sleep" if others else ""
        yield ("models", kept[-1].name, "keep"), f"{told}{rest}: {there}"


def _place(model: ModelConfig, resource: str) -> Keys:
    """Return the key that says the most that a model needs."""
    sizes = {key: getattr(model, key) for key in NEEDS}
    of = {key: each.get(resource, 0) for key, each in sizes.items() if isinstance(each, dict)}
    return ("models", model.name, max(of, key=of.__getitem__), resource)


def _apart(config: Config, group: str, models: Sequence[ModelConfig]) -> Found:
    """Find out whether the sets can be kept to, and let those be awake that are kept awake."""
    try:
        limits_of(sets_of(config, group))
    except ValueError as error:
        yield ("sets",), str(error)
    kept = [model for model in models if model.keep]
    for one, other in combinations(kept, 2):
        if any(is_alone(config, each) for each in (one, other)):
            alone = one if is_alone(config, one) else other
            why = f"{alone.name!r} is awake alone (it has no 'needs', or is in no set)"
            yield ("models", other.name, "keep"), f"goes not with that of {one.name!r}: {why}"
            return
    names = {model.name for model in kept}
    sets = sets_of(config, group)
    if len(kept) > 1 and sets and not any(names.issubset(each) for each in sets):
        yield ("models", kept[-1].name, "keep"), f"no set holds all of {_listed(kept)}"


def _listed(models: Iterator[ModelConfig] | Sequence[ModelConfig]) -> str:
    return ", ".join(repr(model.name) for model in models)
