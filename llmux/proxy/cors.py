"""CORS: which pages of other origins may use models from a browser (Fetch standard, section 3.3).

llmux answers preflights itself, since they carry no key and must wake no model, and says on every
other answer whether the page that asked may read it. The control API is never shared.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, NamedTuple

from llmux.http.asgi_types import ASGIApp, Message, Receive, Scope, Send
from llmux.http.syntax import Headers
from llmux.openai.headers import header

SHARED_OWN_PATHS = (
    b"/v1/models", b"/models", b"/health", b"/api/tags", b"/api/ps", b"/api/version",
)  # fmt: skip
"""llmux's own paths that pages may read, and what is below them; beside all model traffic."""

MAX_AGE_S = 600
"""How long a browser need not ask again; so a narrowed config counts for all after ten minutes."""

MAX_ASKED_BYTES = 4096
"""What a preflight may ask for: it comes back. Browsers send the names of a page's own headers."""

BACKENDS_OWN = b"access-control-"
"""What a backend's headers begin with in whose place llmux's own are sent."""

EXPOSED = b"x-llmux-model, x-llmux-wait-ms, x-llmux-request-id, *"
"""What a page may read of the headers; the names are for browsers that know no asterisk."""

VARY = (b"vary", b"Origin")


class Sharing(NamedTuple):
    """What an answer says to the page that asked.

    Attributes:
        added: Headers for the answer.
        is_allowed: Whether the page may read it; then a backend's own opinion does not count.
    """

    added: Headers
    is_allowed: bool

    def applied(self, headers: list[tuple[bytes, bytes]]) -> list[tuple[bytes, bytes]]:
        """A backend's headers without those that llmux sets; `added` is still to be added."""
        if not self.is_allowed:
            return headers
        return [field for field in headers if not field[0].lower().startswith(BACKENDS_OWN)]


FOREIGN = Sharing([VARY], is_allowed=False)
"""Says nothing to the page, and to caches that others may hear something else."""


class Cors:
    """The origins that may use llmux.

    Args:
        origins: As browsers send them, or an asterisk for all.
    """

    def __init__(self, origins: Sequence[str] | Literal["*"]) -> None:
        self._origins = None if origins == "*" else {origin.encode() for origin in origins}

    def sharing(self, headers: Headers) -> Sharing:
        """What every answer to a request with these headers says."""
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
        """What the answer to a preflight says beside `sharing`; None for any other request.

        Whatever method and headers it asks for are allowed: they are the backend's business. A
        wildcard would not do, since it does not hold for `Authorization`.
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
    """Whether a raw path of llmux's own may be read by pages."""
    return any(path == own or path.startswith(own + b"/") for own in SHARED_OWN_PATHS)


def shared(cors: Cors, app: ASGIApp) -> ASGIApp:
    """An app for llmux's own paths, so that pages may read what it answers."""

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
        await send_shared({"type": "http.response.start", "status": 204, "headers": allowed})
        await send({"type": "http.response.body", "body": b"", "more_body": False})

    return serve
