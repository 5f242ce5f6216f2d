"""llama-swap's own paths: which models run, and orders to unload them.

An order to unload is one to put to sleep, with the rules of `POST /control/sleep`: it needs a
control key, or a program of this machine; it works in manual mode and for a pinned model; and the
next request for the model wakes it again.
"""

from __future__ import annotations

from typing import Literal

import msgspec
import trio
from quart import Blueprint, Response, request

from llmux.api.control import Controlled
from llmux.api.guard import check_control, check_key
from llmux.errors import Forbidden, LlmuxError, ModelNotFound
from llmux.observe.schemas import RunningModel, RunningModels, Unloaded
from llmux.switching.model import AT_REST, Phase
from llmux.switching.switchboard import Switchboard

STATES: dict[Phase, Literal["starting", "ready", "stopping"]] = {
    Phase.WAKING: "starting",
    Phase.AWAKE: "ready",
    Phase.DRAINING: "stopping",
    Phase.SLEEPING: "stopping",
}
"""llama-swap's words for phases; it does not list models in others."""


def llama_swap_routes(controlled: Controlled) -> Blueprint:
    """Return the routes `/running`, `/unload` and `/api/models/unload`."""
    routes = Blueprint("llama_swap", __name__)
    board = controlled.board

    @routes.get("/running")
    async def list_running() -> Response:
        check_key(controlled.config.api_keys)
        return Response(_running(controlled), content_type="application/json")

    @routes.route("/unload", methods=["GET", "POST"])
    async def unload() -> Response:
        check_control(controlled.config)
        if request.method == "GET" and not controlled.config.control_keys:
            _check_no_page()
        if request.method != "HEAD":  # which comes with GET, and must not change anything
            await _unload_all(board)
        return _ok()

    @routes.post("/api/models/unload")
    async def unload_all() -> Response:
        check_control(controlled.config)
        await _unload_all(board)
        return Response(msgspec.json.encode(Unloaded(msg="ok")), content_type="application/json")

    @routes.post("/api/models/unload/<path:model>")
    async def unload_one(model: str) -> Response:
        check_control(controlled.config)
        await board.put_model_to_sleep(controlled.model(model))
        return _ok()

    return routes


def _check_no_page() -> None:
    """Refuse a GET that an image of another site's page may have caused.

    `check_control` knows such a GET by `Sec-Fetch-Site` only, which browsers send to loopback
    addresses and by TLS, but not to this machine's name. Every browser calls itself Mozilla.

    Raises:
        Forbidden: A browser sent it, and does not say for which page.
    """
    is_browser = request.headers.get("User-Agent", "").startswith("Mozilla/")
    if is_browser and "Sec-Fetch-Site" not in request.headers:
        raise Forbidden("A browser unloads by POST, or at the address http://localhost")


def _ok() -> Response:
    return Response("OK", content_type="text/plain; charset=utf-8")


def _running(controlled: Controlled) -> bytes:
    """Encode the models that are awake, or on the way to or from it, sorted by name.

    Commands and addresses are empty: `/control/config` has them, for holders of control keys.
    """
    models = controlled.config.models
    running = [
        RunningModel(
            model=name,
            state=STATES[model.phase],
            cmd="",
            proxy="",
            ttl=round(models[name].idle_sleep_secs or 0) if name in models else 0,
            name="",
            description="",
        )
        for name, model in sorted(controlled.board.models.items())
        if model.phase in STATES
    ]
    return msgspec.json.encode(RunningModels(running=running))


async def _unload_all(board: Switchboard) -> None:
    """Put all models to sleep that hold a GPU, each group on its own; raises the first error."""
    failures: list[LlmuxError] = []

    async def put_to_sleep(name: str) -> None:
        try:
            await board.put_model_to_sleep(name)
        except ModelNotFound:  # removed meanwhile
            pass
        except LlmuxError as error:
            failures.append(error)

    async with trio.open_nursery() as nursery:
        for name, model in board.models.items():
            if model.holds_gpu or model.phase not in AT_REST:
                nursery.start_soon(put_to_sleep, name)
    if failures:
        raise failures[0]
