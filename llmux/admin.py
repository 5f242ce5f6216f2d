"""llmux's public paths as Quart routes (models, metrics, health), and errors as answers."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator, Callable
from typing import Any

import msgspec
from quart import Blueprint, Response, request
from werkzeug.exceptions import HTTPException, MethodNotAllowed

from llmux.config import Config
from llmux.control.guard import check_key, metrics_keys
from llmux.errors import BodyTooLarge, LlmuxError, ModelNotFound
from llmux.metrics import CONTENT_TYPE, Metrics
from llmux.model import Model
from llmux.names import shown
from llmux.openai import error_answer, model_list, model_object
from llmux.switchboard import Switchboard

PIECE_BYTES = 64 << 10
"""What a server copies at a time for a client that does not read."""

CurrentConfig = Callable[[], Config]
"""The config that is used now."""


def public_routes(config: CurrentConfig, board: Switchboard, metrics: Metrics) -> Blueprint:
    """The model list, metrics and health."""
    routes = Blueprint("public", __name__)
    created = int(time.time())

    @routes.get("/v1/models")
    async def list_models() -> Response:
        check_key(config().api_keys)
        models = board.models.items()  # also those that are being removed
        facts = ((n, created, _facts(model)) for n, model in models if n in config().models)
        return _json(model_list(facts))

    @routes.get("/v1/models/<path:name>")
    async def show_model(name: str) -> Response:
        check_key(config().api_keys)
        names = config().names
        if name not in names:
            raise ModelNotFound(name)
        return _json(model_object(names[name], created, _facts(board.models[names[name]])))

    @routes.get("/metrics")
    async def show_metrics() -> Response:
        check_key(metrics_keys(config()))
        text = metrics.scrape()
        answer = Response(in_pieces(text), content_type=CONTENT_TYPE)
        answer.content_length = len(text)
        return answer

    @routes.get("/health")
    async def show_health() -> Response:
        if board.is_healthy:
            return _json(msgspec.json.encode({"status": "ok"}))
        return _json(msgspec.json.encode({"status": "the switcher has stopped"}), status=503)

    return routes


async def answer_llmux_error(error: LlmuxError) -> Response:
    """Quart's error handler for llmux's own errors: of hooks, the control API alone hears here."""
    status, headers, body = error_answer(error, to_operator=True)
    return Response(body, status, {n.decode(): v.decode() for n, v in headers})


async def answer_http_error(error: HTTPException) -> Response:
    """Quart's error handler for what its router refuses (404, 405, ...), in the same form."""
    status = error.code or 500
    by_status = {404: "not_found", 413: BodyTooLarge.code}
    code = by_status.get(status, "bad_request" if status < 500 else "internal")
    what = f"{error.name}: {shown(request.method)} {shown(request.path)}"
    body = {"message": what, "type": "llmux_error", "param": None, "code": code}
    answer = _json(msgspec.json.encode({"error": body}), status)
    if isinstance(error, MethodNotAllowed) and error.valid_methods:
        answer.headers["Allow"] = ", ".join(sorted(error.valid_methods))
    return answer


async def in_pieces(data: bytes) -> AsyncIterator[bytes]:
    """Something that many may get at once: a server copies what it sends, so no more at a time."""
    for start in range(0, len(data), PIECE_BYTES):
        yield data[start : start + PIECE_BYTES]


def _facts(model: Model) -> dict[str, Any]:
    return {
        "state": model.phase.value,
        "in_flight": model.in_flight.count,
        "queued": model.queued,
    }


def _json(body: bytes, status: int = 200) -> Response:
    return Response(body, status, content_type="application/json")
