"""The memory that the models of a group share, as the config says it.

Besides the user's resources there are resources of llmux's own, whose names begin with "#" and
whose amounts count models. With them, the ledger also keeps to the listed sets and to models that
are awake alone, and needs no rules for either.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from fractions import Fraction
from math import ceil

from llmux.base.exclusions import limits_of
from llmux.config import Config, ModelConfig
from llmux.config.memory import (
    held_asleep,
    is_alone,
    models_of,
    resources_of,
    sets_of,
    shares_memory,
)
from llmux.policy.room import Amounts, Memory, Needs

ALONE = "#alone"
"""Resource that has one for each model. Who is awake alone needs all of it."""

Measured = Mapping[str, Mapping[str, int]]
"""The most bytes that were seen, by resource, by model."""


@dataclass(frozen=True)
class GroupMemory:
    """The memory that the models of a group share.

    Attributes:
        memory: Its amounts, and what each model needs; the user's resources come first.
        touches: By model, the resources on which its hooks run one at a time. A model whose needs
            are not known may use any.
        overlapping_hooks: True if hooks that touch the same resource may run at the same time.
    """

    memory: Memory
    touches: Mapping[str, frozenset[str]]
    overlapping_hooks: bool

    @property
    def resources(self) -> tuple[str, ...]:
        """The user's resources."""
        return tuple(name for name in self.memory.resources if not name.startswith("#"))


def memory_of(config: Config, group: str, measured: Measured | None = None) -> GroupMemory | None:
    """Return the memory of a group; None if one of its models is awake at a time, as by default.

    Args:
        config: The config.
        group: Name of the group.
        measured: What models with `needs: auto` were seen to use.
    """
    if not shares_memory(config, group):
        return None
    return _Group(config, group, measured or {}).memory()


class _Group:
    def __init__(self, config: Config, group: str, measured: Measured) -> None:
        self._config = config
        self._models = models_of(config, group)
        self._measured = measured
        self._real = resources_of(config, group)
        self._sets = sets_of(config, group)
        self._needs = {model.name: self._needs_of(model) for model in self._models}

    def memory(self) -> GroupMemory:
        """Return all of it."""
        hidden = dict(self._hidden())
        resources = (*self._real, *hidden)
        amounts = (*self._amounts(self._config.resources), *(most for most, _ in hidden.values()))
        nothing = (0,) * len(hidden)
        needs = {
            model.name: Needs.of(
                (
                    *self._amounts(self._needs[model.name] or {}),
                    *(units.get(model.name, 0) for _, units in hidden.values()),
                ),
                (*self._amounts(model.needs_asleep), *nothing),
                (*self._amounts(model.needs_waking), *nothing),
            )
            for model in self._models
        }
        return GroupMemory(
            Memory(resources, amounts, needs),
            {model.name: self._touched(model, resources) for model in self._models},
            self._config.overlapping_hooks,
        )

    def _amounts(self, sizes: Mapping[str, int]) -> Amounts:
        return tuple(sizes.get(name, 0) for name in self._real)

    def _needs_of(self, model: ModelConfig) -> Mapping[str, int] | None:
        """Return what a model needs awake; None if that is not known."""
        if model.needs != "auto":
            return model.needs
        seen = self._measured.get(model.name)
        if seen is None:
            return None
        return {name: self._with_margin(model, name, seen.get(name, 0)) for name in self._real}

    def _with_margin(self, model: ModelConfig, resource: str, size: int) -> int:
        """Return a measured size and its margin: no more than there is, for it has been awake."""
        others = held_asleep((each for each in self._models if each != model), resource)
        size += ceil(size * Fraction(str(self._config.memory_margin)))
        return min(size, max(0, self._config.resources[resource] - others))

    def _touched(self, model: ModelConfig, resources: tuple[str, ...]) -> frozenset[str]:
        needs = self._needs[model.name]
        if needs is None:
            return frozenset(resources)
        if model.needs == "auto":
            needs = {name: size for name, size in needs.items() if size}
        return frozenset({*needs, *model.needs_waking})

    def _hidden(self) -> Iterator[tuple[str, tuple[int, Mapping[str, int]]]]:
        """Yield llmux's own resources: name, amount, and by model what each needs awake."""
        limits = limits_of(self._sets)
        for number, limit in enumerate(limits, 1):
            yield f"#sets{number}", (limit.most, dict.fromkeys(limit.names, 1))
        alone = set(self._alone())
        if alone or not (limits or self._real):
            everything = len(self._models)
            units = {each.name: everything if each.name in alone else 1 for each in self._models}
            yield ALONE, (everything, units)

    def _alone(self) -> Iterator[str]:
        """Yield the models that are awake alone."""
        for model in self._models:
            is_unmeasured = model.needs == "auto" and self._needs[model.name] is None
            if is_unmeasured or is_alone(self._config, model):
                yield model.name
