"""Sections of the config for operators: the control API's listener, and how much errors tell."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Annotated, Any, Literal

from msgspec import Meta

from llmux.config.section import Keys, Section
from llmux.config.values import Host, SocketPath


class ControlConfig(Section, frozen=True, kw_only=True):
    """A separate listener for /control and /ui; the main listener then does not serve them.

    Attributes:
        host: Address to listen on, beside port; 127.0.0.1 by default.
        port: Port to listen on; 0 lets the system pick one. Give this or socket.
        socket: Path of a Unix socket that only llmux's own user may open; relative to the config's
            folder. Give this or port.
    """

    host: Host | None = None
    port: Annotated[int, Meta(ge=0, le=65535)] | None = None
    socket: SocketPath | None = None

    @staticmethod
    def conflicts(given: Mapping[Any, Any]) -> Iterator[tuple[Keys, str]]:
        """Demand one of port and socket, and host only beside port."""
        host, port, socket = (given.get(key) is not None for key in ("host", "port", "socket"))
        if port and socket:
            yield (), "give 'port' or 'socket', not both"
        elif socket and host:
            yield ("host",), "goes with 'port' only"
        elif not port and not socket:
            yield (), "give 'port' or 'socket'"


class ErrorsConfig(Section, frozen=True, kw_only=True):
    """How much errors reveal.

    Attributes:
        hook_output: Recipients of the last lines that a failed hook printed, which may hold
            secrets: operators for the log and the control API only; clients for clients, too.
    """

    hook_output: Literal["operators", "clients"] = "operators"
