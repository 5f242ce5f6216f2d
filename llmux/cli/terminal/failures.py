"""How a command fails: one line for people, an exit code for scripts."""

from __future__ import annotations

import click

EXIT_INTERRUPTED = 130
"""Ctrl-C: 128 + SIGINT, as shells have it."""

EXIT_READER_LEFT = 141
"""Whoever read the output has left, as `head` does: 128 + SIGPIPE."""


class Failed(click.ClickException):
    """llmux has said no, or what it was told to do has failed.

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
    """Nobody there, TLS, a timeout, a connection that broke, or an answer that is not llmux's."""

    exit_code = 5


class KeyRefused(Failed):
    """The key is missing or wrong, or llmux answers programs of its own machine only."""

    exit_code = 6


def shown(text: str) -> str:
    """A text from elsewhere that can steer no terminal; its lines are kept."""
    return "".join(c if c.isprintable() or c == "\n" else "\N{REPLACEMENT CHARACTER}" for c in text)
