"""Limits for Hypercorn's connections: one set per process, since Hypercorn creates them."""

from __future__ import annotations

from dataclasses import dataclass

from hypercorn.config import Config as ServerConfig

from llmux.config import Config
from llmux.proxy.held import Bodies

LINGER_S = 2.0
"""Time for a refused client to finish sending.

If a socket is closed while data is unread, TCP resets the connection and the client may never see
the error response.
"""

YIELD_EVENTS = 64
"""Frames of one client that are handled before other tasks may run."""


@dataclass
class Rules:
    """Limits of a connection.

    Attributes:
        http2: True if HTTP/2 is offered.
        most_fields: Header fields of a request, at most.
        stall_s: Seconds after which a client that reads nothing is cut off.
        dead_peer_s: Seconds without a TCP acknowledgement after which a client's host is
            considered gone; None: never.
        bodies: Counts the memory of WebSocket messages; None: they are not counted.
    """

    http2: bool = False
    most_fields: int = 128
    stall_s: float = 60.0
    dead_peer_s: float | None = 120.0
    bodies: Bodies | None = None


RULES = Rules()
"""The limits in force. Global: Hypercorn, not llmux, creates the connections of `llmux.app:app`."""


def use_rules(config: Config) -> None:
    """Apply a config's limits to all connections from now on."""
    RULES.http2 = config.http2
    RULES.most_fields = config.limits.header_fields
    RULES.stall_s = config.limits.client_stall_secs
    RULES.dead_peer_s = config.limits.dead_peer_secs
    # Hypercorn creates its TLS context after the lifespan has begun, so it sees this.
    ServerConfig.alpn_protocols = ["h2", "http/1.1"] if config.http2 else ["http/1.1"]
