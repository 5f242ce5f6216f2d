"""Mistakes in the names that a config uses for shared memory: of resources, models and groups."""

from __future__ import annotations

import difflib
from collections.abc import Iterator, Mapping
from typing import Any

from llmux.config.section import Keys

NEEDS = ("needs", "needs_asleep", "needs_waking")
"""Keys of a model that name resources."""


def name_conflicts(given: Mapping[Any, Any]) -> Iterator[tuple[Keys, str]]:
    """Check that what models need is there, and that sets are of models of one group.

    Args:
        given: The file, so that a mistake elsewhere hides no conflict.

    Yields:
        Path, and message.
    """
    models, resources = given.get("models"), given.get("resources", {})
    if not isinstance(models, dict) or not isinstance(resources, dict):
        return
    sections = {name: model for name, model in models.items() if isinstance(model, dict)}
    yield from _unknown_resources(sections, resources)
    yield from _resources_of_two_groups(sections, resources)
    yield from _wrong_sets(given.get("sets"), models)


def _group_of(model: Mapping[Any, Any]) -> Any:
    return model.get("group", "default")


def _named(models: Mapping[Any, Mapping[Any, Any]]) -> Iterator[tuple[Keys, Any]]:
    """Yield the path and name of each resource that a model names."""
    for name, model in models.items():
        for key in NEEDS:
            sizes = model.get(key)
            for resource in sizes if isinstance(sizes, dict) else ():
                yield ("models", name, key, resource), resource


def _unknown_resources(
    models: Mapping[Any, Any], resources: Mapping[Any, Any]
) -> Iterator[tuple[Keys, str]]:
    for keys, resource in _named(models):
        if resource not in resources:
            yield keys, f"'resources' has no {resource!r}{_hint(resource, resources)}"
    for name, model in models.items():
        if model.get("needs") == "auto" and not resources:
            yield ("models", name, "needs"), "'auto' goes with 'resources' only"


def _resources_of_two_groups(
    models: Mapping[Any, Any], resources: Mapping[Any, Any]
) -> Iterator[tuple[Keys, str]]:
    """Demand that all models that use a resource are of one group: it decides for them together."""
    users: dict[Any, Any] = {}  # the first model that uses a resource
    for keys, resource in _named(models):
        first = users.setdefault(resource, keys[1])
        if _group_of(models[first]) != _group_of(models[keys[1]]):
            yield keys, _apart(models, first, f"uses {resource!r}")
    free = [name for name in resources if name not in users]
    measured = [name for name, model in models.items() if model.get("needs") == "auto"]
    for name in measured:
        first = measured[0]
        if free and _group_of(models[first]) != _group_of(models[name]):
            yield ("models", name, "needs"), _apart(models, first, f"may use {free[0]!r}")


def _apart(models: Mapping[Any, Any], other: Any, uses: str) -> str:
    group = _group_of(models[other])
    return f"{other!r} of the group {group!r} {uses}, too: give both one group"


def _wrong_sets(sets: Any, models: Mapping[Any, Any]) -> Iterator[tuple[Keys, str]]:
    for index, names in enumerate(sets if isinstance(sets, list | tuple) else ()):
        if not isinstance(names, list | tuple):
            continue
        if not names:
            yield ("sets", index), "names no model"
        groups = {}
        for at, name in enumerate(names):
            if not isinstance(name, str):
                continue
            if name not in models:
                yield ("sets", index, at), f"there is no model {name!r}{_hint(name, models)}"
            elif isinstance(models[name], dict):
                groups[str(_group_of(models[name]))] = name
        if len(groups) > 1:
            (group, one), (other_group, other), *_ = groups.items()
            told = f"{one!r} is of the group {group!r}, {other!r} of {other_group!r}"
            yield ("sets", index), f"{told}: the models of a set share a group"


def _hint(name: Any, known: Mapping[Any, Any]) -> str:
    near = difflib.get_close_matches(str(name)[:100], map(str, known), n=1)
    if near:
        return f", did you mean {near[0]!r}?"
    return f"; there are {', '.join(map(str, known))}" if known else ": there are none"
