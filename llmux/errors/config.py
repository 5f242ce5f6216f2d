"""Errors in the config."""

from __future__ import annotations

from llmux.errors.request import BadRequest


class ConfigError(Exception):
    """An invalid config.

    Attributes:
        mistakes: One line for each mistake, `path.in.the.file: what is wrong`.
        lines: The same for people, as far as possible with the place: `file:line:column: ...`.
    """

    def __init__(self, mistakes: list[str], lines: list[str] | None = None) -> None:
        self.mistakes = mistakes
        self.lines = mistakes if lines is None else lines
        super().__init__("\n".join(self.lines))


class ConfigMistakes(BadRequest):
    """A config sent to the control API is invalid."""

    def __init__(self, mistakes: list[str]) -> None:
        super().__init__("\n".join(mistakes))
