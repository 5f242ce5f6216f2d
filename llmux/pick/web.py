"""The picker's own HTTP: lists of the models of all hosts, `/health` and `/metrics`."""

from __future__ import annotations

import asyncio
import socket
import time
from collections.abc import Awaitable, Callable
from typing import Any
from urllib.parse import unquote

import msgspec
from hypercorn.asyncio import serve
from hypercorn.config import Config, Sockets

from llmux.base.names import shown
from llmux.errors import LlmuxError, ModelNotFound
from llmux.openai import ollama
from llmux.openai.answers import error_answer, model_list, model_object
from llmux.openai.dialects import OPENAI, ErrorInfo, dialect_of
from llmux.pick.config import split_address
from llmux.pick.metrics import CONTENT_TYPE, Metrics
from llmux.pick.service import CannotListen
from llmux.pick.table import Table

JSON = "application/json"


class Site:
    """The picker's paths, as an ASGI app.

    Args:
        table: The hosts.
        metrics: The series.
        clock: The table's clock.
    """

    def __init__(self, table: Table, metrics: Metrics, clock: Callable[[], float]) -> None:
        self._table = table
        self._metrics = metrics
        self._clock = clock
        self._created = int(time.time())

    async def __call__(self, scope: Any, _receive: Any, send: Any) -> None:
        """Answer a request; nothing is to be done when the process starts and ends."""
        if scope["type"] != "http":
            raise NotImplementedError
        try:
            status, kind, body = self.answer(scope["method"], scope["path"])
        except LlmuxError as error:
            dialect = dialect_of(scope["path"].encode(), scope["headers"])
            status, _, body = error_answer(error, dialect)
            kind = JSON
        headers = [
            (b"content-type", kind.encode()),
            (b"content-length", b"%d" % len(body)),
        ]
        await send({"type": "http.response.start", "status": status, "headers": headers})
        body = b"" if scope["method"] == "HEAD" else body
        await send({"type": "http.response.body", "body": body})

    def answer(self, method: str, path: str) -> tuple[int, str, bytes]:
        """Return status, type and body for a request.

        Raises:
            ModelNotFound: No host has the model.
        """
        path = path.removeprefix("/v1")
        if method in {"GET", "HEAD"}:
            if path == "/health":
                return self._health()
            if path == "/metrics":
                return 200, CONTENT_TYPE, self._metrics.scrape()
            if path == "/api/tags":
                return 200, JSON, ollama.tags(self._created, self._table.models)
            if path.rstrip("/") == "/models":
                rows = ((name, self._created, self._facts(name)) for name in self._table.models)
                return 200, JSON, model_list(rows)
            if path.startswith("/models/"):
                return 200, JSON, self._model(unquote(path.removeprefix("/models/")))
        what = ErrorInfo(f"Not found: {shown(method)} {shown(path)}", "not_found", 404)
        return 404, JSON, msgspec.json.encode(OPENAI.body(what))

    def _health(self) -> tuple[int, str, bytes]:
        hosts = {
            host.address.endpoint: host.trouble or (host.outlook and host.outlook.state)
            for host in self._table
        }
        now = self._clock()
        is_ok = any(host.is_fresh(now) for host in self._table)
        told = {"status": "ok" if is_ok else "no host is heard", "hosts": hosts}
        return 200 if is_ok else 503, JSON, msgspec.json.encode(told)

    def _model(self, name: str) -> bytes:
        model = self._table.names.find_as_rest(name)
        if model is None:
            raise ModelNotFound(name, self._table.models)
        return model_object(model, self._created, self._facts(model))

    def _facts(self, model: str) -> dict[str, Any]:
        """Return what clients of one llmux are told of a model, as far as it makes sense here."""
        found = [there for host in self._table if (there := host.view.model(model)) is not None]
        return {
            "awake": sum(there.awake for there in found),
            "hosts": len(found),
            "aliases": sorted({alias for there in found for alias in there.aliases}),
        }


async def serve_site(site: Site, sockets: Sockets, stopped: Callable[[], Awaitable[None]]) -> None:
    """Serve until `stopped` returns."""
    config = Config()
    config.create_sockets = lambda: sockets  # type: ignore[method-assign]
    config.accesslog = config.errorlog = None
    config.graceful_timeout = config.shutdown_timeout = 1
    await serve(site, config, shutdown_trigger=stopped)
    await asyncio.sleep(0)


def listen(address: str) -> Sockets:
    """Listen on an address; raises OSError, which names it."""
    host, port = split_address(address)
    family = socket.AF_INET6 if host.startswith("[") else socket.AF_INET
    try:
        # Not Hypercorn's own: that only binds, which finds fewer addresses in use.
        made = socket.create_server((host.strip("[]"), port), family=family, backlog=100)
    except OSError as error:
        raise CannotListen(f"cannot listen on {address}: {error.strerror or error}") from None
    return Sockets([], [made], [])
