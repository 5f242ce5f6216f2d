"""The OpenAPI document of llmux's own paths, made of `llmux.observe.schemas`.

`docs/openapi.json` is this, written by `python -m llmux.api.openapi`; a test holds both against
each other, and against the app's routes.
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
    RequestNotFound,
    ShuttingDown,
)
from llmux.observe.schemas import (
    Alive,
    Error,
    Health,
    History,
    Journal,
    Message,
    ModelList,
    ModelObject,
    ModelOrder,
    ModeOrder,
    OllamaError,
    OllamaProcesses,
    OllamaTags,
    OllamaVersion,
    PinOrder,
    RequestList,
    Status,
    UnpinOrder,
)

JSON = "application/json"
TEXT = "text/plain"
EVENTS = "text/event-stream"

ABOUT = """llmux's own paths. Every other path, with any method, is model traffic: it goes to the
server of the model that the request names."""


@dataclass(frozen=True)
class Query:
    """A parameter of the query.

    Attributes:
        name: Its name.
        says: What it is.
        schema: Its JSON Schema.
        required: Whether it must be there.
    """

    name: str
    says: str
    schema: dict[str, Any]
    required: bool = False


@dataclass(frozen=True)
class Operation:
    """One thing that can be asked.

    Attributes:
        method: get, post or delete.
        path: Its path; what is in braces is a part of it.
        says: What it does.
        gives: What is said: a shape, or a media type.
        takes: What is told; None: nothing.
        takes_nothing: Whether that may be left out.
        errors: How it may be refused.
        query: What may be asked beside.
    """

    method: str
    path: str
    says: str
    gives: Any
    takes: Any = None
    takes_nothing: bool = False
    errors: tuple[type[LlmuxError], ...] = ()
    query: tuple[Query, ...] = field(default=())


COUNT = {"type": "number", "minimum": 0}
ORDERS = (ModelNotFound, BadRequest, HookError, NotReady, ShuttingDown)

OPERATIONS = (
    Operation("get", "/v1/models", "The models, as OpenAI lists them.", ModelList),
    Operation("get", "/v1/models/{name}", "One model; an alias counts.", ModelObject,
              errors=(ModelNotFound,)),
    Operation("get", "/models", "The same as /v1/models.", ModelList),
    Operation("get", "/models/{name}", "The same as /v1/models/{name}.", ModelObject,
              errors=(ModelNotFound,)),
    Operation("get", "/", "That llmux is running, and where its page is; HTML for browsers. With "
              "any other method it is model traffic.", TEXT),
    Operation("get", "/api/tags", "The models, as Ollama lists them.", OllamaTags),
    Operation("get", "/api/ps", "The models that are awake, as Ollama lists them.",
              OllamaProcesses),
    Operation("get", "/api/version", "The version of llmux, as Ollama says its own.",
              OllamaVersion),
    Operation("get", "/metrics", "Metrics for Prometheus.", TEXT),
    Operation("get", "/health", "Whether llmux can make progress; 503: it cannot.", Health),
    Operation("get", "/control/status", "All there is to know at this instant.", Status),
    Operation("get", "/control/history", "What happened in the last hour.", History,
              errors=(BadRequest,),
              query=(Query("secs", "Of what time, at most 3600.", COUNT),)),
    Operation("get", "/control/events", "What happens, as events: `status` (Status), `phase` "
              "(PhaseChange), `switch` (SwitchRecord), `hook` (HookRun), `counts` (Counts), "
              "`requests` (RequestChanges), `tokens` (TokenRates), `mode` (ModeChange), `pin` "
              "(PinChange), `reload` (Reloaded), `lagged`. Goes on after `Last-Event-ID`.", EVENTS,
              query=(Query("last_event_id", "Like the header.", {"type": "string"}),)),
    Operation("get", "/control/requests", "The requests that are being served.", RequestList,
              errors=(BadRequest,), query=(Query("limit", "How many, at most 1000.", COUNT),)),
    Operation("delete", "/control/requests/{request_id}", "Cancel a request.", Message,
              errors=(RequestNotFound,)),
    Operation("get", "/control/alive", "Run a model's alive hook.", Alive,
              errors=(ModelNotFound,),
              query=(Query("model", "Which.", {"type": "string"}, required=True),)),
    Operation("get", "/control/logs/{model}", "What its hooks and its server have printed.", TEXT,
              errors=(ModelNotFound, BadRequest),
              query=(Query("tail", "How many lines, at most 10000.", COUNT),
                     Query("follow", "Go on as it grows.",
                           {"type": "string", "enum": ["true", "false"]}))),
    Operation("get", "/control/journal", "The latest entries of the journal.", Journal,
              errors=(BadRequest,),
              query=(Query("since", "Those that ended since then (Unix, seconds).", COUNT),
                     Query("limit", "How many, at most 10000.", COUNT))),
    Operation("get", "/control/config", "The config in use, without its secrets.", dict[str, Any]),
    Operation("get", "/control/openapi.json", "This.", dict[str, Any]),
    Operation("post", "/control/switch", "Switch to a model; says so once it is awake.", Message,
              takes=ModelOrder, errors=ORDERS),
    Operation("post", "/control/wake", "The same.", Message, takes=ModelOrder, errors=ORDERS),
    Operation("post", "/control/sleep", "Drain a model and put it to sleep. A request for it wakes "
              "it again.", Message, takes=ModelOrder, errors=ORDERS),
    Operation("post", "/control/mode", "Leave switching to llmux, or not.", Message,
              takes=ModeOrder, errors=(BadRequest,)),
    Operation("post", "/control/pin", "Switch to a model and keep it awake.", Message,
              takes=PinOrder, errors=(*ORDERS, PinLost)),
    Operation("post", "/control/unpin", "Keep none awake any more.", Message, takes=UnpinOrder,
              takes_nothing=True, errors=(BadRequest, GroupNotFound)),
    Operation("post", "/control/reload", "Read the config again.", Message,
              errors=(ConfigMistakes,)),
)  # fmt: skip


@functools.cache
def openapi() -> dict[str, Any]:
    """The document."""
    shapes = {each for o in OPERATIONS for each in (o.gives, o.takes) if isinstance(each, type)}
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
        "summary": operation.says.partition(".")[0],
        "description": operation.says,
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
            "description": query.says,
            "schema": query.schema,
        }
        for query in operation.query
    ]
    if parameters:
        described["parameters"] = parameters
    if operation.takes is not None:
        described["requestBody"] = {
            "required": not operation.takes_nothing,
            "content": {JSON: {"schema": {"$ref": REF.format(name=operation.takes.__name__)}}},
        }
    return described


def _responses(operation: Operation) -> dict[str, Any]:
    gives = operation.gives
    if isinstance(gives, str):
        content = {gives: {"schema": {"type": "string"}}}
    elif isinstance(gives, type) and issubclass(gives, msgspec.Struct):
        content = {JSON: {"schema": {"$ref": REF.format(name=gives.__name__)}}}
    else:
        content = {JSON: {"schema": {"type": "object"}}}
    responses: dict[str, Any] = {"200": {"description": "Done", "content": content}}
    errors: list[type[LlmuxError]] = [InvalidKey, *operation.errors]
    if operation.path.startswith("/control"):
        errors.append(Forbidden)
    told = OllamaError if operation.path.startswith("/api/") else Error
    if operation.gives is Health:
        responses["503"] = {"description": "It cannot.", "content": content}
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
