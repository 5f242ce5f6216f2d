"""Assign paths to listeners, if the control API has a listener of its own."""

from __future__ import annotations

from typing import Literal

from llmux.errors import LlmuxError, NotHere
from llmux.http.asgi_types import ASGIApp, Receive, Scope, Send
from llmux.http.paths import CONTROL_PATHS, ROOT, is_below

LISTENER = "llmux.listener"
"""ASGI scope key for the control listener that received the request; missing on the main one."""

SOCKET: Literal["socket"] = "socket"
PORT: Literal["port"] = "port"

READING = frozenset({"GET", "HEAD"})

ON_BOTH = (b"/health", b"/metrics")

CONTROL_AND_PAGE = (*CONTROL_PATHS, b"/ui")

ABOUT_CONTROL = "The control API has a listener of its own: `control` in llmux's config says where"
ABOUT_OTHERS = "This listener serves the control API only; all else is on llmux's main listener"


def mark_listener(app: ASGIApp, kind: Literal["socket", "port"]) -> ASGIApp:
    """Wrap an app to mark its requests with the control listener that received them."""

    async def serve(scope: Scope, receive: Receive, send: Send) -> None:
        await app({**scope, LISTENER: kind}, receive, send)

    return serve


def wrong_listener(scope: Scope, *, is_apart: bool) -> LlmuxError | None:
    """Return the error for a request on the wrong listener, or None.

    Args:
        scope: Of the request, with a path in origin form.
        is_apart: True if the control API has a listener of its own.
    """
    path: bytes = scope["raw_path"]
    is_control = is_below(path, CONTROL_AND_PAGE)
    if LISTENER in scope:
        is_root = path == ROOT and scope.get("method") in READING  # it leads to the page
        return None if is_control or is_root or is_below(path, ON_BOTH) else NotHere(ABOUT_OTHERS)
    return NotHere(ABOUT_CONTROL) if is_apart and is_control else None
