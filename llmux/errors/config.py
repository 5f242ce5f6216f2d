"""Errors in the config."""

from __future__ import annotations

from llmux.errors.request import BadRequest


class ConfigError(Exception):
    """An invalid config.

    Attributes:
        mistakes: One line for each mistake, `path.in.the.file: what is wrong`.
    """

    def __init__(self, mistakes: list[str]) -> None:
        super().__init__("\n".join(mistakes))
        self.mistakes = mistakes


class ConfigMistakes(BadRequest):
    """A config sent to the control API is invalid."""

    def __init__(self, mistakes: list[str]) -> None:
        super().__init__("\n".join(mistakes))
