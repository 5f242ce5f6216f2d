"""The state of llmux: now, and in the last hour."""

from __future__ import annotations

from typing import Any, Literal

from llmux.observe.schemas.base import ModelState, ModeName, Shape
from llmux.observe.schemas.operators import Pin
from llmux.observe.schemas.requests import Counts
from llmux.observe.schemas.switches import HookRun, PhaseChange, SwitchRecord

GroupState = Literal["idle", "active", "switching"]


class Alive(Shape, frozen=True):
    """Outcome of a model's alive hook.

    Attributes:
        model: Its name.
        alive: Whether the hook has exited 0.
    """

    model: str
    alive: bool


class ModelStatus(Shape, frozen=True):
    """A model.

    Attributes:
        group: Its group.
        state: What it is doing.
        since: Since when.
        in_flight: Requests being served.
        queued: Requests waiting.
        awake: Whether it admits requests.
        oldest_wait_secs: How long the first in line has waited; null: nobody waits.
        last_error: Why the last try to wake it failed; null after a success.
        retry_in_secs: After a failure, when it may be tried again.
        cost_secs: Hook time of a switch from what is awake now; null: never seen.
        eta_secs: About how long a request that came now would wait, should the switch begin at
            once; null: nobody knows.
        aliases: Other names of it.
        backend: The URL of its server.
        max_in_flight: How many requests it takes at a time; null: any number.
        idle_sleep_secs: How long unused it stays awake; null: for ever.
        hooks: The hooks that it has.
        tokens_per_sec: Tokens of its answers that ended in the last minute, by the second, as far
            as they told of them.
    """

    group: str
    state: ModelState
    since: float
    in_flight: int
    queued: int
    awake: bool
    oldest_wait_secs: float | None
    last_error: str | None
    retry_in_secs: float | None
    cost_secs: float | None
    eta_secs: float | None
    aliases: list[str]
    backend: str
    max_in_flight: int | None
    idle_sleep_secs: float | None
    hooks: list[str]
    tokens_per_sec: float = 0.0


class GroupStatus(Shape, frozen=True):
    """A group: models that share a GPU.

    Attributes:
        state: switching, active (a model is awake) or idle.
        since: Since when its model is in the state that it is in.
        active_model: The model that is awake.
        models: All of them.
        pinned: What it is pinned to; null: nothing.
        switch: The switch that runs; null: none does.
        standby: The model that is woken when nothing else is wanted; null: none.
    """

    state: GroupState
    since: float
    active_model: str | None
    models: list[str]
    pinned: Pin | None
    switch: SwitchRecord | None
    standby: str | None


class Status(Shape, frozen=True):
    """All there is to know at this instant.

    Attributes:
        at: When this was said.
        version: llmux's version.
        boot: Another one after each start; events and requests of another boot are strangers.
        started: When llmux started.
        state: switching while any group is, else active if any is, else idle.
        active_model: The model that is awake; with several groups, the first one's that has any.
        mode: auto or manual.
        policy: The name of the policy.
        queue_depth: How many requests wait, by model.
        groups: By name.
        models: By name.
        estimated_costs: Hook seconds of a switch, by what is left (`idle`: nothing) and what is
            woken.
    """

    at: float
    version: str
    boot: str
    started: float
    state: GroupState
    active_model: str | None
    mode: ModeName
    policy: str
    queue_depth: dict[str, int]
    groups: dict[str, GroupStatus]
    models: dict[str, ModelStatus]
    estimated_costs: dict[str, dict[str, float]]


class History(Shape, frozen=True):
    """Events of the last hour, as far as they are remembered.

    Attributes:
        at: When this was said.
        last_event_id: Events after this one are news.
        phases: Changes of state, oldest first; the first of a model says what it was before.
        switches: Oldest first.
        hooks: Oldest first.
        counts: Oldest first; where a model is missing, nothing has changed.
    """

    at: float
    last_event_id: str
    phases: list[PhaseChange]
    switches: list[SwitchRecord]
    hooks: list[HookRun]
    counts: list[Counts]


class Journal(Shape, frozen=True):
    """Entries of the journal; `llmux.observe.journal` says what is in them.

    Attributes:
        entries: Oldest first.
    """

    entries: list[dict[str, Any]]


class Health(Shape, frozen=True):
    """Whether llmux can make progress.

    Attributes:
        status: ok, or why not.
    """

    status: str
