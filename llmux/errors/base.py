"""The error that carries its own HTTP response, and the one for anything unexpected."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, ClassVar

from llmux.base.names import shown


class LlmuxError(Exception):
    """An error with an HTTP response.

    Attributes:
        status: HTTP status code.
        code: Machine-readable `error.code`, which clients may rely on.
        may_be_repeated: False to keep clients from retrying as they otherwise would after this
            status.
        may_be_served_elsewhere: True if another host might serve the request, as long as it has
            reached no backend here.
        challenge: Value of a `WWW-Authenticate` header; empty for no header.
        extra: Further members of a backend's own error object.
        accepts: Value of an `Accept-Encoding` header, with the codings that llmux supports; empty
            for no header.
        retry_after_s: Whole seconds for a `Retry-After` header, or None for no header.
    """

    status: ClassVar[int] = 500
    code: ClassVar[str] = "internal"
    may_be_repeated: ClassVar[bool] = True
    may_be_served_elsewhere: ClassVar[bool] = False
    challenge: ClassVar[str] = ""
    extra: Mapping[str, Any] = {}
    accepts: ClassVar[str] = ""

    def __init__(self, message: str, *, retry_after_s: float | None = None) -> None:
        super().__init__(message)
        # At least 1, since OpenAI's library ignores 0.
        self.retry_after_s = None if retry_after_s is None else max(1, math.ceil(retry_after_s))

    @property
    def message(self) -> str:
        """Human-readable `error.message`."""
        return str(self)

    @property
    def details(self) -> str:
        """Message for operators: the log, and holders of control keys."""
        return str(self)


class InternalError(LlmuxError):
    """An unexpected error."""

    def __init__(self, error: BaseException) -> None:
        super().__init__(f"Internal error: {type(error).__name__}: {shown(str(error))}")
