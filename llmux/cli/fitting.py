"""What `llmux check` says of shared memory: which models may be awake together, and which never."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import suppress
from itertools import combinations

import msgspec

from llmux.config import Config
from llmux.config.memory import models_of, sharing_groups
from llmux.config.sizes import size_text
from llmux.observe.needs_seen import FILE_NAME, SeenNeeds
from llmux.policy.room import Amounts, Needs, covers, less, total
from llmux.server.ports import chosen_ports, with_ports
from llmux.switching.memory import Measured, memory_of

SHOWN = 8
"""Number of sets, and of pairs, that are shown; of others, how many there are."""

MOST_STEPS = 20_000
"""Number of steps after which the search for sets ends, with what it has found until then."""

Names = tuple[str, ...]


class Fitting:
    """Which models of a group may be awake together.

    Args:
        config: The config.
        group: A group whose models share memory.
        measured: What models with `needs: auto` were seen to use.

    Attributes:
        models: The group's models, in the file's order.
        sets: The sets to which no model can be added; not those of one model.
        is_whole: False if there are more sets.
    """

    def __init__(self, config: Config, group: str, measured: Measured | None = None) -> None:
        found = memory_of(config, group, measured)
        assert found is not None, f"the models of {group!r} share no memory"
        self.models = tuple(found.memory.needs)
        self._zero = (0,) * len(found.memory.amounts)
        needs = found.memory.needs
        # A model with a stop hook holds nothing asleep where memory is short.
        stopping = {model.name for model in models_of(config, group) if model.stop is not None}
        asleep = {n: self._zero if n in stopping else needs[n].asleep for n in self.models}
        self._free = less(found.memory.amounts, total(asleep.values(), self._zero))
        self._taken = {name: _taken(needs[name], asleep[name]) for name in self.models}
        self._steps = 0
        self.sets = [each for each in self._search((), self.models, ()) if len(each) > 1]
        self.is_whole = self._steps < MOST_STEPS

    def fits(self, names: Sequence[str]) -> bool:
        """Return whether all of these may be awake, if they wake one after another.

        The order is one that leaves room, for one resource: the highest peak comes first.
        """
        free = self._free
        for name in sorted(names, key=self._peak, reverse=True):
            awake, moving = self._taken[name]
            if not covers(free, moving):
                return False
            free = less(free, awake)
        return True

    def _peak(self, name: str) -> int:
        awake, moving = self._taken[name]
        return sum(less(moving, awake))

    def pairs(self) -> list[tuple[str, str]]:
        """Return the pairs that never fit together, without models that fit with no other."""
        alone = {*self.alone()}
        names = [name for name in self.models if name not in alone]
        return [pair for pair in combinations(names, 2) if not self.fits(pair)]

    def alone(self) -> list[str]:
        """Return the models that fit with no other."""
        return [
            one
            for one in self.models
            if not any(self.fits((one, other)) for other in self.models if other != one)
        ]

    def _search(self, chosen: Names, left: Names, without: Names) -> Iterator[Names]:
        """Yield the sets that hold `chosen`, any of `left` and none of `without`."""
        self._steps += 1
        if self._steps > MOST_STEPS:
            return
        if not left:
            if not any(self.fits((*chosen, name)) for name in without):
                yield chosen
            return
        name, *rest = left
        if self.fits((*chosen, name)):
            yield from self._search((*chosen, name), tuple(rest), without)
        if not self.fits((*chosen, *left)):  # else it belongs to each of the sets
            yield from self._search(chosen, tuple(rest), (*without, name))


def _taken(needs: Needs, asleep: Amounts) -> tuple[Amounts, Amounts]:
    """Return what a model takes awake and at most, beyond what it holds asleep."""
    return tuple(max(0, more) for more in less(needs.awake, asleep)), less(needs.moving, asleep)


def measured_needs(config: Config) -> Measured:
    """Return what models with `needs: auto` were seen to use by the llmux that serves this config.

    Of a state folder that this user may not read, nothing.
    """
    # What was seen counts for a server at its port, which llmux may have chosen.
    seen = SeenNeeds(
        config.state_dir / FILE_NAME, with_ports(config, chosen_ports(config.state_dir))
    )
    with suppress(OSError, msgspec.MsgspecError):
        seen.read()
    return seen.all()


def memory_lines(config: Config, measured: Measured | None = None) -> list[str]:
    """Return a paragraph for each group that shares memory; nothing if there is none."""
    return [line for group in sharing_groups(config) for line in _told(config, group, measured)]


def _told(config: Config, group: str, measured: Measured | None) -> Iterator[str]:
    fitting = Fitting(config, group, measured)
    found = memory_of(config, group, measured)
    assert found is not None
    amounts = (f"{name} {size_text(config.resources[name])}" for name in found.resources)
    yield ""
    shared = ", ".join(amounts)
    yield f"group {group}: " + (f"shares {shared}" if shared else "sets of models share it")
    yield from _rows("measured", [*_measured(config, group, measured or {})], "models")
    sets = [" + ".join(each) for each in fitting.sets]
    yield from _rows("together", sets, "sets", is_whole=fitting.is_whole)
    unmeasured = [
        model.name
        for model in models_of(config, group)
        if model.needs == "auto" and model.name not in (measured or {})
    ]
    alone = [
        f"{name} (until it is measured)" if name in unmeasured else name for name in fitting.alone()
    ]
    yield from _rows("alone", alone, "models")
    pairs = [f"{one} and {other}" for one, other in fitting.pairs()]
    yield from _rows("never together", pairs, "pairs")
    kept = [model.name for model in models_of(config, group) if model.keep]
    yield from _rows("kept awake", kept, "models")
    others = [name for name in fitting.models if name not in kept and name not in unmeasured]
    out = [name for name in others if kept and not fitting.fits((*kept, name))]
    yield from _rows("never meanwhile", out, "models")


def _measured(config: Config, group: str, measured: Measured) -> Iterator[str]:
    """Yield the models with `needs: auto`, and the most that each was seen to use, as it was."""
    for model in models_of(config, group):
        if model.needs == "auto" and model.name in measured:
            amounts = (f"{name} {size_text(n)}" for name, n in measured[model.name].items())
            yield f"{model.name}: {', '.join(amounts) or 'nothing'}"


def _rows(title: str, rows: Sequence[str], what: str, *, is_whole: bool = True) -> Iterator[str]:
    shown = [*rows[:SHOWN]]
    if len(rows) > SHOWN or not is_whole:
        least = "" if is_whole else "at least "
        shown.append(f"and {least}{max(1, len(rows) - SHOWN):,} {what} more")
    for number, row in enumerate(shown):
        yield f"  {'' if number else title:<15}  {row}"
