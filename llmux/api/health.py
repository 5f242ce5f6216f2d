"""Health, for balancers and their probes: of llmux, of this host as one of several, of each model.

A probe wakes nothing, waits for nothing and leaves no trace in the journal.
"""

from __future__ import annotations

from collections.abc import Callable

import msgspec
from quart import Blueprint, Response, request

from llmux.api.guard import check_named
from llmux.base.names import shown
from llmux.config import Config
from llmux.errors import BadRequest, ModelAsleep, ModelNotFound
from llmux.observe.schemas import Health, ModelHealth, Readiness
from llmux.observe.schemas.base import Shape
from llmux.switching.switchboard import Switchboard


def health_routes(config: Callable[[], Config], board: Switchboard) -> Blueprint:
    """Return the routes `/health`, `/health/ready` and `/health/models/NAME`.

    Args:
        config: Returns the config in use.
        board: The models.
    """
    routes = Blueprint("health", __name__)

    @routes.get("/health")
    async def show_health() -> Response:
        # Only their number: their names are for clients with a key.
        failing = sum(model.is_failing for model in board.models.values()) or msgspec.UNSET
        is_ok = board.is_healthy
        return _answer(Health("ok" if is_ok else "the switcher has stopped", failing), is_ok=is_ok)

    @routes.get("/health/ready")
    async def show_readiness() -> Response:
        state = board.host_state
        return _answer(Readiness(state), is_ok=state == "ready")

    @routes.get("/health/models/<path:name>")
    async def show_model_health(name: str) -> Response:
        check_named(config())
        health = _model_health(config(), board, name, only_awake=_asks_if_awake())
        return _answer(health, is_ok=health.code is msgspec.UNSET)

    return routes


def _model_health(
    config: Config, board: Switchboard, name: str, *, only_awake: bool
) -> ModelHealth:
    """Return a model's health; raises ModelNotFound."""
    own = config.names.find_as_rest(name)
    if own is None or not board.is_registered(own):
        raise ModelNotFound(name, config.listed)
    code, awake = board.refusal_of(own), board.models[own].is_awake
    if code is None and only_awake and not awake:
        code = ModelAsleep.code
    return ModelHealth(awake, msgspec.UNSET if code is None else code)


def _asks_if_awake() -> bool:
    """Return whether the query has `awake`; raises BadRequest."""
    value = request.args.get("awake", "false")
    if value not in {"", "true", "false"}:
        raise BadRequest(f"Query 'awake': expected nothing, true or false, got {shown(value)!r}")
    return value != "false"


def _answer(health: Shape, *, is_ok: bool) -> Response:
    body = msgspec.json.encode(health)
    return Response(body, 200 if is_ok else 503, content_type="application/json")
