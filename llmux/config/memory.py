"""Memory that models share: what the config says of it."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping

from llmux.config.models import ModelConfig
from llmux.config.shape import Config


def models_of(config: Config, group: str) -> list[ModelConfig]:
    """Return the models of a group, in the file's order."""
    return config.groups_of_models.get(group, [])


def sets_of(config: Config, group: str) -> tuple[tuple[str, ...], ...]:
    """Return the sets of a group's models."""
    names = {model.name for model in models_of(config, group)}
    return tuple(each for each in config.sets if names.issuperset(each))


def shares_memory(config: Config, group: str) -> bool:
    """Return whether several models of a group may be awake, and not one at a time."""
    says_needs = any(_named(model) or model.needs is not None for model in models_of(config, group))
    return says_needs or bool(sets_of(config, group))


def sharing_groups(config: Config) -> Iterator[str]:
    """Yield the groups that share memory, in the order of their first models."""
    for group in config.groups_of_models:
        if shares_memory(config, group):
            yield group


def resources_of(config: Config, group: str) -> tuple[str, ...]:
    """Return the resources of a group, in the file's order.

    They are those that its models name; with `auto`, those that no model names, too.
    """
    own = {name for model in models_of(config, group) for name in _named(model)}
    if any(model.needs == "auto" for model in models_of(config, group)):
        own |= {*config.resources} - {n for model in config.models.values() for n in _named(model)}
    return tuple(name for name in config.resources if name in own)


def is_alone(config: Config, model: ModelConfig) -> bool:
    """Return whether a model is awake alone, since its group shares memory and it names none."""
    sets = sets_of(config, model.group)
    return all(model.name not in each for each in sets) if sets else model.needs is None


def awake_needs(model: ModelConfig) -> Mapping[str, int]:
    """Return what a model needs awake, as far as the config says."""
    return model.needs if isinstance(model.needs, dict) else {}


def moving_need(model: ModelConfig, resource: str) -> int:
    """Return the most that a model needs of a resource at any time, in bytes."""
    needs = (awake_needs(model), model.needs_asleep, model.needs_waking)
    return max(each.get(resource, 0) for each in needs)


def may_stop(model: ModelConfig) -> bool:
    """Return whether a model's stop hook may run: not if that would lose frozen requests."""
    return model.stop is not None and not model.preserves_in_flight


def held_asleep(models: Iterable[ModelConfig], resource: str) -> int:
    """Return what models hold while they sleep, in bytes; one that may be stopped holds nothing."""
    return sum(model.needs_asleep.get(resource, 0) for model in models if not may_stop(model))


def _named(model: ModelConfig) -> set[str]:
    return {*awake_needs(model), *model.needs_asleep, *model.needs_waking}
