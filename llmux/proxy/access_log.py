"""The access log, where `access_log: true`: one line for each request that has ended.

The event is `request`, at level info. Neither query nor headers nor bodies are in it: they may hold
keys and prompts.
"""

from __future__ import annotations

import trio

from llmux.base.names import MAX_SHOWN
from llmux.config import Config
from llmux.http.asgi_types import ASGIApp, Message, Receive, Scope, Send
from llmux.observe.events import Events
from llmux.observe.logs import get_logger
from llmux.observe.summary import RequestSummary, milliseconds

CLIENT_LEFT = 499
"""Status under which a request is counted whose client left before its answer (as nginx does)."""

log = get_logger(__name__)


class AccessLog:
    """Logs the requests that end, while the config says so.

    Attributes:
        is_on: True if it does.
    """

    def __init__(self, config: Config, events: Events) -> None:
        self._ended = events.request_ended
        self.is_on = False
        self.apply(config)

    def apply(self, config: Config) -> None:
        """Use another config from now on."""
        if config.access_log == self.is_on:
            return
        self.is_on = config.access_log
        if self.is_on:
            self._ended.listen(log_request)
        else:
            self._ended.leave(log_request)


def log_request(summary: RequestSummary) -> None:
    """Write the line of one request."""
    first_byte_s = summary.first_byte_s
    log.info(
        "request",
        method=_text(summary.method),
        path=_text(summary.path),
        model=summary.model,
        status=summary.status,
        outcome=summary.outcome,
        wait_ms=milliseconds(summary.wait_s),
        first_byte_ms=None if first_byte_s is None else milliseconds(first_byte_s),
        duration_ms=milliseconds(summary.duration_s),
        bytes_in=summary.bytes_in,
        bytes_out=summary.bytes_out,
        tokens_in=summary.tokens_in,
        tokens_out=summary.tokens_out,
        client=summary.client,
    )


def _text(raw: bytes) -> str:
    """Return a client's text, shortened, without characters that control terminals."""
    text = "".join(
        chr(byte) if 0x20 < byte < 0x7F else f"\\x{byte:02x}" for byte in raw[:MAX_SHOWN]
    )
    return text if len(raw) <= MAX_SHOWN else text + "…"


def logged(app: ASGIApp, client: str | None) -> ASGIApp:
    """An app for a request of this client for one of llmux's own paths, which is put in the log."""

    async def serve(scope: Scope, receive: Receive, send: Send) -> None:
        await OwnRequest(scope, receive, send, client).serve(app)

    return serve


class OwnRequest:
    """A request for one of llmux's own paths, watched on its way through ASGI."""

    def __init__(self, scope: Scope, receive: Receive, send: Send, client: str | None) -> None:
        self._scope = scope
        self._client = client
        self._receive = receive
        self._send = send
        self._arrived_at = trio.current_time()
        self._first_byte_s: float | None = None
        self._status = CLIENT_LEFT
        self._has_ended = False
        self._bytes_in = self._bytes_out = 0

    async def serve(self, app: ASGIApp) -> None:
        """Have the app serve it, and log it."""
        try:
            await app(self._scope, self._count_received, self._count_sent)
        finally:
            log_request(self._summary())

    async def _count_received(self) -> Message:
        message = await self._receive()
        self._bytes_in += len(message.get("body", b""))
        return message

    async def _count_sent(self, message: Message) -> None:
        if message["type"] == "http.response.start":
            self._status = message["status"]
        if message["type"] == "http.response.body" and self._first_byte_s is None:
            self._first_byte_s = trio.current_time() - self._arrived_at
        await self._send(message)
        if message["type"] == "http.response.body":
            self._bytes_out += len(message.get("body", b""))
            self._has_ended = not message.get("more_body", False)

    def _summary(self) -> RequestSummary:
        return RequestSummary(
            id="",
            method=self._scope["method"].encode(),
            path=self._scope["raw_path"],
            model="",
            status=self._status,
            outcome="done" if self._has_ended else "client_left",
            arrived_at=self._arrived_at,
            ended_at=trio.current_time(),
            wait_s=0.0,
            first_byte_s=self._first_byte_s,
            bytes_in=self._bytes_in,
            bytes_out=self._bytes_out,
            client=self._client,
        )
