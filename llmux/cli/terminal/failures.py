"""Failures of commands: one line for people, an exit code for scripts."""

from __future__ import annotations

import click

EXIT_INTERRUPTED = 130
"""Exit code after Ctrl-C: 128 + SIGINT, as in shells."""

EXIT_READER_LEFT = 141
"""Exit code when the reader of the output has gone, as `head` does: 128 + SIGPIPE."""


class Failed(click.ClickException):
    """llmux refused an order, or the order failed.

    `llmux serve` ends with 0 to 4; 2 is a mistake in the command line, everywhere.

    Args:
        message: Why, for people.
        answer: What llmux has said, as it came; empty: nothing.
    """

    exit_code = 1

    def __init__(self, message: str, answer: bytes = b"") -> None:
        super().__init__(shown(message))
        self.answer = answer


class NoAnswer(Failed):
    """No usable answer: no listener, TLS, a timeout, a broken connection, a foreign answer."""

    exit_code = 5


class KeyRefused(Failed):
    """The key is missing or wrong, or llmux answers programs of its own machine only."""

    exit_code = 6


def shown(text: str) -> str:
    """Remove terminal control codes from a text, but keep its lines."""
    return "".join(c if c.isprintable() or c == "\n" else "\N{REPLACEMENT CHARACTER}" for c in text)
