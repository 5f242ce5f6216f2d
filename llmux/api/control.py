"""The control API's routes; `llmux.observe.schemas` has their JSON."""

from __future__ import annotations

from collections.abc import AsyncIterator
from dataclasses import dataclass
from typing import Any, TypeVar

import msgspec
import trio
from quart import Blueprint, Response, request

from llmux.api.forecasts import Forecasts
from llmux.api.guard import READING, READS_ONLY, check_control, reads_only
from llmux.api.logfile import LogReader
from llmux.api.masked import masked_config
from llmux.api.openapi import openapi
from llmux.api.outlook import Outlooks
from llmux.api.status import status_of
from llmux.base.names import shown
from llmux.config import Config
from llmux.errors import BadRequest, ConfigMistakes, ModelNotFound
from llmux.hooks.shell import ShellHooks
from llmux.observe.feed import REMEMBERED_S, Feed
from llmux.observe.gpus import Gpus
from llmux.observe.journal import Journal
from llmux.observe.own_log import OwnLogReader
from llmux.observe.schemas import (
    Alive,
    Message,
    ModelOrder,
    ModeOrder,
    Pin,
    PinOrder,
    Status,
    UnpinOrder,
)
from llmux.proxy.journeys import Journeys
from llmux.switching.reload import Reloader
from llmux.switching.switchboard import Switchboard

T = TypeVar("T")

MOST_LISTED = 1000
"""Requests in one answer, at most."""

MOST_ENTRIES = 10_000
"""Journal entries in one answer, at most."""

RUN_HOOKS = frozenset({"control.ask_alive"})
"""Routes that answer GET, but start a process for each request: not for read keys."""

MOST_LINES = 10_000
"""Log lines in one answer, at most, before those that are followed."""


@dataclass(frozen=True)
class Controlled:
    """The parts of llmux that the control API shows and controls."""

    board: Switchboard
    feed: Feed
    journeys: Journeys
    journal: Journal
    hooks: ShellHooks
    reloader: Reloader
    gpus: Gpus
    forecasts: Forecasts
    outlooks: Outlooks

    @property
    def config(self) -> Config:
        return self.reloader.config

    def model(self, name: str) -> str:
        """Resolve a name or alias; raises ModelNotFound."""
        own = self.config.names.find_as_rest(name) or name
        if not self.board.is_registered(own):
            raise ModelNotFound(name, self.config.listed)
        return own


def control_routes(controlled: Controlled) -> Blueprint:
    """Return the control API's routes, for control keys, or without keys for this machine only.

    Read keys open those that read: all that answer GET, except `RUN_HOOKS`.
    """
    routes = Blueprint("control", __name__, url_prefix="/control")

    @routes.before_request
    async def guard() -> None:
        only_reads = request.method in READING and request.endpoint not in RUN_HOOKS
        check_control(controlled.config, steers=not only_reads)

    @routes.after_request
    async def tell_access(response: Response) -> Response:
        if reads_only(controlled.config):
            response.headers[READS_ONLY] = "read"
        return response

    _add_queries(routes, controlled)
    _add_records(routes, controlled)
    _add_orders(routes, controlled)
    return routes


def _add_queries(routes: Blueprint, controlled: Controlled) -> None:
    board, feed, rates = controlled.board, controlled.feed, controlled.journeys.rates
    forecasts = controlled.forecasts

    def status() -> Status:
        gpus = controlled.gpus.look()
        return status_of(
            board, feed, controlled.config, rates=rates, forecasts=forecasts, gpus=gpus
        )

    @routes.get("/status")
    async def show_status() -> Response:
        await forecasts.refresh()
        return answer(status())

    @routes.get("/outlook")
    async def show_outlook() -> Response:
        return answer(await controlled.outlooks.fresh())

    @routes.get("/history")
    async def show_history() -> Response:
        secs = _number("secs", REMEMBERED_S, most=REMEMBERED_S)
        await feed.wait_recalled()
        return answer(feed.history(secs))

    @routes.get("/events")
    async def follow_events() -> Response:
        last = request.headers.get("Last-Event-ID") or request.args.get("last_event_id", "")
        await forecasts.refresh()
        reader = feed.reading(status, last)
        controlled.outlooks.hurry()
        return _stream(reader, "text/event-stream")

    @routes.get("/requests")
    async def list_requests() -> Response:
        return answer(controlled.journeys.list(int(_number("limit", 200, most=MOST_LISTED))))

    @routes.get("/alive")
    async def ask_alive() -> Response:
        model = controlled.model(request.args.get("model", ""))
        switcher = board.switcher_of(model)
        return answer(Alive(model, await switcher.health.is_alive(switcher.models[model])))


def _add_records(routes: Blueprint, controlled: Controlled) -> None:
    feed = controlled.feed

    @routes.get("/logs/<path:model>")
    async def show_log(model: str) -> Response:
        path = controlled.hooks.log_path(controlled.model(model))
        lines = int(_number("tail", 200, most=MOST_LINES))
        follow = _flag("follow")
        # Ends with the feed, or the stream would hold up a shutdown for its whole grace period.
        reader = LogReader(path, lines=lines, follow=lambda: follow and not feed.has_ended)
        return _stream(reader, "text/plain; charset=utf-8")

    @routes.get("/log")
    async def show_own_log() -> Response:
        events, follow = int(_number("tail", 200, most=MOST_LINES)), _flag("follow")
        reader = OwnLogReader(last=events, follow=lambda: follow and not feed.has_ended)
        return _stream(reader, "text/plain; charset=utf-8")

    @routes.get("/journal")
    async def show_journal() -> Response:
        since = _number("since", 0.0)
        limit = int(_number("limit", MOST_LISTED, most=MOST_ENTRIES))
        entries = await trio.to_thread.run_sync(controlled.journal.latest, since, limit)
        return answer({"entries": entries})

    @routes.get("/config")
    async def show_config() -> Response:
        return answer(masked_config(controlled.config))

    @routes.get("/openapi.json")
    async def show_openapi() -> Response:
        return answer(openapi())


def _add_orders(routes: Blueprint, controlled: Controlled) -> None:
    board = controlled.board

    @routes.post("/switch")
    async def switch() -> Response:
        order = await _body(ModelOrder)
        await board.force_switch(controlled.model(order.model))
        return answer(Message(message=f"Switched to model: {order.model}"))

    @routes.post("/wake")
    async def wake() -> Response:
        order = await _body(ModelOrder)
        await board.force_switch(controlled.model(order.model))
        return answer(Message(message=f"Model {order.model} woken"))

    @routes.post("/sleep")
    async def sleep() -> Response:
        order = await _body(ModelOrder)
        await board.put_model_to_sleep(controlled.model(order.model))
        return answer(Message(message=f"Model {order.model} sleeping"))

    @routes.post("/mode")
    async def set_mode() -> Response:
        order = await _body(ModeOrder)
        board.set_mode(order.mode)
        return answer(Message(message=f"Switched to {order.mode} mode"))

    @routes.post("/cordon")
    async def cordon() -> Response:
        board.set_cordoned(True)
        return answer(Message(message="Cordoned: new requests are refused"))

    @routes.post("/uncordon")
    async def uncordon() -> Response:
        board.set_cordoned(False)
        return answer(Message(message="Uncordoned: new requests are admitted"))

    @routes.post("/pin")
    async def pin() -> Response:
        order = await _body(PinOrder)
        await board.pin(Pin(model=controlled.model(order.model), wait=order.wait))
        return answer(Message(message=f"Pinned to model: {order.model}"))

    @routes.post("/unpin")
    async def unpin() -> Response:
        order = await _body(UnpinOrder, default=UnpinOrder())
        return answer(Message(message=_unpin(controlled, order)))

    @routes.delete("/requests/<request_id>")
    async def cancel(request_id: str) -> Response:
        controlled.journeys.cancel(request_id)
        return answer(Message(message=f"Cancelled request: {request_id}"))

    @routes.post("/reload")
    async def reload() -> Response:
        reloaded = await controlled.reloader.reload()
        if not reloaded.ok:
            raise ConfigMistakes(reloaded.mistakes)
        restart = ", ".join(reloaded.needs_restart)
        return answer(
            Message(message=f"Reloaded; needs a restart: {restart}" if restart else "Reloaded")
        )


def _unpin(controlled: Controlled, order: UnpinOrder) -> str:
    """Carry out an order, and return what was done."""
    board = controlled.board
    if order.model is not None and order.group is not None:
        raise BadRequest("Request body: give a model or a group, not both")
    if order.model is not None:
        board.unpin(model=controlled.model(order.model))
        return f"Unpinned model: {order.model}"
    board.unpin(order.group)
    if order.group is not None:
        return f"Unpinned group: {order.group}"
    board.set_mode("auto")
    return "Unpinned. Switched to auto mode."


def answer(what: Any) -> Response:
    return Response(msgspec.json.encode(what), 200, content_type="application/json")


def _stream(pieces: AsyncIterator[bytes], content_type: str) -> Response:
    """Answer with a stream that may never end; HEAD gets the headers only."""
    body = b"" if request.method == "HEAD" else pieces
    headers = {"Cache-Control": "no-cache", "X-Accel-Buffering": "no"}
    return Response(body, 200, headers, content_type=content_type)


async def _body(kind: type[T], default: T | None = None) -> T:
    raw = await request.get_data()
    if not raw and default is not None:
        return default
    try:
        return msgspec.json.decode(raw, type=kind)
    except (msgspec.MsgspecError, RecursionError, UnicodeDecodeError) as error:
        raise BadRequest(f"Request body: {shown(str(error))}") from None


def _number(name: str, default: float, *, most: float = float("inf")) -> float:
    """Read a number from the query, capped at `most`."""
    text = request.args.get(name)
    if text is None:
        return default
    try:
        number = float(text)
    except ValueError:
        number = -1.0
    if not 0 <= number < float("inf"):
        raise BadRequest(f"Query {name!r}: expected a number from 0 on, got {shown(text)!r}")
    return min(number, most)


def _flag(name: str) -> bool:
    text = request.args.get(name, "false")
    if text not in {"true", "false"}:
        raise BadRequest(f"Query {name!r}: expected true or false, got {shown(text)!r}")
    return text == "true"
