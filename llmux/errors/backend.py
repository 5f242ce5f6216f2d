"""Errors of backends."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from llmux.errors.base import LlmuxError


class BackendError(LlmuxError):
    """The backend refused, reset or broke the connection before its status line."""

    status = 502
    code = "backend_error"
    may_be_served_elsewhere = True

    def __init__(self, reason: str) -> None:
        super().__init__(f"Backend error: {reason}")


class BackendRefused(BackendError):
    """The backend refused the connection, so it cannot have seen the request."""


class BackendSilent(BackendError):
    """The backend's stream was silent for the model's `stream_idle_secs`."""

    def __init__(self, limit_s: float) -> None:
        super().__init__(f"nothing came for {limit_s:g} s (the model's stream_idle_secs)")


class NoStream(BackendError):
    """The client expects a stream, and the backend's response cannot be converted to one."""

    def __init__(self, status: int, body: bytes) -> None:
        super().__init__(f"answered {status}: {body[:2000].decode(errors='replace')}")


class BackendSaid(BackendError):
    """The backend's own error, for a client whose stream has already started.

    Args:
        status: The backend's status code.
        message: The backend's error message.
        extra: Further members of its error object.
    """

    def __init__(self, status: int, message: str, extra: Mapping[str, Any]) -> None:
        LlmuxError.__init__(self, message)
        self.status = status  # type: ignore[misc]  # overrides the class's
        self.extra = extra


class BackendBroke(Exception):
    """The backend failed after its status line, so the client's response can only be cut off."""
