"""Bodies of requests to the stand-in, in the APIs that it speaks."""

from __future__ import annotations

from collections.abc import Iterable
from email.parser import BytesParser
from email.policy import HTTP
from typing import Annotated, Any

import msgspec
from msgspec import Meta

Text = str | list[str | int | list[int]]
"""Input of completions and embeddings: a text, several texts, or token ids."""

Rate = Annotated[float, Meta(ge=0)]
Count = Annotated[int, Meta(ge=1, le=1 << 31)]


class _Part(msgspec.Struct):
    text: str = ""


class _Message(msgspec.Struct):
    content: str | list[_Part] | None = None


class _StreamOptions(msgspec.Struct):
    include_usage: bool = False


class Prompt(msgspec.Struct):
    """A request for text. Fields that make no difference to a stand-in are ignored."""

    messages: list[_Message] = []
    prompt: Text = ""
    max_tokens: Count | None = None
    max_completion_tokens: Count | None = None
    stream: bool = False
    stream_options: _StreamOptions | None = None
    rate: Rate | None = None

    @property
    def token_count(self) -> int:
        return count_tokens(self.messages) + count_tokens(self.prompt)


class _OllamaOptions(msgspec.Struct):
    num_predict: Count | None = None


class OllamaPrompt(Prompt):
    """A request for text in Ollama's API, which streams by default."""

    stream: bool = True
    options: _OllamaOptions | None = None

    def __post_init__(self) -> None:
        if self.options is not None:
            self.max_tokens = self.options.num_predict


class EmbeddingInput(msgspec.Struct):
    """A request for embeddings."""

    input: Text

    def texts(self) -> list[Any]:
        """Return the inputs one by one: a list of numbers is one text."""
        several = isinstance(self.input, list) and not any(isinstance(i, int) for i in self.input)
        return list(self.input) if several else [self.input]


def count_tokens(text: object) -> int:
    """Count every word, and every token id, as one token."""
    match text:
        case str():
            return len(text.split())
        case list():
            return sum(map(count_tokens, text))
        case _Message(content=inner) | _Part(text=inner):
            return count_tokens(inner)
        case _:
            return 0 if text is None else 1


def form_fields(content_type: str, body: bytes) -> dict[str, bytes]:
    """Return the raw fields and files of a multipart form; empty if the body is no form."""
    message = BytesParser(policy=HTTP).parsebytes(
        f"Content-Type: {content_type}\r\n\r\n".encode("latin-1") + body
    )
    parts: Iterable[Any] = message.iter_parts() if message.is_multipart() else ()
    fields = {}
    for part in parts:
        name = part.get_param("name", header="content-disposition")
        fields[str(name)] = part.get_payload(decode=True)
    return fields
