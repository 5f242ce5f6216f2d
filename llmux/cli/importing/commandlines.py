"""Command lines of llama-swap, which splits them itself, as command lines for a shell."""

from __future__ import annotations

import re
import shlex

from llmux.errors import ConfigError

_PLAIN = re.compile(r"(?:[\w@%+=:,./-]|\$\{PORT\}|\$\{env:\w+\})+")
_SPECIAL = re.compile(r'(["\\`]|\$(?!\{PORT\}|\{env:\w+\}))')

_OWN_PORT = re.compile(r"(?<!\S)--(?:listen-)?port[= ](\d+)(?!\S)")


def shell_words(text: str, where: str) -> list[str]:
    """Return a command's words, quoted for a shell where they need it.

    Lines that begin with `#` are comments, as in llama-swap.

    Raises:
        ConfigError: The command is empty, or a quote is not closed.
    """
    lines = [line.strip() for line in text.splitlines()]
    joined = "\n".join(line.removesuffix("\\") for line in lines if not line.startswith("#"))
    try:
        words = shlex.split(joined)
    except ValueError as error:
        raise ConfigError([f"{where}: {str(error).lower()}"]) from None
    if not words:
        raise ConfigError([f"{where}: the command is empty"])
    return [shell_word(word) for word in words]


def shell_word(word: str) -> str:
    """Return a word, quoted for a shell if it needs that; macros in it stay."""
    if _PLAIN.fullmatch(word):
        return word
    if "${" in word:  # a shell replaces nothing within single quotes
        return '"' + _SPECIAL.sub(r"\\\1", word) + '"'
    return shlex.quote(word)


def port_of(command: str) -> int | None:
    """Return the port after `--port` or `--listen-port`; None if there is none."""
    match = _OWN_PORT.search(command)
    return int(match[1]) if match else None
