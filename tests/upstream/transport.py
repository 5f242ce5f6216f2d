"""An httpx transport over `llmux.upstream`, for calls that want an ordinary HTTP client.

    async with httpx.AsyncClient(transport=BackendTransport()) as client: ...

It puts `Backend` behind an ordinary client, whose habits are not llmux's own: compressed answers,
streams left half-way, requests of many tasks. httpx's timeouts do not apply.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import AbstractAsyncContextManager

import httpx

from llmux.errors import BackendBroke, BackendError, BackendRefused
from llmux.upstream import Answer, Backend

CONNECT_TIMEOUT_S = 10.0

# The backend writes these itself.
OWN_HEADERS = frozenset({b"host", b"content-length", b"transfer-encoding", b"connection"})


class AnswerStream(httpx.AsyncByteStream):
    """An answer's body as httpx wants it."""

    def __init__(self, exchange: AbstractAsyncContextManager[Answer], answer: Answer) -> None:
        self._exchange = exchange
        self._answer = answer

    async def __aiter__(self) -> AsyncIterator[bytes]:
        try:
            async for data in self._answer.chunks():
                yield data
        except BackendBroke as error:
            raise httpx.ReadError(str(error)) from error

    async def aclose(self) -> None:
        """End the exchange; before the end of the body this closes the connection."""
        await self._exchange.__aexit__(None, None, None)


class BackendTransport(httpx.AsyncBaseTransport):
    """Sends httpx's requests through one `Backend` for each origin.

    Request bodies are read whole before they are sent; response bodies are streamed. Open and close
    a streamed response in the same cancel scope (`async with client.stream(...)` does): a task may
    still send the request meanwhile.
    """

    def __init__(self) -> None:
        self._backends: dict[str, Backend] = {}

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        """Send one request.

        Raises:
            httpx.ConnectError: The backend accepted no connection.
            httpx.RemoteProtocolError: It gave no answer.
        """
        body = await request.aread()
        headers = [pair for pair in request.headers.raw if pair[0].lower() not in OWN_HEADERS]
        exchange = self._backend(request.url).exchange(
            request.method.encode("ascii"), request.url.raw_path, headers, body
        )
        try:
            answer = await exchange.__aenter__()
        except BackendRefused as error:
            raise httpx.ConnectError(str(error), request=request) from error
        except BackendError as error:
            raise httpx.RemoteProtocolError(str(error), request=request) from error
        return httpx.Response(
            answer.status,
            headers=answer.headers,
            stream=AnswerStream(exchange, answer),
            extensions={
                "http_version": b"HTTP/" + answer.http_version.encode("ascii"),
                "reason_phrase": answer.reason,
            },
        )

    def _backend(self, url: httpx.URL) -> Backend:
        origin = f"{url.scheme}://{url.netloc.decode('ascii')}"
        if origin not in self._backends:
            self._backends[origin] = Backend(origin, connect_timeout_s=CONNECT_TIMEOUT_S)
        return self._backends[origin]

    async def aclose(self) -> None:
        """Close all idle connections."""
        for backend in self._backends.values():
            backend.close()
