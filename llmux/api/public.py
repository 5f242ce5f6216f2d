"""llmux's public paths as Quart routes (models, metrics), and errors as answers."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator, Callable
from typing import Any

import msgspec
from quart import Blueprint, Response, request
from werkzeug.exceptions import HTTPException, MethodNotAllowed

from llmux.api.guard import check_key, metrics_keys
from llmux.api.listeners import LISTENER
from llmux.api.page import check_visitor
from llmux.api.root import PAGE_HEADERS, root_page
from llmux.base.names import shown
from llmux.config import Config
from llmux.errors import BodyTooLarge, Forbidden, LlmuxError, ModelNotFound
from llmux.observe.metrics import CONTENT_TYPE, Metrics
from llmux.openai import ollama
from llmux.openai.answers import error_answer, model_list, model_object
from llmux.openai.dialects import Dialect, ErrorInfo, dialect_of
from llmux.switching.model import SERVES, Model
from llmux.switching.switchboard import Switchboard

PIECE_BYTES = 64 << 10
"""Piece of an answer: the most that a server copies at a time for a client that does not read."""

CurrentConfig = Callable[[], Config]
"""Returns the config in use."""


def public_routes(config: CurrentConfig, board: Switchboard, metrics: Metrics) -> Blueprint:
    """Routes for the model list and metrics."""
    routes = Blueprint("public", __name__)
    created = int(time.time())

    @routes.get("/v1/models")
    @routes.get("/models")
    async def list_models() -> Response:
        check_key(config().api_keys)
        return _json(
            model_list(
                (name, created, _facts(model, name)) for name, model in listed(config(), board)
            )
        )

    @routes.get("/v1/models/<path:name>")
    @routes.get("/models/<path:name>")
    async def show_model(name: str) -> Response:
        check_key(config().api_keys)
        names = config().names
        known = names.known_as(name)
        own = None if known is None else names.find(known)
        if known is None or own is None:
            raise ModelNotFound(name, config().listed)
        shown_as = known if config().list_aliases and known in names else own
        return _json(model_object(shown_as, created, _facts(board.models[own], shown_as)))

    @routes.get("/metrics")
    async def show_metrics() -> Response:
        check_key(metrics_keys(config()))
        text = metrics.scrape()
        answer = Response(in_pieces(text), content_type=CONTENT_TYPE)
        answer.content_length = len(text)
        return answer

    return routes


def visitor_routes(config: CurrentConfig, board: Switchboard) -> Blueprint:
    """Routes for people, and for clients that take llmux for an Ollama."""
    routes = Blueprint("visitors", __name__)
    created = int(time.time())

    @routes.get("/")
    async def show_root() -> Response:
        """Lead browsers to `/ui`; give others a sign of life, which Ollama clients ask for."""
        has_page = config().control is None or LISTENER in request.scope
        if "text/html" in request.headers.get("Accept", ""):
            return _lead_to_page(config()) if has_page else _root(".")
        where = "; its page is at /ui" if has_page else ""
        return Response(f"llmux is running{where}\n", content_type="text/plain; charset=utf-8")

    @routes.get("/api/tags")
    async def list_tags() -> Response:
        check_key(config().api_keys)
        return _json(ollama.tags(created, (name for name, _ in listed(config(), board))))

    @routes.get("/api/ps")
    async def list_running() -> Response:
        check_key(config().api_keys)
        running = (name for name, model in listed(config(), board) if model.phase in SERVES)
        return _json(ollama.running(time.time(), running))

    @routes.get("/api/version")
    async def show_version() -> Response:
        check_key(config().api_keys)
        return _json(ollama.version())

    return routes


def _lead_to_page(config: Config) -> Response:
    """Redirect to `/ui/`, or say why the visitor may not see it."""
    try:
        check_visitor(config)
    except Forbidden:
        return _root(". Its page, /ui, answers this machine only, until there are control_keys.")
    # Relative, so that it works behind a proxy's prefix.
    page = _root('. Its page: <a href="ui/">/ui</a>.', 302)
    page.headers["Location"] = "ui/"
    return page


def _root(more: str, status: int = 200) -> Response:
    return Response(root_page(more), status, headers=PAGE_HEADERS)


def listed(config: Config, board: Switchboard) -> list[tuple[str, Model]]:
    """Return the names to list, each with its model, without models that are being removed."""
    models, names = board.models, config.names
    return [(name, models[names[name]]) for name in config.listed if names[name] in models]


async def answer_llmux_error(error: LlmuxError) -> Response:
    """Quart's error handler for llmux's own errors; only the control API is told of hooks."""
    status, headers, body = error_answer(error, _dialect(), to_operator=True)
    return Response(body, status, {n.decode(): v.decode() for n, v in headers})


async def answer_http_error(error: HTTPException) -> Response:
    """Quart's error handler for what its router refuses (404, 405, ...), in the same form."""
    status = error.code or 500
    by_status = {404: "not_found", 413: BodyTooLarge.code}
    code = by_status.get(status, "bad_request" if status < 500 else "internal")
    what = f"{error.name}: {shown(request.method)} {shown(request.path)}"
    answer = _json(msgspec.json.encode(_dialect().body(ErrorInfo(what, code, status))), status)
    if isinstance(error, MethodNotAllowed) and error.valid_methods:
        answer.headers["Allow"] = ", ".join(sorted(error.valid_methods))
    return answer


def _dialect() -> Dialect:
    """Return the dialect of the current request."""
    headers = [(name.encode("latin-1", "replace"), b"") for name, _ in request.headers]
    return dialect_of(request.path.encode("utf-8", "replace"), headers)


async def in_pieces(data: bytes) -> AsyncIterator[bytes]:
    """Send a large body in pieces: servers copy what they send, and many clients may ask."""
    for start in range(0, len(data), PIECE_BYTES):
        yield data[start : start + PIECE_BYTES]


def _facts(model: Model, name: str) -> dict[str, Any]:
    facts: dict[str, Any] = {
        "state": model.phase.value,
        "in_flight": model.in_flight.count,
        "queued": model.queued,
    }
    if model.is_failing:
        facts["failing"] = True
    return facts if name == model.name else facts | {"alias_of": model.name}


def _json(body: bytes, status: int = 200) -> Response:
    return Response(body, status, content_type="application/json")
