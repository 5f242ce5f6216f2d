"""Count the memory of answers from llmux's own paths until their clients have taken them.

Some are megabytes (the history, the journal, metrics of many models), and the framework holds each
in memory until its client has read it.
"""

from __future__ import annotations

from contextlib import ExitStack

from llmux.errors import QueueFull
from llmux.http.asgi_types import ASGIApp, Message, Receive, Scope, Send
from llmux.openai.answers import error_answer
from llmux.openai.dialects import dialect_of
from llmux.openai.headers import header
from llmux.proxy.held import Bodies


def counted(bodies: Bodies, app: ASGIApp) -> ASGIApp:
    """Wrap an app for llmux's own paths, so that its answers count like request bodies held."""

    async def serve(scope: Scope, receive: Receive, send: Send) -> None:
        await OwnAnswer(bodies, scope, send).serve(app, receive)

    return serve


class OwnAnswer:
    """One answer on its way through ASGI.

    Args:
        bodies: Where its memory is counted.
        scope: ASGI's, of its request.
        send: ASGI's callable.
    """

    def __init__(self, bodies: Bodies, scope: Scope, send: Send) -> None:
        self._bodies = bodies
        self._scope = scope
        self._send = send
        self._held = ExitStack()
        self._is_whole = self._is_refused = False

    async def serve(self, app: ASGIApp, receive: Receive) -> None:
        with self._held:
            await app(self._scope, receive, self._count)

    async def _count(self, message: Message) -> None:
        """Count and send a message.

        An answer with a length is in memory as a whole; of one without, one piece at a time is.
        """
        if self._is_refused:
            return
        if message["type"] == "http.response.start":
            length = int(header(message["headers"], b"content-length") or 0)
            self._is_whole = length > 0
            try:
                self._held.enter_context(self._bodies.answering(length))
            except QueueFull as full:
                self._is_refused = True
                await self._refuse(full)
                return
            await self._send(message)
        elif self._is_whole:
            await self._send(message)
        else:
            with self._bodies.streaming(len(message.get("body", b""))):
                await self._send(message)

    async def _refuse(self, error: QueueFull) -> None:
        dialect = dialect_of(self._scope["raw_path"], self._scope["headers"])
        status, headers, body = error_answer(error, dialect)
        await self._send({"type": "http.response.start", "status": status, "headers": headers})
        await self._send({"type": "http.response.body", "body": body, "more_body": False})
