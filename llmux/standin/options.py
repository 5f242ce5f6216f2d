"""Settings of a stand-in."""

from __future__ import annotations

from dataclasses import dataclass

HOST = "127.0.0.1"


@dataclass(frozen=True, kw_only=True)
class Options:
    """Settings of a stand-in.

    Attributes:
        model: Model name in its answers.
        host: Address to listen on.
        port: Port to listen on; 0 lets the system pick one.
        rate: Tokens per second of an answer; 0 for as fast as the client reads.
        tokens: Length of an answer whose request does not say `max_tokens`.
        wake_s: How long `/wake_up` takes, in seconds.
        sleep_s: How long `/sleep` takes, in seconds.
        asleep: True to start asleep.
    """

    model: str
    host: str = HOST
    port: int = 0
    rate: float = 0
    tokens: int = 32
    wake_s: float = 0
    sleep_s: float = 0
    asleep: bool = False
