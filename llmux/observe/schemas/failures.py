"""Errors in OpenAI's form and in Ollama's."""

from __future__ import annotations

from typing import Literal

from llmux.observe.schemas.base import Shape


class ErrorDetail(Shape, frozen=True):
    """What is wrong.

    Attributes:
        message: In words.
        type: Always `llmux_error`.
        param: Always null.
        code: For programs.
    """

    message: str
    type: Literal["llmux_error"]
    param: None
    code: str


class OllamaError(Shape, frozen=True):
    """An error, in Ollama's form.

    Attributes:
        error: In words.
        code: For programs.
    """

    error: str
    code: str


class Error(Shape, frozen=True):
    """An error, in OpenAI's form.

    Attributes:
        error: What is wrong.
    """

    error: ErrorDetail
