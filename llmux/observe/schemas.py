"""What the control API says and takes, as JSON.

Points in time (`at`, `since`, `started`, ...) are Unix times in seconds, durations end in `_secs`.
The OpenAPI document is made of these classes; see `llmux.api.openapi`.
"""

from __future__ import annotations

from typing import Any, Literal

import msgspec

ModelState = Literal["asleep", "waking", "awake", "draining", "sleeping", "failed"]
GroupState = Literal["idle", "active", "switching"]
ModeName = Literal["auto", "manual"]
RequestPhase = Literal["reading", "waiting", "forwarding", "answering", "ended"]
SwitchResult = Literal["success", "failure", "abandoned"]


class Shape(msgspec.Struct, frozen=True, kw_only=True):
    """What llmux says."""


class Order(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What llmux is told; unknown keys are mistakes."""


# ---- What llmux is told ----


class ModelOrder(Order, frozen=True):
    """Which model; aliases count.

    Attributes:
        model: Its name.
    """

    model: str


class ModeOrder(Order, frozen=True):
    """Which mode.

    Attributes:
        mode: manual: nothing but orders switches; requests for a model that is not awake get 503.
    """

    mode: ModeName


class PinOrder(Order, frozen=True):
    """Keep a model awake.

    Attributes:
        model: Its name.
        wait: Whether requests for the group's other models wait until it is unpinned; else they
            get 503.
    """

    model: str
    wait: bool = False


class UnpinOrder(Order, frozen=True):
    """Pin a model no more.

    Attributes:
        group: Whose pin; none: every group's, and the mode becomes auto.
    """

    group: str | None = None


# ---- What llmux says ----


class Message(Shape, frozen=True):
    """It is done.

    Attributes:
        message: What.
    """

    message: str


class Alive(Shape, frozen=True):
    """What a model's alive hook says.

    Attributes:
        model: Its name.
        alive: Whether the hook has exited 0.
    """

    model: str
    alive: bool


class Pin(Shape, frozen=True):
    """A model that its group keeps awake.

    Attributes:
        model: Which.
        wait: Whether requests for others wait; else they get 503.
    """

    model: str
    wait: bool


class PhaseChange(Shape, frozen=True):
    """A model has changed its state.

    Attributes:
        at: When.
        model: Which.
        state: What it is now.
        left: What it was.
    """

    at: float
    model: str
    state: ModelState
    left: ModelState


class SwitchRecord(Shape, frozen=True, rename={"source": "from", "target": "to"}):
    """A switch, told when it begins and again when it has ended.

    Attributes:
        id: Its number since the start of llmux.
        group: Where.
        source: What was awake; null: nothing.
        target: What is to be awake.
        started: When it began.
        ended: When it was over; null: it runs.
        result: How it ended; null: it runs.
        reason: Why, in words.
        rule: Which rule of the policy, or who else has decided: forced, pinned, standby, ...
        request: The request that had waited longest for it, if any did.
        waiting: How many waited for it when it began.
        expected_secs: How long it should take: what its hooks and the drain took before; null:
            nobody knows.
        drain_secs: Of the whole, until the last request of the source had ended.
        hook_secs: Of the whole, run time of hooks.
        error: Why it failed.
    """

    id: int
    group: str
    source: str | None
    target: str
    started: float
    ended: float | None = None
    result: SwitchResult | None = None
    reason: str = ""
    rule: str = ""
    request: str | None = None
    waiting: int = 0
    expected_secs: float | None = None
    drain_secs: float = 0.0
    hook_secs: float = 0.0
    error: str | None = None


class HookRun(Shape, frozen=True):
    """A run of a hook, told when it begins and again when it has ended.

    Attributes:
        model: Whose.
        hook: Which.
        started: When.
        duration_secs: How long it took; null: it runs.
        ok: Whether it succeeded; null: it runs.
        error: Why it failed.
        output: The last lines that it printed.
    """

    model: str
    hook: str
    started: float
    duration_secs: float | None = None
    ok: bool | None = None
    error: str | None = None
    output: str = ""


class Counts(Shape, frozen=True):
    """How many requests there are, for the models where that has changed.

    Attributes:
        at: When.
        models: In flight and waiting, by model.
    """

    at: float
    models: dict[str, tuple[int, int]]


class RequestInfo(Shape, frozen=True):
    """A request for a model.

    Attributes:
        id: Its name as long as llmux runs.
        model: What it is for; empty while that is not known, and for the fallback.
        phase: reading: its body arrives; waiting: for the model; forwarding: the model has said
            nothing yet; answering: the answer is on its way.
        arrived: When it came.
        waited_secs: How long it has waited for its model.
        client: Where it comes from.
        method: Its method.
        path: Its path, without the query.
        bytes_in: Length of its body.
        bytes_out: How much of the answer was sent.
        ended: When it ended.
        status: What it was counted as; 499: its client left.
        first_byte_secs: How long after its arrival the first byte of the answer's body came; null:
            none has.
        tokens_in: Tokens of what was asked, once the answer is over and has told of them.
        tokens_out: Tokens of the answer, likewise.
    """

    id: str
    model: str
    phase: RequestPhase
    arrived: float
    waited_secs: float
    client: str | None
    method: str
    path: str
    bytes_in: int
    bytes_out: int
    ended: float | None = None
    status: int | None = None
    first_byte_secs: float | None = None
    tokens_in: int | None = None
    tokens_out: int | None = None


class RequestList(Shape, frozen=True):
    """The requests that are being served, oldest first.

    Attributes:
        at: When.
        total: How many there are.
        requests: The oldest of them.
    """

    at: float
    total: int
    requests: list[RequestInfo]


class RequestChanges(Shape, frozen=True):
    """What has become of requests since the last such event.

    A request that came and went in between is told of once, as ended.

    Attributes:
        at: When.
        changed: Those whose phase has changed.
        ended: Those that have ended.
        omitted: How many more there were of both: an event tells of so many only.
    """

    at: float
    changed: list[RequestInfo]
    ended: list[RequestInfo]
    omitted: int = 0


class TokenRates(Shape, frozen=True):
    """How many tokens answers have a second, for the models where that has changed.

    Attributes:
        at: When.
        models: Tokens a second, by model: see `tokens_per_sec` of a model.
    """

    at: float
    models: dict[str, float]


class ModeChange(Shape, frozen=True):
    """The mode has changed.

    Attributes:
        at: When.
        mode: What it is now.
    """

    at: float
    mode: ModeName


class PinChange(Shape, frozen=True):
    """A group has been pinned or unpinned.

    Attributes:
        at: When.
        group: Which.
        pinned: To what; null: it is free.
    """

    at: float
    group: str
    pinned: Pin | None


class Reloaded(Shape, frozen=True):
    """The config was read again.

    Attributes:
        at: When.
        ok: Whether it is used.
        mistakes: Why not.
        models: The models there are now.
        needs_restart: Keys whose new values count from the next start only.
    """

    at: float
    ok: bool
    models: list[str]
    mistakes: list[str] = []
    needs_restart: list[str] = []


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
    """What has happened in the last hour, as far as it is remembered.

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


class ModelFacts(Shape, frozen=True):
    """What llmux has to say of a model in OpenAI's list.

    Attributes:
        state: What it is doing.
        in_flight: Requests being served.
        queued: Requests waiting.
        alias_of: The model that an alias stands for; there for aliases only.
    """

    state: ModelState
    in_flight: int
    queued: int
    alias_of: str | msgspec.UnsetType = msgspec.UNSET


class ModelObject(Shape, frozen=True):
    """A model, as OpenAI's API shows it.

    Attributes:
        id: Its name.
        object: Always `model`.
        created: When llmux was started.
        owned_by: Always `llmux`.
        llmux: What it is doing.
    """

    id: str
    object: Literal["model"]
    created: int
    owned_by: Literal["llmux"]
    llmux: ModelFacts


class ModelList(Shape, frozen=True):
    """All models.

    Attributes:
        object: Always `list`.
        data: By name.
    """

    object: Literal["list"]
    data: list[ModelObject]


class OllamaDetails(Shape, frozen=True):
    """What Ollama says of a model's file, of which llmux knows nothing.

    Attributes:
        parent_model: Empty.
        format: Empty.
        family: Empty.
        families: Empty.
        parameter_size: Empty.
        quantization_level: Empty.
    """

    parent_model: str
    format: str
    family: str
    families: list[str]
    parameter_size: str
    quantization_level: str


class OllamaTag(Shape, frozen=True):
    """A model in Ollama's list.

    Attributes:
        name: Its name.
        model: The same.
        size: 0: llmux does not know it.
        digest: Made of its name.
        details: Empty.
        modified_at: When llmux was started.
    """

    name: str
    model: str
    size: int
    digest: str
    details: OllamaDetails
    modified_at: str


class OllamaTags(Shape, frozen=True):
    """All models, in Ollama's form.

    Attributes:
        models: By name.
    """

    models: list[OllamaTag]


class OllamaRunning(Shape, frozen=True):
    """A model that is awake, in Ollama's form.

    Attributes:
        name: Its name.
        model: The same.
        size: 0: llmux does not know it.
        digest: Made of its name.
        details: Empty.
        expires_at: In a hundred years: llmux decides when it sleeps.
        size_vram: 0: llmux does not know it.
    """

    name: str
    model: str
    size: int
    digest: str
    details: OllamaDetails
    expires_at: str
    size_vram: int


class OllamaProcesses(Shape, frozen=True):
    """The models that are awake, in Ollama's form.

    Attributes:
        models: By name.
    """

    models: list[OllamaRunning]


class OllamaVersion(Shape, frozen=True):
    """The version, in Ollama's form.

    Attributes:
        version: Of llmux.
    """

    version: str


class ErrorDetail(Shape, frozen=True):
    """What is wrong.

    Attributes:
        message: In words.
        type: Always `llmux_error`.
        param: Always null.
        code: For programs.
    """

    message: str
    type: Literal["llmux_error"]
    param: None
    code: str


class OllamaError(Shape, frozen=True):
    """An error, in Ollama's form.

    Attributes:
        error: In words.
        code: For programs.
    """

    error: str
    code: str


class Error(Shape, frozen=True):
    """An error, in OpenAI's form.

    Attributes:
        error: What is wrong.
    """

    error: ErrorDetail
