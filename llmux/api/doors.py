"""Which listener answers which path, where the control API has a listener of its own."""

from __future__ import annotations

from typing import Literal

from llmux.errors import LlmuxError, NotHere
from llmux.http.asgi_types import ASGIApp, Receive, Scope, Send

LISTENER = "llmux.listener"
"""ASGI scope key: the control listener that the request came by; missing for the main one."""

SOCKET: Literal["socket"] = "socket"
PORT: Literal["port"] = "port"

ON_BOTH = frozenset({b"/health", b"/metrics"})

ABOUT_CONTROL = "The control API has a listener of its own: `control` in llmux's config says where"
ABOUT_OTHERS = "Only the control API is answered here; all else by llmux's main listener"


def marked(app: ASGIApp, kind: Literal["socket", "port"]) -> ASGIApp:
    """Wrap an app so that its requests carry the control listener that they came by."""

    async def serve(scope: Scope, receive: Receive, send: Send) -> None:
        await app({**scope, LISTENER: kind}, receive, send)

    return serve


def refusal(scope: Scope, *, is_apart: bool) -> LlmuxError | None:
    """Return why a request's listener does not answer it, or None if it does.

    Args:
        scope: With a path of origin form.
        is_apart: Whether the control API has a listener of its own.
    """
    path: bytes = scope["raw_path"]
    is_control = path in {b"/control", b"/ui"} or path.startswith((b"/control/", b"/ui/"))
    if LISTENER in scope:
        return None if is_control or path in ON_BOTH else NotHere(ABOUT_OTHERS)
    return NotHere(ABOUT_CONTROL) if is_apart and is_control else None
