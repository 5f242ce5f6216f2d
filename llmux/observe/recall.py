"""Read the last hour of earlier runs from the journal, so that the history survives a restart.

Only the end of the journal is read (`Journal.latest`), once, in a thread. Invalid lines, as a
killed process or a power cut leaves them, are skipped.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence

from llmux.observe.journal import (
    EVERY_KIND,
    Entry,
    Journal,
    Phase,
    Request,
    Started,
    Stopped,
    Switch,
    time_of,
)
from llmux.observe.memory import MOST_REMEMBERED, REMEMBERED_S, Recalled
from llmux.observe.schemas import Counts, PhaseChange, Run, SwitchRecord

MOST_ENTRIES = 100_000
"""Limit of the entries that are considered; `Journal.latest` reads about 30,000 at a time."""

COUNT_EVERY_S = 1.0
"""Interval between counts, as a running llmux remembers them."""


def recall(journal: Journal, started_at: float, groups: Mapping[str, str]) -> Recalled:
    """Return what the journal says of the hour before this start.

    Args:
        journal: The journal, which may be written meanwhile.
        started_at: Unix time of this start, in seconds.
        groups: The group of each configured model; for other models, the journal says it.
    """
    latest = journal.latest(0.0, MOST_ENTRIES, EVERY_KIND)
    entries = [each for each in latest if time_of(each) < started_at]
    since = started_at - REMEMBERED_S
    runs = [_run(each) for each in _by_run(entries)]
    late = [each for each in entries if time_of(each) >= since]
    phases = [
        PhaseChange(at=each.at, model=each.model, state=each.state, left=each.left)
        for each in late
        if isinstance(each, Phase)
    ]
    known = dict(groups)
    for each in entries:
        if isinstance(each, Started):
            known = {**each.groups, **groups}
    counts = _counts(each for each in late if isinstance(each, Request))
    return Recalled(
        runs=[each for each in runs if each.ended is not None and each.ended >= since],
        phases=phases[-MOST_REMEMBERED:],
        switches=_switches([each for each in late if isinstance(each, Switch)], known),
        counts=list(counts)[-MOST_REMEMBERED:],
    )


def _by_run(entries: Iterable[Entry]) -> Iterator[list[Entry]]:
    """Yield the entries of each run; those of versions that named no runs count as one."""
    run: list[Entry] = []
    boot = ""
    for entry in entries:
        if isinstance(entry, Started) and entry.boot not in {"", boot}:
            boot = entry.boot
            if run:
                yield run
            run = []
        run.append(entry)
        if isinstance(entry, Stopped):
            yield run
            run, boot = [], ""
    if run:
        yield run


def _run(entries: Sequence[Entry]) -> Run:
    times = [time_of(each) for each in entries]
    return Run(started=min(times), ended=max(times))


def _switches(switches: Sequence[Switch], groups: Mapping[str, str]) -> list[SwitchRecord]:
    """Return the records, with negative ids: this run counts its own from 1 on."""
    latest = [each for each in switches if each.target in groups][-MOST_REMEMBERED:]
    return [
        SwitchRecord(
            id=number - len(latest),
            group=groups[each.target],
            source=each.source,
            target=each.target,
            started=each.started,
            ended=each.ended,
            result=each.result,
            reason=each.reason,
            drain_secs=round(each.drain_s, 3),
            hook_secs=round(each.hooks_s, 3),
            evicts=tuple(each.evicts) or tuple(filter(None, [each.source])),
        )
        for number, each in enumerate(latest)
    ]


def _counts(requests: Iterable[Request]) -> Iterator[Counts]:
    """Yield the numbers of requests in flight and waiting, where they have changed."""
    changes: dict[float, dict[str, list[int]]] = defaultdict(lambda: defaultdict(lambda: [0, 0]))
    for each in requests:
        admitted = each.ended if each.admitted is None else each.admitted
        for at, running, waiting in (
            (each.arrived, 0, 1),
            (admitted, 1, -1),
            (each.ended, -1, 0),
        ):
            change = changes[at // COUNT_EVERY_S * COUNT_EVERY_S][each.model]
            change[0] += running
            change[1] += waiting
    now: dict[str, tuple[int, int]] = defaultdict(lambda: (0, 0))
    for at in sorted(changes):
        changed = {}
        for model, (running, waiting) in changes[at].items():
            if (running, waiting) != (0, 0):
                changed[model] = now[model] = now[model][0] + running, now[model][1] + waiting
        if changed:
            yield Counts(at=at + COUNT_EVERY_S, models=changed)
