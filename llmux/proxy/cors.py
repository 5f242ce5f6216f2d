"""CORS: which pages of other origins may use models from a browser (Fetch standard, section 3.3).

llmux answers preflights itself, since they carry no key and must wake no model. Every other answer
says whether the page that sent the request may read it. The control API is never shared.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, NamedTuple

from llmux.http.asgi_types import ASGIApp, Message, Receive, Scope, Send
from llmux.http.syntax import Headers
from llmux.openai.headers import header

SHARED_OWN_PATHS = (
    b"/v1/models", b"/models", b"/health", b"/api/tags", b"/api/ps", b"/api/version", b"/running",
)  # fmt: skip
"""llmux's own paths that pages may read, with all paths below them; model traffic is all shared."""

MAX_AGE_S = 600
"""Seconds that browsers cache a preflight. A stricter config takes as long to reach all of them."""

MAX_ASKED_BYTES = 4096
"""Limit for what a preflight asks for, since the answer repeats it."""

CORS_PREFIX = b"access-control-"
"""Start of a backend's headers that llmux replaces by its own."""

EXPOSED = b"x-llmux-model, x-llmux-wait-ms, x-llmux-request-id, *"
"""Response headers that a page may read; the names are for browsers that ignore the asterisk."""

VARY = (b"vary", b"Origin")


class Sharing(NamedTuple):
    """The CORS headers of an answer.

    Attributes:
        added: Headers to add.
        is_allowed: True if the page may read the answer; a backend's CORS headers are then dropped.
    """

    added: Headers
    is_allowed: bool

    def applied(self, headers: list[tuple[bytes, bytes]]) -> list[tuple[bytes, bytes]]:
        """Return a backend's headers without those that `added` replaces; does not add it."""
        if not self.is_allowed:
            return headers
        return [field for field in headers if not field[0].lower().startswith(CORS_PREFIX)]


FOREIGN = Sharing([VARY], is_allowed=False)
"""For pages that are not allowed. Caches must still know that answers depend on the origin."""


class Cors:
    """The origins that may use llmux.

    Args:
        origins: Origins as browsers send them, or an asterisk for all.
    """

    def __init__(self, origins: Sequence[str] | Literal["*"]) -> None:
        self._origins = None if origins == "*" else {origin.encode() for origin in origins}

    def sharing(self, headers: Headers) -> Sharing:
        """Return the CORS headers for the answer to a request."""
        origin = header(headers, b"origin")
        if not origin:
            return FOREIGN
        if self._origins is None:
            origin = b"*"
        elif origin not in self._origins:
            return FOREIGN
        added = [
            (b"access-control-allow-origin", origin),
            (b"access-control-expose-headers", EXPOSED),
            VARY,
        ]
        return Sharing(added, is_allowed=True)

    def preflight(self, method: bytes, headers: Headers) -> Headers | None:
        """Return the headers that answer a preflight, beside `sharing`; None for other requests.

        Allows all methods and headers that the preflight asks for, since judging them is up to the
        backend. A wildcard is not enough: it does not cover `Authorization`.
        """
        if method != b"OPTIONS":
            return None
        asked = header(headers, b"access-control-request-method")
        if not asked or not self.sharing(headers).is_allowed:
            return None
        allowed = [
            (b"access-control-allow-methods", asked),
            (b"access-control-max-age", b"%d" % MAX_AGE_S),
        ]
        names = header(headers, b"access-control-request-headers")
        if max(len(asked), len(names)) > MAX_ASKED_BYTES:
            return None
        if names:
            allowed.append((b"access-control-allow-headers", names))
        return allowed


def is_shared_path(path: bytes) -> bool:
    """Return whether pages may read a raw path of llmux's own."""
    return any(path == own or path.startswith(own + b"/") for own in SHARED_OWN_PATHS)


def shared(cors: Cors, app: ASGIApp) -> ASGIApp:
    """Wrap the app of llmux's own paths to answer preflights and add CORS headers."""

    async def serve(scope: Scope, receive: Receive, send: Send) -> None:
        sharing = cors.sharing(scope["headers"])
        allowed = cors.preflight(scope["method"].encode("latin-1", "replace"), scope["headers"])

        async def send_shared(message: Message) -> None:
            if message["type"] == "http.response.start":
                message = {**message, "headers": [*message["headers"], *sharing.added]}
            await send(message)

        if allowed is None:
            await app(scope, receive, send_shared)
            return
        # Not for the app, which would want a key.
        await send_shared({"type": "http.response.start", "status": 204, "headers": allowed})
        await send({"type": "http.response.body", "body": b"", "more_body": False})

    return serve
