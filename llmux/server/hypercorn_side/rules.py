"""What Hypercorn's connections are held to; in one place for the process, since it makes them."""

from __future__ import annotations

from dataclasses import dataclass

from hypercorn.config import Config as ServerConfig

from llmux.config import Config
from llmux.proxy.held import Bodies

LINGER_S = 2.0
"""How long a client that was refused may go on sending: closing on unread data loses the answer."""

YIELD_EVENTS = 64
"""After so many frames of one client, others get their turn."""


@dataclass
class Rules:
    """The rules.

    Attributes:
        http2: Whether HTTP/2 is spoken.
        most_fields: How many header fields a request may have.
        stall_s: Seconds without a byte taken after which a client is cut.
        dead_peer_s: Seconds without an answer after which a client's host counts as gone.
        bodies: Where messages of WebSockets are counted; None: nowhere.
    """

    http2: bool = False
    most_fields: int = 128
    stall_s: float = 60.0
    dead_peer_s: float | None = 120.0
    bodies: Bodies | None = None


RULES = Rules()
"""Those in force: under `hypercorn llmux.app:app` nothing of ours makes the connections."""


def use_rules(config: Config) -> None:
    """Hold all connections from now on to what this says."""
    RULES.http2 = config.http2
    RULES.most_fields = config.limits.header_fields
    RULES.stall_s = config.limits.client_stall_secs
    RULES.dead_peer_s = config.limits.dead_peer_secs
    # Hypercorn makes its TLS context once the lifespan has begun, so after this.
    ServerConfig.alpn_protocols = ["h2", "http/1.1"] if config.http2 else ["http/1.1"]
