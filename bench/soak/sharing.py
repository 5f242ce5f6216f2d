"""Models that share memory: what there is, what each needs, and what reloads change.

A stand-in server holds what its model needs in the config that a run begins with. Reloads only
raise needs, or lower amounts, so that llmux always counts at least what the servers hold.
"""

from __future__ import annotations

import random
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from bench.soak.backend.amounts import GPU, RAM

UNIT = 1 << 20

MOST_RAISED, MOST_LOWERED = 15, 20
"""What reloads change at most, so that each model alone still fits."""

NEEDS: tuple[Mapping[str, int], ...] = (
    {"x": 50}, {"x": 40}, {"y": 60}, {"x": 60, "y": 60}, {"x": 45}, {"y": 30},
)  # fmt: skip
"""What the models of a group need awake: by their place in it, over and over."""

ASLEEP = 30
"""What a model that has a stop hook needs of the RAM asleep: there is enough for one."""


@dataclass(frozen=True)
class Share:
    """What one model needs, and where its hooks leave their marks.

    Attributes:
        group: Its group.
        slug: Its name in file names.
        needs: What it needs awake, by resource.
        is_sleeper: It needs RAM asleep, and has a stop hook.
    """

    group: str
    slug: str
    needs: Mapping[str, int] = field(default_factory=dict)
    is_sleeper: bool = False

    @classmethod
    def of(cls, group: str, slug: str, place: int, *, is_guest: bool) -> Share:
        """Return the share of the model at a place in its group.

        One that a reload removes is no sleeper: llmux would not know any more what it keeps.
        """
        needs = {f"{group}-{name}": size for name, size in NEEDS[place % len(NEEDS)].items()}
        return cls(group, slug, needs, is_sleeper=not is_guest and place % 2 == 0)

    @property
    def variables(self) -> str:
        """What the hooks have to know, as assignments of the shell."""
        lanes = " ".join(f"hooks-{resource}" for resource in self.needs)
        kept = f"kept-{self.group}-{self.slug}" if self.is_sleeper else ""
        books = ",".join(f"{resource}={size}" for resource, size in self.needs.items())
        return f"gpu=holds-{self.slug} lanes='{lanes}' kept={kept} books={books}; "

    def config(self) -> dict[str, Any]:
        """Return the keys of the model."""
        keys: dict[str, Any] = {"needs": _bytes(self.needs)}
        if self.is_sleeper:
            keys["needs_asleep"] = _bytes({f"{self.group}-ram": ASLEEP})
            keys["stop"] = f". ./hooks.sh; {self.variables}stop_it {self.group}"
        return keys


def resources(groups: int) -> dict[str, int]:
    """Return the `resources` of a config, in bytes."""
    amounts = {"x": GPU, "y": GPU, "ram": RAM}
    return _bytes({f"g{g}-{name}": size for g in range(groups) for name, size in amounts.items()})


def raise_needs(rng: random.Random, model: dict[str, Any]) -> None:
    """Let a model need more, awake or while it wakes."""
    if "needs" in model:
        key = rng.choice(("needs", "needs_waking"))
        raised = rng.randrange(1, MOST_RAISED + 1) * UNIT
        model[key] = {name: size + raised for name, size in model["needs"].items()}


def lower_amounts(rng: random.Random, config: dict[str, Any]) -> None:
    """Let there be less memory."""
    for name, size in config.get("resources", {}).items():
        if not name.endswith("ram"):
            config["resources"][name] = size - rng.randrange(MOST_LOWERED + 1) * UNIT


def _bytes(sizes: Mapping[str, int]) -> dict[str, int]:
    return {name: size * UNIT for name, size in sizes.items()}
