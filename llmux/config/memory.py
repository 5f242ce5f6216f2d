"""Memory that models share: what the config says of it."""

from __future__ import annotations

from llmux.config.models import ModelConfig
from llmux.config.shape import Config


def models_of(config: Config, group: str) -> list[ModelConfig]:
    """Return the models of a group, in the file's order."""
    return [model for model in config.models.values() if model.group == group]


def sets_of(config: Config, group: str) -> tuple[tuple[str, ...], ...]:
    """Return the sets of a group's models."""
    names = {model.name for model in models_of(config, group)}
    return tuple(each for each in config.sets if names.issuperset(each))


def shares_memory(config: Config, group: str) -> bool:
    """Return whether several models of a group may be awake, and not one at a time."""
    says_needs = any(_named(model) or model.needs is not None for model in models_of(config, group))
    return says_needs or bool(sets_of(config, group))


def resources_of(config: Config, group: str) -> tuple[str, ...]:
    """Return the resources of a group, in the file's order.

    They are those that its models name; with `auto`, those that no model names, too.
    """
    own = {name for model in models_of(config, group) for name in _named(model)}
    if any(model.needs == "auto" for model in models_of(config, group)):
        own |= {*config.resources} - {n for model in config.models.values() for n in _named(model)}
    return tuple(name for name in config.resources if name in own)


def _named(model: ModelConfig) -> set[str]:
    needs = model.needs if isinstance(model.needs, dict) else {}
    return {*needs, *model.needs_asleep, *model.needs_waking}
