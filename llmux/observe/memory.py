"""The memory of the last hour, for `GET /control/history`."""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from llmux.observe.schemas import (
    Counts,
    History,
    HookRun,
    PhaseChange,
    Run,
    Shape,
    SwitchRecord,
)

REMEMBERED_S = 3600.0
"""Age limit of remembered events."""

MOST_REMEMBERED = 20_000
"""Limit of remembered events of each kind; an hour has far fewer switches."""


@dataclass(frozen=True)
class Recalled:
    """The recorded part of earlier runs of llmux; see `History` for the fields."""

    runs: Sequence[Run]
    phases: Sequence[PhaseChange]
    switches: Sequence[SwitchRecord]
    counts: Sequence[Counts]


class Memory:
    """The events of the last hour.

    Args:
        started_at: Unix time of this start of llmux, in seconds.
    """

    def __init__(self, started_at: float) -> None:
        self._runs = [Run(started=started_at)]
        self.phases: deque[PhaseChange] = deque(maxlen=MOST_REMEMBERED)
        self.hooks: deque[HookRun] = deque(maxlen=MOST_REMEMBERED)
        self.counts: deque[Counts] = deque(maxlen=MOST_REMEMBERED)
        self._switches: dict[int, SwitchRecord] = {}  # by number, and so oldest first
        self._counted: dict[str, tuple[int, int]] = {}

    def keep(self, shape: Shape) -> None:
        """Remember an event, if it is of a kind that is remembered."""
        if isinstance(shape, PhaseChange):
            self.phases.append(shape)
        elif isinstance(shape, SwitchRecord):
            self._switches[shape.id] = shape
            if len(self._switches) > MOST_REMEMBERED:
                del self._switches[next(iter(self._switches))]
        elif isinstance(shape, HookRun) and shape.duration_secs is not None:
            self.hooks.append(shape)

    def count(self, at: float, counted: Mapping[str, tuple[int, int]]) -> None:
        """Remember the number of requests of the models where it has changed."""
        if changed := changes(self._counted, counted):
            self._counted = dict(counted)
            self.counts.append(Counts(at=at, models=changed))

    def recall(self, earlier: Recalled) -> None:
        """Put what is known of earlier runs before what this run has remembered."""
        self._runs[:0] = earlier.runs
        self.phases = deque([*earlier.phases, *self.phases], maxlen=MOST_REMEMBERED)
        self.counts = deque([*earlier.counts, *self.counts], maxlen=MOST_REMEMBERED)
        self._switches = {each.id: each for each in earlier.switches} | self._switches

    def history(self, now: float, secs: float, last_event_id: str) -> History:
        """Return the remembered events of the last `secs` seconds; `now` is a Unix time."""
        since = now - min(secs, REMEMBERED_S)
        return History(
            at=now,
            last_event_id=last_event_id,
            phases=[each for each in self.phases if each.at >= since],
            switches=[s for s in self._switches.values() if (s.ended or now) >= since],
            hooks=[each for each in self.hooks if each.started >= since],
            counts=[each for each in self.counts if each.at >= since],
            runs=[each for each in self._runs if each.ended is None or each.ended >= since],
        )


def changes(
    before: Mapping[str, tuple[int, int]], now: Mapping[str, tuple[int, int]]
) -> dict[str, tuple[int, int]]:
    """Return the counts that differ; models that were removed count as having no requests."""
    gone = {name: (0, 0) for name in before if name not in now and before[name] != (0, 0)}
    return gone | {name: pair for name, pair in now.items() if before.get(name) != pair}
