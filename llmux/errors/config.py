"""Errors in the config."""

from __future__ import annotations

from llmux.errors.request import BadRequest


class ConfigError(Exception):
    """A config that cannot be used.

    Attributes:
        mistakes: One line each, `path.in.the.file: what is wrong`.
    """

    def __init__(self, mistakes: list[str]) -> None:
        super().__init__("\n".join(mistakes))
        self.mistakes = mistakes


class ConfigMistakes(BadRequest):
    """The config to apply has mistakes."""

    def __init__(self, mistakes: list[str]) -> None:
        super().__init__("\n".join(mistakes))
