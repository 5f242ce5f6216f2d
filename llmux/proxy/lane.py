"""What every lane is: one client's request, and the way back to it."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractAsyncContextManager
from typing import Protocol

import trio

from llmux.proxy.held import Body
from llmux.upstream import Answer

HeaderList = Sequence[tuple[bytes, bytes]]


class ClientLeft(Exception):
    """The client closed its connection."""


class Lane(Protocol):
    """One client's request and the way back: bytes in, bytes out.

    Attributes:
        method: As the client wrote it.
        target: Raw path and query.
        headers: As received.
        body: What has been read of its body.
        peer: The client's address, where the server knows it.
        scheme: http or https.
        has_answered: Whether a status line was sent; from then on only a cut can tell of an error.
        upgrade: The protocol that the client wants to change to; empty if none.
        cut_scope: A scope that is around the request already, and in which `reply` works even once
            it is cancelled; None if there is none.
        reading: What to cancel while `read_body` waits; None when it does not.
        message_at: When a WebSocket carried a message last (Trio's clock, seconds).
    """

    method: bytes
    target: bytes
    headers: HeaderList
    body: Body
    peer: str | None
    scheme: str
    has_answered: bool
    upgrade: bytes
    cut_scope: trio.CancelScope | None
    reading: trio.CancelScope | None
    message_at: float

    @property
    def is_sending(self) -> bool:
        """Whether it waits until its client has taken something."""
        ...

    @property
    def sent_bytes(self) -> int:
        """What was sent of the response after its head."""
        ...

    async def read_body(self) -> None:
        """Read the whole body; raises BodyTooLarge, QueueFull, BadRequest, ClientLeft."""
        ...

    def present(self) -> AbstractAsyncContextManager[None]:
        """Cancel what runs inside when the client leaves, unless something around it does.

        Raises:
            ClientLeft: It left.
        """
        ...

    def unblock(self) -> None:
        """What was being done was cancelled: end what is being sent, though that may resist."""
        ...

    async def hear_first(self, headers: HeaderList, greeting: bytes) -> bytes:
        """Accept a WebSocket before there is a backend for it; returns its first message.

        From then on, `reply` tells of an error in a message, and closes.

        Args:
            headers: What the answer to the handshake says beside.
            greeting: A message for a client that waits for one; empty for none.

        Raises:
            LlmuxError: It is no WebSocket; no message came in time, or too large a one.
            ClientLeft: It left.
        """
        ...

    def replace_first(self, message: bytes) -> None:
        """Have the backend get this in place of that first message."""
        ...

    async def relay(self, answer: Answer, headers: HeaderList) -> None:
        """Send the backend's answer with these headers, chunk by chunk, to its end."""
        ...

    async def begin_events(self, headers: HeaderList) -> None:
        """Send 200 and headers of a stream of events that llmux itself begins."""
        ...

    async def send_events(self, data: bytes) -> None:
        """Send some of that stream."""
        ...

    async def end_events(self) -> None:
        """End it as it should."""
        ...

    async def send_last_event(self, event: bytes) -> None:
        """Send this after a stream that was cut between two of its events, or of its lines."""
        ...

    async def close_socket(self, code: int, reason: str, event: bytes) -> None:
        """Say why a WebSocket ends, which the client has: in a message, if there is one, and so."""
        ...

    async def reply(self, status: int, headers: HeaderList, body: bytes) -> None:
        """Send an answer of llmux's own."""
        ...
