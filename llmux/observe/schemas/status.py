"""The state of llmux: now, and in the last hour."""

from __future__ import annotations

from typing import Any, Literal

import msgspec

from llmux.observe.schemas.base import ModelState, ModeName, Shape
from llmux.observe.schemas.memory import ResourceMemory
from llmux.observe.schemas.operators import Pin
from llmux.observe.schemas.outlook import HostState
from llmux.observe.schemas.requests import Counts
from llmux.observe.schemas.switches import AliveTrouble, HookRun, PhaseChange, SwitchRecord

GroupState = Literal["idle", "active", "switching"]


class Alive(Shape, frozen=True):
    """The result of a model's alive hook.

    Attributes:
        model: The model's name.
        alive: True if the hook exited with 0.
    """

    model: str
    alive: bool


class ModelStatus(Shape, frozen=True):
    """The state of a model.

    Attributes:
        group: Its group.
        state: Its state.
        since: When it entered this state.
        in_flight: Number of requests in flight.
        queued: Number of requests that wait.
        awake: True if it admits requests.
        oldest_wait_secs: Time that the oldest waiting request has waited; null: none waits.
        last_error: Why the last attempt to wake it or put it to sleep failed; null after a
            successful wake.
        retry_in_secs: After a failed wake, time until the next attempt is allowed.
        cost_secs: Expected hook time of a switch to it, from the models that are awake now; null:
            unknown.
        eta_secs: Expected wait of a request that arrives now: the policy is asked what it would do.
            In manual mode, and with a pin, as if the switch began at once. null: unknown, since it
            was never woken, or its wake keeps failing.
        aliases: Other names for it.
        backend: The URL of its server.
        max_in_flight: Limit of the requests in flight; null: no limit.
        idle_sleep_secs: Time without requests after which it is put to sleep; null: never.
        hooks: The names of its hooks.
        failing: True if its wake keeps failing: `policy.wake_failures` times in a row. It is tried
            again only while no other model of its group is served, or by an operator; meanwhile its
            requests get 503 `model_failing`.
        failed_wakes: Number of failed wakes in a row.
        alive_trouble: The failures of its alive hook in a row; null: it has succeeded, or is not
            awake.
        tokens_per_sec: Tokens per second of the responses that ended in the last minute, as far as
            they reported them.
        kept: True if it is evicted for no other model, but only by an operator (`keep`).
        stopped: True if it sleeps, and its stop hook has run since.
        needs: What it needs of the memory that its group shares while it is awake, in bytes by
            resource; null: it shares none, or is awake alone, for example until it was measured.
        needs_asleep: What it needs while it sleeps; null: it shares none.
        needs_waking: What it needs while it wakes; null as for `needs`.
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
    failing: bool = False
    failed_wakes: int = 0
    alive_trouble: AliveTrouble | None = None
    tokens_per_sec: float = 0.0
    kept: bool = False
    stopped: bool = False
    needs: dict[str, int] | None = None
    needs_asleep: dict[str, int] | None = None
    needs_waking: dict[str, int] | None = None


class GroupStatus(Shape, frozen=True):
    """The state of a group, that is, of models that share a GPU.

    Attributes:
        state: switching, active (a model is awake) or idle.
        since: When the last change of a model's state happened.
        active_model: The model that is awake, the first if several are; null: none is.
        models: The names of its models.
        pinned: Its last pin; null: it is not pinned.
        switch: The running switch, the first if several are; null: none is running.
        standby: The model that is woken while the group is idle; null: none.
        stays: Why the models that are awake stay, although requests wait for others; null: none do,
            or the policy does not say.
        awake_models: All models that are awake.
        switches: All running switches, in the order in which they began.
        pins: All pins in force, the last one first.
        memory: The memory that its models share; empty: one of them is awake at a time, or they
            share none that has a size.
    """

    state: GroupState
    since: float
    active_model: str | None
    models: list[str]
    pinned: Pin | None
    switch: SwitchRecord | None
    standby: str | None
    stays: str | None = None
    awake_models: list[str] = []  # noqa: RUF012 - msgspec copies it
    switches: list[SwitchRecord] = []  # noqa: RUF012
    pins: list[Pin] = []  # noqa: RUF012
    memory: list[ResourceMemory] = []  # noqa: RUF012


class Gpu(Shape, frozen=True):
    """A GPU of this machine, as nvidia-smi reports it.

    Attributes:
        index: Its number.
        name: The name of the product.
        memory_used_bytes: Memory in use; null: unknown.
        memory_total_bytes: Its memory; null: unknown.
        utilization: Share of the last moment in which it computed, from 0 to 1; null: unknown.
    """

    index: int
    name: str
    memory_used_bytes: int | None
    memory_total_bytes: int | None
    utilization: float | None


class Status(Shape, frozen=True):
    """The state of llmux.

    Attributes:
        at: When this was sent.
        version: The version of llmux.
        boot: Identifies this start of llmux; ids of events and requests are only valid within it.
        started: When llmux started.
        state: switching if any group is switching, else active if any is active, else idle.
        active_model: The model that is awake; null: none is. With several, the first one.
        mode: auto or manual.
        cordoned: True while new requests are refused.
        policy: The name of the policy.
        queue_depth: Number of requests that wait, by model.
        groups: The groups, by name.
        models: The models, by name.
        estimated_costs: Expected hook time of a switch in seconds, by the model left (`idle`: none)
            and the model woken.
        gpus: The GPUs, if nvidia-smi is there, and has answered in the last 30 seconds. It runs
            only while the status or the metrics are read.
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
    gpus: list[Gpu] = []  # noqa: RUF012 - msgspec copies it
    cordoned: bool = False


class Run(Shape, frozen=True):
    """A time in which llmux ran.

    Attributes:
        started: When it started.
        ended: When it ended, or the time of its last journal entry if it was killed; null: it runs.
    """

    started: float
    ended: float | None = None


class History(Shape, frozen=True):
    """Events of the last hour, as far as they are remembered.

    Events of earlier runs are read from the journal at the start. They have no hooks, and their
    switches have negative ids.

    Attributes:
        at: When this was sent.
        last_event_id: Continue an event stream from here to miss nothing.
        phases: Changes of models' states, oldest first.
        switches: Switches, oldest first.
        hooks: Runs of hooks, oldest first.
        counts: Numbers of requests, oldest first, each with only the models that have changed.
        runs: The times in which llmux ran, oldest first; nothing is known of the time between.
    """

    at: float
    last_event_id: str
    phases: list[PhaseChange]
    switches: list[SwitchRecord]
    hooks: list[HookRun]
    counts: list[Counts]
    runs: list[Run] = []  # noqa: RUF012 - msgspec copies it


class Journal(Shape, frozen=True):
    """Entries of the journal; see `llmux.observe.journal` for their fields.

    Attributes:
        entries: The entries, oldest first.
    """

    entries: list[dict[str, Any]]


class Readiness(Shape, frozen=True):
    """Whether this host takes new requests.

    Attributes:
        status: ready, or why new requests are refused.
    """

    status: HostState


class ModelHealth(Shape, frozen=True):
    """Whether a request for a model would be served now.

    Attributes:
        awake: True if the model admits requests. Otherwise one that is served waits for it.
        code: The `error.code` that a request would get; only present then, or if `awake` was asked
            for and is false.
    """

    awake: bool
    code: str | msgspec.UnsetType = msgspec.UNSET


class Health(Shape, frozen=True):
    """The health of llmux.

    Attributes:
        status: ok, or the reason why llmux cannot switch.
        failing_models: Number of models whose wake keeps failing; only present if there are any.
    """

    status: str
    failing_models: int | msgspec.UnsetType = msgspec.UNSET
