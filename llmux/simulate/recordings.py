"""Read recordings from the files of a journal."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

from msgspec.structs import replace

from llmux.observe.journal import Entry, Phase, Request, Started, Switch, read_journal
from llmux.simulate.replay import Recording
from llmux.simulate.shared_replay import SharedRecording


class BadLines:
    """Lines of a journal that are not valid entries.

    Attributes:
        count: Their number.
        first: The first one's line number and error.
    """

    def __init__(self) -> None:
        self.count = 0
        self.first = ""

    def note(self, number: int, error: ValueError) -> None:
        self.count += 1
        self.first = self.first or f"line {number}: {error}"


def load_recordings(
    paths: Iterable[Path], report: Callable[[str], object] = lambda _remark: None
) -> dict[str, Recording]:
    """Load the recording of each group from the files of a journal.

    Args:
        paths: The files, in any order.
        report: Called with a message for the user about anything that will not be replayed.

    Raises:
        OSError: A file cannot be read.
        ValueError: The files are not a journal, or contain nothing to replay.
    """
    journal = _Entries()
    for path in paths:
        bad = BadLines()
        for entry in read_journal(path, bad.note):
            journal.add(entry)
        if bad.count:
            report(f"{path}: lines skipped: {bad.count}; {bad.first}")
    if not journal.starts or not journal.requests:
        raise ValueError("the journal says of no request, or of no start")
    journal.sort()
    recordings = _by_group(merged(journal.starts), journal, report)
    if not recordings:
        raise ValueError("the journal has no request that can be replayed")
    return recordings


class _Entries:
    """The entries of a journal by kind."""

    def __init__(self) -> None:
        self.starts: list[Started] = []
        self.requests: list[Request] = []
        self.switches: list[Switch] = []
        self.phases: list[Phase] = []

    def add(self, entry: Entry) -> None:
        match entry:
            case Started():
                self.starts.append(entry)
            case Request():
                self.requests.append(entry)
            case Switch():
                self.switches.append(entry)
            case Phase():
                self.phases.append(entry)

    def sort(self) -> None:
        """Bring them into the order of time, since files may come in any order."""
        self.starts.sort(key=lambda start: start.at)
        self.requests.sort(key=lambda request: request.arrived)
        self.switches.sort(key=lambda switch: switch.ended)
        self.phases.sort(key=lambda phase: phase.at)


def _by_group(
    started: Started, journal: _Entries, report: Callable[[str], object]
) -> dict[str, Recording]:
    groups, requests = started.groups, journal.requests
    recordings = {}
    for group in dict.fromkeys(groups.values()):
        arrived = [request for request in requests if groups.get(request.model) == group]
        admissions = [request for request in arrived if request.admitted is not None]
        if admissions:
            own = [switch for switch in journal.switches if groups.get(switch.target) == group]
            found = Recording(started, admissions, len(arrived) - len(admissions), own)
            recordings[group] = _sharing(found, group, journal.phases)
        elif arrived:
            report(f"group {group}: requests skipped: {len(arrived)}; none was let in")
    unknown = [request.model for request in requests if request.model not in groups]
    if unknown:
        names = ", ".join(sorted(set(unknown)))
        report(f"requests skipped: {len(unknown)}; no start in the journal names {names}")
    return recordings


def _sharing(found: Recording, group: str, phases: Sequence[Phase]) -> Recording:
    """Return the recording of a group as one of models that share memory, if they do."""
    started = found.started
    memory = started.memory.get(group)
    if (
        memory is None or not memory.resources
    ):  # one is awake at a time, as in all journals of earlier versions
        return found
    own = [phase for phase in phases if started.groups.get(phase.model) == group]
    return SharedRecording(started, found.requests, found.turned_away, found.switches, memory, own)


def merged(starts: Sequence[Started]) -> Started:
    """Return the last start with the models of all starts, each as last configured."""
    by_model = {model: start for start in starts for model in start.groups}
    return replace(
        starts[-1],
        groups={model: start.groups[model] for model, start in by_model.items()},
        slots={m: start.slots[m] for m, start in by_model.items() if m in start.slots},
        freezes=[model for model, start in by_model.items() if model in start.freezes],
        drains=all(start.drains for start in starts),
    )
