"""Errors, in OpenAI's form and in Ollama's."""

from __future__ import annotations

from typing import Literal

from llmux.observe.schemas.base import Shape


class ErrorDetail(Shape, frozen=True):
    """The details of an error.

    Attributes:
        message: A description for people.
        type: Always `llmux_error`.
        param: Always null.
        code: An error code for programs.
    """

    message: str
    type: Literal["llmux_error"]
    param: None
    code: str


class OllamaError(Shape, frozen=True):
    """An error, in Ollama's form.

    Attributes:
        error: A description for people.
        code: An error code for programs.
    """

    error: str
    code: str


class Error(Shape, frozen=True):
    """An error, in OpenAI's form.

    Attributes:
        error: The details.
    """

    error: ErrorDetail
