"""The interface of a lane: one client's request, and the way back to the client.

`Lane` is what every lane has. Two extras depend on the client: `EventStream`, where the response
is an HTTP body, and `Tunnel`, where the client asks to change the protocol. The proxy asks the lane
for them (`Lane.events`, `Lane.tunnel`) and gets None where they make no sense.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractAsyncContextManager
from typing import Protocol

import trio

from llmux.proxy.held import Body
from llmux.upstream import Answer

HeaderList = Sequence[tuple[bytes, bytes]]


class ClientLeft(Exception):
    """The client has closed its connection."""


class EventStream(Protocol):
    """A response that llmux itself begins, or ends, with events."""

    async def begin_events(self, headers: HeaderList) -> None:
        """Send status 200 and these headers; the body follows, event by event."""
        ...

    async def send_events(self, data: bytes) -> None: ...

    async def end_events(self) -> None:
        """End the body as its framing requires."""
        ...

    async def send_last_event(self, event: bytes) -> None:
        """Append an event to a stream that was cut, if it was cut between two events or lines."""
        ...


class Tunnel(Protocol):
    """A WebSocket: frames in both directions once the handshake is accepted.

    Attributes:
        message_at: Time of the last message in either direction (Trio's clock, seconds).
    """

    message_at: float

    async def accept_early(self, headers: HeaderList, greeting: bytes) -> bytes:
        """Accept the WebSocket before there is a backend for it, and return its first message.

        From then on, `Lane.reply` sends an error as a message, and closes.

        Args:
            headers: Added to the answer to the handshake.
            greeting: Message for a client that waits for one before it speaks; empty for none.

        Raises:
            LlmuxError: Not a WebSocket; no message in time, or too large a one.
            ClientLeft: The client left.
        """
        ...

    def replace_first_message(self, message: bytes) -> None:
        """Send the backend this in place of the message that `accept_early` returned."""
        ...

    async def close_websocket(self, code: int, reason: str, event: bytes) -> None:
        """Send the client `event` as a message, unless empty, then a Close frame."""
        ...


class Lane(Protocol):
    """One client's request and the way back to the client.

    Attributes:
        method: As the client wrote it.
        target: Raw path and query.
        headers: As received.
        body: The request's body, as far as it has been read.
        peer: The client's address, where the server knows it.
        scheme: http or https.
        has_answered: True once a status line was sent; from then on an error can only cut.
        upgrade: Protocol that the client asks to change to; empty if none.
        cut_scope: A scope already around the request, in which `reply` works even after it is
            cancelled; None if there is none.
        reading: Scope to cancel while `read_body` waits; None when it does not.
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

    @property
    def events(self) -> EventStream | None:
        """None if the response is not an HTTP body."""
        ...

    @property
    def tunnel(self) -> Tunnel | None:
        """None if the client does not ask to change the protocol."""
        ...

    @property
    def unblock(self) -> Callable[[], None] | None:
        """Call after cancelling a request, to end a send that resists cancellation.

        None where no send does.
        """
        ...

    @property
    def is_sending(self) -> bool:
        """True while the lane waits for its client to take data."""
        ...

    @property
    def sent_bytes(self) -> int:
        """Bytes of the response sent after its head."""
        ...

    async def read_body(self) -> None:
        """Read the whole body; raises BodyTooLarge, QueueFull, BadRequest, ClientLeft."""
        ...

    def present(self) -> AbstractAsyncContextManager[None]:
        """Cancel what runs inside when the client leaves, unless an outer scope does.

        Raises:
            ClientLeft: It left.
        """
        ...

    async def relay(self, answer: Answer, headers: HeaderList) -> None:
        """Send the backend's answer with these headers, piece by piece, to its end."""
        ...

    async def reply(self, status: int, headers: HeaderList, body: bytes) -> None:
        """Send an answer of llmux's own."""
        ...
