"""llmux's own paths, as Quart routes: the model list, metrics, health and the control API."""

from __future__ import annotations

import ipaddress
import socket
import time
from collections.abc import Callable
from typing import Any, TypeVar
from urllib.parse import urlsplit

import msgspec
import trio
from quart import Blueprint, Response, request
from werkzeug.exceptions import HTTPException, MethodNotAllowed

from llmux.config import Config
from llmux.errors import BadRequest, Forbidden, InvalidKey, LlmuxError, ModelNotFound
from llmux.keys import KeyRing
from llmux.metrics import CONTENT_TYPE, Metrics
from llmux.model import Model
from llmux.openai import error_answer, model_list, model_object
from llmux.switchboard import Switchboard
from llmux.switcher import Mode

T = TypeVar("T")


CurrentConfig = Callable[[], Config]
"""The config that is used now."""


class SwitchRequest(msgspec.Struct, forbid_unknown_fields=True):
    """Body of `POST /control/switch`."""

    model: str


class ModeRequest(msgspec.Struct, forbid_unknown_fields=True):
    """Body of `POST /control/mode`."""

    mode: Mode


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
        return Response(metrics.render(), content_type=CONTENT_TYPE)

    @routes.get("/health")
    async def show_health() -> Response:
        if board.is_healthy:
            return _json(msgspec.json.encode({"status": "ok"}))
        return _json(msgspec.json.encode({"status": "the switcher has stopped"}), status=503)

    return routes


def control_routes(config: CurrentConfig, board: Switchboard) -> Blueprint:
    """The control API: for who has a control key, or without such for programs of this machine."""
    routes = Blueprint("control", __name__, url_prefix="/control")
    own_hosts = {config().host, socket.gethostname()}

    @routes.before_request
    async def guard() -> None:
        if keys := config().control_keys:
            check_key(keys)
            return
        headers = {name.lower(): value for name, value in request.headers.items()}
        check_local(peer=request.scope.get("client"), headers=headers, own_hosts=own_hosts)

    @routes.get("/status")
    async def show_status() -> Response:
        return _json(msgspec.json.encode(_status(board)))

    @routes.post("/switch")
    async def switch() -> Response:
        wanted = await _body(SwitchRequest)
        await board.force_switch(config().names.get(wanted.model, wanted.model))
        return _message(f"Switched to model: {wanted.model}")

    @routes.post("/mode")
    async def set_mode() -> Response:
        wanted = await _body(ModeRequest)
        board.set_mode(wanted.mode)
        return _message(f"Switched to {wanted.mode} mode")

    return routes


async def answer_llmux_error(error: LlmuxError) -> Response:
    """Quart's error handler for llmux's own errors."""
    status, headers, body = error_answer(error)
    return Response(body, status, {n.decode(): v.decode() for n, v in headers})


async def answer_http_error(error: HTTPException) -> Response:
    """Quart's error handler for what its router refuses (404, 405, ...), in the same form."""
    status = error.code or 500
    code = "not_found" if status == 404 else "bad_request" if status < 500 else "internal"
    what = f"{error.name}: {request.method} {request.path}"
    body = {"message": what, "type": "llmux_error", "param": None, "code": code}
    answer = _json(msgspec.json.encode({"error": body}), status)
    if isinstance(error, MethodNotAllowed) and error.valid_methods:
        answer.headers["Allow"] = ", ".join(sorted(error.valid_methods))
    return answer


def metrics_keys(config: Config) -> KeyRing:
    """The keys that open the metrics; none: they are open."""
    rings = {"open": KeyRing(), "api_key": config.api_keys, "control_key": config.control_keys}
    return rings[config.metrics_access]


def check_key(ring: KeyRing) -> None:
    """Let those in who send one of these keys; everybody, if there are none.

    Raises:
        InvalidKey: The request that is being served carries none of them.
    """
    if ring and not ring.accepts(request.scope["headers"]):
        raise InvalidKey


def check_local(
    *, peer: tuple[str, int] | None, headers: dict[str, str], own_hosts: set[str]
) -> None:
    """Let only this machine's own programs steer: no proxied request, no foreign web page.

    The `Host` is checked too, since a page whose name was rebound to a loopback address is of
    the same origin as itself, and sends no `Origin` with a GET.

    Raises:
        Forbidden: The request comes from elsewhere.
    """
    if peer is None or not _is_loopback(peer[0]):
        raise Forbidden("The control API answers loopback peers only")
    if "forwarded" in headers or "x-forwarded-for" in headers:
        raise Forbidden("The control API does not answer proxied requests")
    host = headers.get("host", "")
    try:
        name = urlsplit(f"//{host}").hostname or ""
    except ValueError:
        name = ""
    if name != "localhost" and not _is_loopback(name) and name not in own_hosts:
        raise Forbidden(f"The control API does not answer for the host {host!r}")
    origin = headers.get("origin")
    if origin is not None and origin not in (f"http://{host}", f"https://{host}"):
        raise Forbidden(f"The control API does not answer pages of {origin}")


def _is_loopback(host: str) -> bool:
    try:
        address = ipaddress.ip_address(host)
    except ValueError:
        return False
    mapped = getattr(address, "ipv4_mapped", None)
    return bool((mapped or address).is_loopback)


async def _body(kind: type[T]) -> T:
    raw = await request.get_data()
    try:
        return msgspec.json.decode(raw, type=kind)
    except msgspec.MsgspecError as error:
        raise BadRequest(f"Request body: {error}") from None


def _facts(model: Model) -> dict[str, Any]:
    return {
        "state": model.phase.value,
        "in_flight": model.in_flight.count,
        "queued": model.waiters.count,
    }


def _status(board: Switchboard) -> dict[str, Any]:
    return {
        "state": board.state,
        "active_model": board.active_model,
        "mode": board.mode,
        "queue_depth": board.queue_depths,
        "groups": {
            group: {
                "state": switcher.state,
                "active_model": switcher.active.name if switcher.active else None,
                "models": list(switcher.models),
            }
            for group, switcher in board.groups.items()
        },
        "models": {name: _model_status(model) for name, model in board.models.items()},
        "estimated_costs": board.estimated_costs(),
    }


def _model_status(model: Model) -> dict[str, Any]:
    now = trio.current_time()
    oldest = model.waiters.oldest
    return {
        **_facts(model),
        "awake": model.is_awake,
        "oldest_wait_secs": None if oldest is None else round(now - oldest, 3),
        "last_error": None if model.last_error is None else model.last_error.message,
        "retry_in_secs": max(0.0, round(model.retry_at - now, 3)) if model.failures else None,
    }


def _json(body: bytes, status: int = 200) -> Response:
    return Response(body, status, content_type="application/json")


def _message(text: str) -> Response:
    return _json(msgspec.json.encode({"message": text}))
