"""The state of a llmux, kept up to date by its events."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Iterable
from typing import Any

import msgspec
from msgspec.structs import replace

from llmux.cli.terminal.several import switches_of
from llmux.observe.schemas import (
    AliveChange,
    CordonChange,
    Counts,
    FailingChange,
    GroupStatus,
    History,
    MemoryChange,
    ModeChange,
    ModelStatus,
    Outlook,
    PhaseChange,
    PinChange,
    RequestChanges,
    RequestInfo,
    RequestList,
    Status,
    SwitchRecord,
    TokenRates,
)

KEPT_SWITCHES = 50
KEPT_SAMPLES = 60

KINDS: dict[str, type[Any]] = {
    "status": Status,
    "phase": PhaseChange,
    "switch": SwitchRecord,
    "counts": Counts,
    "requests": RequestChanges,
    "tokens": TokenRates,
    "alive": AliveChange,
    "failing": FailingChange,
    "memory": MemoryChange,
    "mode": ModeChange,
    "outlook": Outlook,
    "cordon": CordonChange,
    "pin": PinChange,
}
"""Events that change the picture."""


class Picture:
    """The shown state, as of the last event.

    Attributes:
        status: Of groups and models; None before the first event.
        switches: The last ones, by number, oldest first.
        queues: How many waited in the last minute, once a second, by model.

    Args:
        clock: Seconds that only ever go forward.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self.status: Status | None = None
        self.switches: dict[int, SwitchRecord] = {}
        self.queues: dict[str, deque[int]] = {}
        # By id, oldest first, and the time of that list.
        self._requests: dict[str, tuple[float, RequestInfo]] = {}
        self._clock = clock
        self._offset_s = 0.0
        self._latest = 0.0  # the last time that was told of

    @property
    def now(self) -> float:
        """The time by llmux's clock, which may differ from ours."""
        return self._clock() + self._offset_s

    def apply(self, name: str, data: bytes) -> None:
        """Apply an event; unknown ones, from a newer llmux, are ignored.

        Raises:
            msgspec.MsgspecError: It is not what it should be.
        """
        kind = KINDS.get(name)
        if kind is not None:
            self._take(msgspec.json.decode(data, type=kind))

    def _take(self, news: object) -> None:
        match news:
            case Status():
                self.set_status(news)
            case RequestChanges():
                self._change_requests(news)
            case SwitchRecord():
                self._note_switches([news])
            case Outlook():
                self._set_outlook(news)
            case CordonChange() if self.status is not None:
                self.status = replace(self.status, cordoned=news.cordoned)
        if self.status is not None:
            self._latest = max(self._latest, getattr(news, "at", 0.0))
            self._change(self.status, news)

    def _change(self, status: Status, news: object) -> None:
        match news:
            case PhaseChange():
                self._set_phase(status, news)
            case Counts():
                self._set_counts(status, news)
            case AliveChange():
                self._set_model(status, news.model, alive_trouble=news.trouble)
            case FailingChange():
                fields = {"failing": news.failing, "failed_wakes": news.failed_wakes}
                self._set_model(status, news.model, **fields, last_error=news.error)
            case TokenRates():
                for name, rate in news.models.items():
                    self._set_model(status, name, tokens_per_sec=rate)
            case SwitchRecord():
                self._set_switch(status, news)
            case PinChange():
                pins = news.pins or ([] if news.pinned is None else [news.pinned])
                self._set_group(status, news.group, pinned=news.pinned, pins=pins)
            case MemoryChange():
                for name, memory in news.groups.items():
                    self._set_group(status, name, memory=memory)
            case ModeChange():
                self.status = replace(status, mode=news.mode)

    def set_status(self, status: Status) -> None:
        """Replace the state with a status, unless events are newer.

        What another start of llmux was doing is gone.
        """
        if self.status is not None and self.status.boot != status.boot:
            self._requests.clear()
            self.switches.clear()
        elif status.at < self._latest:
            return
        self._latest = status.at
        self.status = status
        self._offset_s = status.at - self._clock()

    def set_requests(self, found: RequestList) -> None:
        """Replace the list of requests."""
        self._requests = {request.id: (found.at, request) for request in found.requests}

    def requests_now(self) -> list[RequestInfo]:
        """The requests in progress, oldest first, with waiting times up to now."""
        now = self.now
        return [
            replace(request, waited_secs=request.waited_secs + now - at)
            if request.phase == "waiting"
            else request
            for at, request in self._requests.values()
        ]

    def set_history(self, history: History) -> None:
        """Load the history before the first event."""
        self._note_switches(history.switches)

    def sample(self) -> None:
        """Record the queue lengths; to be called once a second."""
        models = self.status.models if self.status else {}
        self.queues = {name: self.queues.get(name, deque(maxlen=KEPT_SAMPLES)) for name in models}
        for name, model in models.items():
            self.queues[name].append(model.queued)

    def _note_switches(self, records: Iterable[SwitchRecord]) -> None:
        known = self.switches
        for record in records:
            before = known.get(record.id)
            if before is None or before.ended is None:
                known[record.id] = record
        self.switches = {number: known[number] for number in sorted(known)[-KEPT_SWITCHES:]}

    def _change_requests(self, news: RequestChanges) -> None:
        self._requests |= {request.id: (news.at, request) for request in news.changed}
        for request in news.ended:
            self._requests.pop(request.id, None)

    def _set_phase(self, status: Status, news: PhaseChange) -> None:
        self._set_model(
            status, news.model, state=news.state, since=news.at, awake=news.state == "awake"
        )
        model = status.models.get(news.model)
        if model is None or model.group not in status.groups:
            return
        members = status.groups[model.group].models
        states = {n: m.state for n, m in status.models.items() if n in members}
        awake = [name for name in members if states.get(name) == "awake"]
        switching = not {"waking", "draining", "sleeping"}.isdisjoint(states.values())
        self._set_group(
            status,
            model.group,
            active_model=awake[0] if awake else None,
            awake_models=awake,
            since=news.at,
            state="active" if awake else "switching" if switching else "idle",
        )

    def _set_switch(self, status: Status, news: SwitchRecord) -> None:
        group = status.groups.get(news.group)
        if group is None:
            return
        switches = [each for each in switches_of(group) if each.id != news.id]
        if news.ended is None:
            switches.append(news)
        first = switches[0] if switches else None
        self._set_group(status, news.group, switch=first, switches=switches)

    def _set_counts(self, status: Status, news: Counts) -> None:
        for name, (in_flight, queued) in news.models.items():
            model = status.models.get(name)
            if model is None:
                continue
            oldest = model.oldest_wait_secs
            if not queued:
                oldest = None
            elif not model.queued:
                oldest = status.at - news.at  # as of the status: it has waited nothing yet
            status.models[name] = replace(
                model, in_flight=in_flight, queued=queued, oldest_wait_secs=oldest
            )

    def _set_outlook(self, news: Outlook) -> None:
        for name, model in news.models.items():
            if self.status is not None:
                fields = {"eta_secs": model.wait_secs, "cost_secs": model.cost_secs}
                self._set_model(self.status, name, **fields)

    @staticmethod
    def _set_model(status: Status, name: str, **fields: Any) -> None:
        model: ModelStatus | None = status.models.get(name)
        if model is not None:
            status.models[name] = replace(model, **fields)

    @staticmethod
    def _set_group(status: Status, name: str, **fields: Any) -> None:
        group: GroupStatus | None = status.groups.get(name)
        if group is not None:
            status.groups[name] = replace(group, **fields)
