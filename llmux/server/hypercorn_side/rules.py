"""Limits for Hypercorn's connections: one set for the process, since Hypercorn makes them."""

from __future__ import annotations

from dataclasses import dataclass

from hypercorn.config import Config as ServerConfig

from llmux.config import Config
from llmux.proxy.held import Bodies

LINGER_S = 2.0
"""Time for a refused client to finish sending: closing on unread data would lose the answer."""

YIELD_EVENTS = 64
"""Frames of one client that are handled before other tasks get their turn."""


@dataclass
class Rules:
    """Limits of a connection.

    Attributes:
        http2: True if HTTP/2 is offered.
        most_fields: Header fields of a request, at most.
        stall_s: Seconds without a byte taken after which a client is cut.
        dead_peer_s: Seconds without an answer after which a client's host counts as gone.
        bodies: Counts the memory of WebSocket messages; None: not counted.
    """

    http2: bool = False
    most_fields: int = 128
    stall_s: float = 60.0
    dead_peer_s: float | None = 120.0
    bodies: Bodies | None = None


RULES = Rules()
"""The limits in force. Global, since under `hypercorn llmux.app:app` llmux makes no connections."""


def use_rules(config: Config) -> None:
    """Apply a config's limits to all connections from now on."""
    RULES.http2 = config.http2
    RULES.most_fields = config.limits.header_fields
    RULES.stall_s = config.limits.client_stall_secs
    RULES.dead_peer_s = config.limits.dead_peer_secs
    # Hypercorn makes its TLS context once the lifespan has begun, so after this.
    ServerConfig.alpn_protocols = ["h2", "http/1.1"] if config.http2 else ["http/1.1"]
