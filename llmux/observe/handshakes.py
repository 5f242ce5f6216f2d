"""Log TLS handshakes that fail, at debug level: on a public port they are many."""

from __future__ import annotations

from llmux.observe.logs import get_logger

TOO_SLOW = "the client took too long"

log = get_logger(__name__)


def note_failed(peer: str | None, reason: str) -> None:
    """Log a handshake that failed.

    Args:
        peer: Address of the client.
        reason: Why it failed.
    """
    log.debug("handshake_failed", peer=peer, reason=reason)
