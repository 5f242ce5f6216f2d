"""Reconstruct a simulation of a group whose models share memory, from a journal.

As `llmux.simulate.replay`, but hooks have a time for each model, from the changes of its state.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

from llmux.observe.journal import Phase, SharedMemory
from llmux.simulate.coresident import simulate_coresident
from llmux.simulate.hosts import CoresidentSetup
from llmux.simulate.outcome import Outcome, mean
from llmux.simulate.recorded import memory_of_record, touches_of_record
from llmux.simulate.replay import Recording
from llmux.switching.core import Traits


@dataclass(frozen=True)
class SharedRecording(Recording):
    """The part of a journal that concerns a group whose models share memory.

    Attributes:
        memory: The memory, as of the last start.
        phases: The changes of the models' states, in order.
    """

    memory: SharedMemory
    phases: Sequence[Phase]

    def simulate(self, policy: str, progress: Callable[[int], None] = lambda _: None) -> Outcome:
        return simulate_coresident(self.shared_setup(policy), self.arrivals(), progress=progress)

    def shared_setup(self, policy: str, **settings: object) -> CoresidentSetup:
        """Return the setup for simulating these models under a policy; see `Recording.setup`."""
        memory, models = self.memory, self.models
        wakes_s, sleeps_s = self.hooks_s("waking", "awake"), self.hooks_s("sleeping", "asleep")
        return CoresidentSetup(
            memory=memory_of_record(memory, models),
            wake_s=wakes_s.__getitem__,
            sleep_s=sleeps_s.__getitem__,
            server=self._servers(),
            policy=self._policy(policy, settings),
            hooks_at_once=math.inf,
            touches=touches_of_record(memory, models),
            overlapping_hooks=memory.overlapping_hooks,
            traits={model: self._traits(model) for model in models},
            keep=memory.keep,
            busy=math.inf if memory.busy is None else memory.busy,
        )

    def _traits(self, model: str) -> Traits:
        return Traits(
            max_in_flight=self.started.slots.get(model, math.inf),
            preserves_in_flight=model in self.started.freezes,
        )

    def hooks_s(self, during: str, then: str) -> dict[str, float]:
        """Return each model's mean time in one state before another; of unseen ones, of all."""
        seen: dict[str, list[float]] = defaultdict(list)
        for model, began_at, phase in self._stays:
            if (phase.left, phase.state) == (during, then):
                seen[model].append(phase.at - began_at)
        usual_s = mean([each for times in seen.values() for each in times]) if seen else 0.0
        return {model: mean(seen[model]) if model in seen else usual_s for model in self.models}

    @cached_property
    def _stays(self) -> Sequence[tuple[str, float, Phase]]:
        """For each state that was seen to begin and to end: model, begin, and what ended it."""
        return list(_stays_of(self.phases))

    def _absences(self) -> Mapping[str, Sequence[tuple[float, float]]]:
        """Return from the sleep of each model that freezes until it was awake again."""
        spans: dict[str, list[tuple[float, float]]] = {model: [] for model in self.models}
        left: dict[str, float] = {}
        for phase in self.phases:
            if phase.model not in self.started.freezes or phase.model not in spans:
                continue
            if phase.state == "sleeping" and phase.left in {"awake", "draining"}:
                left.setdefault(phase.model, phase.at)
            elif phase.state == "awake" and phase.model in left:
                spans[phase.model].append((left.pop(phase.model), phase.at))
        return spans


def _stays_of(phases: Sequence[Phase]) -> Iterator[tuple[str, float, Phase]]:
    last: dict[str, Phase] = {}
    for phase in phases:
        before = last.get(phase.model)
        if before is not None and before.state == phase.left:  # else llmux was started in between
            yield phase.model, before.at, phase
        last[phase.model] = phase
