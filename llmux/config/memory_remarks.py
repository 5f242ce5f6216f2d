"""Remarks on shared memory: what a config says of it and nothing uses, or no model can get."""

from __future__ import annotations

from collections.abc import Iterator

from llmux.config.memory import (
    awake_needs,
    held_asleep,
    is_alone,
    models_of,
    moving_need,
    resources_of,
    sets_of,
    sharing_groups,
)
from llmux.config.memory_names import NEEDS
from llmux.config.models import ModelConfig
from llmux.config.places import placed
from llmux.config.section import Keys
from llmux.config.shape import Config
from llmux.config.sizes import LEAST_LIKELY_BYTES

Found = Iterator[tuple[Keys, str]]


def memory_remarks(config: Config) -> list[str]:
    """Return one line for each thing that looks wrong about the memory that models share."""
    found = (
        *_small(config),
        *_unused(config),
        *(remark for model in config.models.values() for remark in _idle_hooks(model)),
        *_kept_out(config),
    )
    return [placed(keys, remark, config.source) for keys, remark in found]


def _small(config: Config) -> Found:
    """Find sizes that lack a unit, most likely."""
    sizes: dict[Keys, int] = {("resources", name): n for name, n in config.resources.items()}
    for model in config.models.values():
        for key in NEEDS:
            if isinstance(needs := getattr(model, key), dict):
                sizes |= {("models", model.name, key, name): n for name, n in needs.items()}
    for keys, size in sizes.items():
        if 0 < size < LEAST_LIKELY_BYTES:
            yield keys, f"is {size} bytes: is a unit missing, as in {size}GiB?"


def _unused(config: Config) -> Found:
    groups = [*sharing_groups(config)]
    used = {name for group in groups for name in resources_of(config, group)}
    for resource in config.resources:
        if resource not in used:
            yield ("resources", resource), "no model needs it"
    for key in ("busy", "overlapping_hooks"):
        if getattr(config, key) and not groups:
            yield (
                (key,),
                "counts only for models with 'needs' or in 'sets', of which there are none",
            )
    for model in config.models.values():
        if model.needs and sets_of(config, model.group) and is_alone(config, model):
            why = "others of its group are in sets, and it is in none: it is awake alone"
            yield ("models", model.name, "needs"), why


def _idle_hooks(model: ModelConfig) -> Found:
    """Find hooks that nothing runs; those of a recipe are there for models that need them."""
    if model.recipe is not None:
        return
    if model.memory is not None and model.needs != "auto":
        yield ("models", model.name, "memory"), "is run for models with 'needs: auto' only"
    if model.stop is not None and not model.needs_asleep:
        why = "is run only where memory is short that the model needs asleep: see 'needs_asleep'"
        yield ("models", model.name, "stop"), why


def _kept_out(config: Config) -> Found:
    """Find models that cannot be awake beside those that are kept awake."""
    for group in sharing_groups(config):
        models = models_of(config, group)
        kept = [model for model in models if model.keep]
        names = ", ".join(repr(each.name) for each in kept)
        those = f"{names} {'are' if len(kept) > 1 else 'is'}, which 'keep' keeps awake"
        for model in models if kept else ():
            if not model.keep and _is_kept_out(config, model, kept):
                yield ("models", model.name), f"can never be awake while {those}"
            elif model.needs == "auto":
                why = f"cannot be measured while {those}, for until then it is awake alone"
                yield ("models", model.name, "needs"), f"{why}: `llmux switch {model.name}` once"


def _is_kept_out(config: Config, model: ModelConfig, kept: list[ModelConfig]) -> bool:
    if any(is_alone(config, each) for each in (model, *kept)):
        return True
    names, sets = {model.name, *(each.name for each in kept)}, sets_of(config, model.group)
    if sets and not any(names.issubset(each) for each in sets):
        return True
    asleep = [each for each in models_of(config, model.group) if each.name not in names]
    return any(
        moving_need(model, resource)
        + sum(awake_needs(each).get(resource, 0) for each in kept)
        + held_asleep(asleep, resource)
        > config.resources[resource]
        for resource in resources_of(config, model.group)
    )
