"""Section of the config about resources that clients may take."""

from __future__ import annotations

from llmux.config.section import Section
from llmux.config.values import PositiveInt, Seconds


class Limits(Section, frozen=True, kw_only=True):
    """Limits for each client, and for all clients together.

    Attributes:
        body_bytes: Maximum size of a request body.
        queued_per_model: Maximum number of requests that wait for one model.
        queued_bytes: Maximum size of all waiting requests, heads and bodies, and of llmux's own
            answers.
        body_secs: Maximum time for a request body to arrive.
        client_stall_secs: Cut a client that takes no byte for this long, and a WebSocket whose
            backend takes none.
        dead_peer_secs: Give up on a client or backend whose host has not answered for this long
            (TCP keep-alive); null for the system's settings.
        connections: Maximum number of client connections; null for as many as there are file
            descriptors for.
        header_fields: Maximum number of header fields of a request.
        connections_per_client: Maximum number of connections from one address (IPv6: from one /64);
            null for half of all, and no limit for programs on this machine. Does not apply to
            trusted_proxies. `llmux` only.
        queued_per_client: Maximum number of waiting requests from one address, for all models
            together; null for no limit. Behind trusted_proxies it is the address that they forward.
        remembered_ids: Number of responses, files, batches and the like for which llmux remembers
            the model that made them. The least recently used is forgotten first.
    """

    body_bytes: PositiveInt = 64 << 20
    queued_per_model: PositiveInt = 1000
    queued_bytes: PositiveInt = 1 << 30
    body_secs: Seconds = 600.0
    client_stall_secs: Seconds = 60.0
    dead_peer_secs: Seconds | None = 120.0
    connections: PositiveInt | None = None
    header_fields: PositiveInt = 128
    connections_per_client: PositiveInt | None = None
    queued_per_client: PositiveInt | None = None
    remembered_ids: PositiveInt = 10_000
