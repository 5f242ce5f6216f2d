"""The OpenAPI document of llmux's own paths, made from `llmux.observe.schemas`.

`python -m llmux.api.openapi` prints it, for `docs/openapi.json`; a test compares that file, and the
app's routes, with this module.
"""

from __future__ import annotations

import functools
import inspect
import json
from dataclasses import dataclass, field
from typing import Any

import msgspec

from llmux import __version__
from llmux.errors import (
    BadRequest,
    ConfigMistakes,
    Forbidden,
    GroupNotFound,
    HookError,
    InvalidKey,
    LlmuxError,
    ModelNotFound,
    NotReady,
    PinLost,
    ReadKey,
    RequestNotFound,
    ShuttingDown,
)
from llmux.http.paths import CONTROL_PATHS, is_below
from llmux.observe.schemas import (
    Alive,
    Error,
    Health,
    History,
    Journal,
    Message,
    ModelHealth,
    ModelList,
    ModelObject,
    ModelOrder,
    ModeOrder,
    OllamaError,
    OllamaProcesses,
    OllamaTags,
    OllamaVersion,
    Outlook,
    PinOrder,
    Readiness,
    RequestList,
    RunningModels,
    Status,
    Unloaded,
    UnpinOrder,
)

JSON = "application/json"
TEXT = "text/plain"
EVENTS = "text/event-stream"

ABOUT = """llmux's own paths. Every other path, with any method, is model traffic: it goes to the
server of the model that the request names."""


@dataclass(frozen=True)
class Query:
    """A query parameter, as OpenAPI has it."""

    name: str
    description: str
    schema: dict[str, Any]
    required: bool = False


@dataclass(frozen=True)
class Operation:
    """One method of one path.

    Attributes:
        method: get, post or delete.
        path: Its path, with parameters in braces.
        description: Its first sentence is the summary.
        response: Schema of the answer, or its media type.
        request: Schema of the request's body; None for no body.
        request_is_optional: True if the body may be left out.
        errors: Errors beside those of every path.
        query: Query parameters.
        redirect: When it answers 302, and where to; empty if never.
    """

    method: str
    path: str
    description: str
    response: Any
    request: Any = None
    request_is_optional: bool = False
    errors: tuple[type[LlmuxError], ...] = ()
    query: tuple[Query, ...] = field(default=())
    redirect: str = ""

    @property
    def steers(self) -> bool:
        """True if a read key does not open it."""
        return is_below(self.path.encode(), CONTROL_PATHS) and (
            self.method != "get" or self.path in {"/unload", "/control/alive"}
        )


COUNT = {"type": "number", "minimum": 0}
UNHEALTHY: dict[Any, str] = {
    Health: "The switcher has stopped",
    Readiness: "Cordoned, stopping or dead",
    ModelHealth: "A request would be refused, or the model is not awake",
}
"""When these answer 503."""

ORDERS = (ModelNotFound, BadRequest, HookError, NotReady, ShuttingDown)

OPERATIONS = (
    Operation("get", "/v1/models", "The models, as OpenAI lists them.", ModelList),
    Operation("get", "/v1/models/{name}", "One model; an alias counts.", ModelObject,
              errors=(ModelNotFound,)),
    Operation("get", "/models", "The same as /v1/models.", ModelList),
    Operation("get", "/models/{name}", "The same as /v1/models/{name}.", ModelObject,
              errors=(ModelNotFound,)),
    Operation("get", "/", "A sign of life, which leads browsers to the live page. "
              "Other methods than GET and HEAD are model traffic.", TEXT,
              redirect="To /ui/, if text/html is accepted."),
    Operation("get", "/api/tags", "The models, as Ollama lists them.", OllamaTags),
    Operation("get", "/api/ps", "The awake models, as Ollama lists them.",
              OllamaProcesses),
    Operation("get", "/api/version", "The version of Ollama whose answers llmux copies.",
              OllamaVersion),
    Operation("get", "/running", "The models that are not asleep, as llama-swap lists them.",
              RunningModels),
    Operation("get", "/unload", "Put all models to sleep, as llama-swap does; answers once they "
              "are. Needs what /control needs.", TEXT, errors=(HookError, ShuttingDown)),
    Operation("post", "/unload", "The same.", TEXT, errors=(HookError, ShuttingDown)),
    Operation("post", "/api/models/unload", "The same as /unload.", Unloaded,
              errors=(HookError, ShuttingDown)),
    Operation("post", "/api/models/unload/{model}", "Put a model to sleep, as /control/sleep does.",
              TEXT, errors=(ModelNotFound, HookError, ShuttingDown)),
    Operation("get", "/metrics", "Metrics for Prometheus.", TEXT),
    Operation("get", "/health", "llmux's health; 503 if the switcher has stopped.", Health),
    Operation("get", "/health/ready", "Whether this host takes new requests; 503 if it is "
              "cordoned, stopping or dead.", Readiness),
    Operation("get", "/health/models/{name}", "Whether a request for a model would be served now, "
              "though perhaps after a wait; an alias counts. 503 if not. Needs a key if there are "
              "api_keys.", ModelHealth, errors=(ModelNotFound, BadRequest),
              query=(Query("awake", "503 also if the model is not awake.",
                           {"type": "string", "enum": ["", "true", "false"]}),)),
    Operation("get", "/control/status", "The current status of groups and models.", Status),
    Operation("get", "/control/outlook", "What a request for each model would meet now: for what "
              "chooses among several hosts.", Outlook),
    Operation("get", "/control/history", "What happened in the last hour.", History,
              errors=(BadRequest,),
              query=(Query("secs", "Seconds to look back, at most 3600.", COUNT),)),
    Operation("get", "/control/events", "A stream of events: `status` (Status), `phase` "
              "(PhaseChange), `switch` (SwitchRecord), `hook` (HookRun), `counts` (Counts), "
              "`requests` (RequestChanges), `tokens` (TokenRates), `alive` (AliveChange), "
              "`failing` (FailingChange), `memory` (MemoryChange), `mode` (ModeChange), "
              "`cordon` (CordonChange), `pin` (PinChange), `reload` (Reloaded), "
              "`outlook` (Outlook), `lagged`. Continues after `Last-Event-ID`.",
              EVENTS,
              query=(Query("last_event_id", "The same as the header.", {"type": "string"}),)),
    Operation("get", "/control/requests", "The requests under way, oldest first.", RequestList,
              errors=(BadRequest,),
              query=(Query("limit", "Limit for requests; at most 1000.", COUNT),)),
    Operation("delete", "/control/requests/{request_id}", "Cancel a request.", Message,
              errors=(RequestNotFound,)),
    Operation("get", "/control/alive", "Run a model's alive hook. Needs what orders need.", Alive,
              errors=(ModelNotFound,),
              query=(Query("model", "Name or alias.", {"type": "string"}, required=True),)),
    Operation("get", "/control/logs/{model}", "The output of a model's hooks and server.", TEXT,
              errors=(ModelNotFound, BadRequest),
              query=(Query("tail", "Number of last lines; at most 10000.", COUNT),
                     Query("follow", "Keep the stream open for new lines.",
                           {"type": "string", "enum": ["true", "false"]}))),
    Operation("get", "/control/log", "llmux's own log: the last events, as on standard error.",
              TEXT, errors=(BadRequest,),
              query=(Query("tail", "Number of last events; at most 2000 are kept.", COUNT),
                     Query("follow", "Keep the stream open for new events.",
                           {"type": "string", "enum": ["true", "false"]}))),
    Operation("get", "/control/journal", "The latest entries of the journal.", Journal,
              errors=(BadRequest,),
              query=(Query("since", "Only entries that ended after this Unix time.", COUNT),
                     Query("limit", "Limit for entries; at most 10000.", COUNT))),
    Operation("get", "/control/config", "The config in use, without its secrets.", dict[str, Any]),
    Operation("get", "/control/openapi.json", "This document.", dict[str, Any]),
    Operation("post", "/control/switch", "Switch to a model; answers once it is awake.", Message,
              request=ModelOrder, errors=ORDERS),
    Operation("post", "/control/wake", "The same as /control/switch.", Message,
              request=ModelOrder, errors=ORDERS),
    Operation("post", "/control/sleep", "Drain a model and put it to sleep. A request for it wakes "
              "it again.", Message, request=ModelOrder, errors=ORDERS),
    Operation("post", "/control/mode", "Switch by policy (auto), or on orders only (manual).",
              Message, request=ModeOrder, errors=(BadRequest,)),
    Operation("post", "/control/cordon", "Refuse new requests with 503 `cordoned`; those in line "
              "or in flight are served. A reload keeps this, a restart does not.", Message),
    Operation("post", "/control/uncordon", "Admit new requests again.", Message),
    Operation("post", "/control/pin", "Switch to a model and keep it awake.", Message,
              request=PinOrder, errors=(*ORDERS, PinLost)),
    Operation("post", "/control/unpin", "Remove the pins of a group, or of a model. Without "
              "either: remove all pins and switch by policy.", Message, request=UnpinOrder,
              request_is_optional=True, errors=(BadRequest, GroupNotFound, ModelNotFound)),
    Operation("post", "/control/reload", "Reload the config file.", Message,
              errors=(ConfigMistakes,)),
)  # fmt: skip


@functools.cache
def openapi() -> dict[str, Any]:
    shapes = {
        each for o in OPERATIONS for each in (o.response, o.request) if isinstance(each, type)
    }
    wanted = [
        *sorted((s for s in shapes if issubclass(s, msgspec.Struct)), key=str),
        Error,
        OllamaError,
    ]
    _, components = msgspec.json.schema_components(wanted, ref_template=REF)
    for shape in components.values():  # Python strips the indentation itself since 3.13
        shape["description"] = inspect.cleandoc(shape["description"])
    paths: dict[str, Any] = {}
    for each in OPERATIONS:
        paths.setdefault(each.path, {})[each.method] = _operation(each)
    return {
        "openapi": "3.1.0",
        "info": {"title": "llmux", "version": __version__, "description": ABOUT},
        "paths": paths,
        "components": {
            "schemas": components,
            "securitySchemes": {
                "bearer": {"type": "http", "scheme": "bearer"},
                "key": {"type": "apiKey", "in": "header", "name": "x-api-key"},
            },
        },
        # No key is needed where none is configured.
        "security": [{}, {"bearer": []}, {"key": []}],
    }


REF = "#/components/schemas/{name}"


def _operation(operation: Operation) -> dict[str, Any]:
    described: dict[str, Any] = {
        "operationId": _operation_id(operation),
        "summary": operation.description.partition(".")[0],
        "description": operation.description,
        "responses": _responses(operation),
    }
    parameters = [
        {"name": part, "in": "path", "required": True, "schema": {"type": "string", "minLength": 1}}
        for part in _parts(operation.path)
    ]
    parameters += [
        {
            "name": query.name,
            "in": "query",
            "required": query.required,
            "description": query.description,
            "schema": query.schema,
        }
        for query in operation.query
    ]
    if parameters:
        described["parameters"] = parameters
    if operation.request is not None:
        described["requestBody"] = {
            "required": not operation.request_is_optional,
            "content": {JSON: {"schema": {"$ref": REF.format(name=operation.request.__name__)}}},
        }
    return described


def _responses(operation: Operation) -> dict[str, Any]:
    response = operation.response
    if isinstance(response, str):
        content = {response: {"schema": {"type": "string"}}}
    elif isinstance(response, type) and issubclass(response, msgspec.Struct):
        content = {JSON: {"schema": {"$ref": REF.format(name=response.__name__)}}}
    else:
        content = {JSON: {"schema": {"type": "object"}}}
    responses: dict[str, Any] = {"200": {"description": "Done", "content": content}}
    if operation.redirect:
        responses["302"] = {"description": operation.redirect}
    errors: list[type[LlmuxError]] = [InvalidKey, *operation.errors]
    if is_below(operation.path.encode(), CONTROL_PATHS):
        errors += [Forbidden, ReadKey] if operation.steers else [Forbidden]
    is_ollamas = operation.path.startswith("/api/") and Forbidden not in errors
    told = OllamaError if is_ollamas else Error
    if operation.response in UNHEALTHY:
        responses["503"] = {"description": UNHEALTHY[operation.response], "content": content}
    for error in sorted(set(errors), key=lambda each: (each.status, each.code)):
        codes = sorted({e.code for e in errors if e.status == error.status})
        responses[str(error.status)] = {
            "description": ", ".join(codes),
            "content": {JSON: {"schema": {"$ref": REF.format(name=told.__name__)}}},
        }
    return responses


def _parts(path: str) -> list[str]:
    return [part[1:-1] for part in path.split("/") if part.startswith("{")]


def _operation_id(operation: Operation) -> str:
    words = operation.path.replace("{", "").replace("}", "").replace(".", "_").split("/")
    return "_".join([operation.method, *filter(None, words)])


if __name__ == "__main__":
    print(json.dumps(openapi(), indent=2))  # noqa: T201
