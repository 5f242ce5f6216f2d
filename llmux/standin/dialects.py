"""How the stand-in words its answers where they are not OpenAI's: Anthropic's API and Ollama's.

Pure functions, from what is said to the bytes of an answer. Anthropic's come as named server-sent
events, Ollama's as one JSON object a line.
"""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from email.parser import BytesParser
from email.policy import HTTP
from functools import partial
from typing import Any

import msgspec


@dataclass(frozen=True, kw_only=True)
class Words:
    """What one answer says.

    Attributes:
        model: Who says it.
        count: How many tokens it has.
        is_cut: Whether it ends because it may not be longer.
        prompt_count: Tokens of the question.
        number: Which answer of this server it is.
    """

    model: str
    count: int
    is_cut: bool
    prompt_count: int
    number: int

    def tokens(self) -> Iterator[str]:
        """The answer, token by token."""
        return made_up(self.model, self.count)

    @property
    def text(self) -> str:
        """All of it."""
        return "".join(self.tokens())


@dataclass(frozen=True, kw_only=True)
class Dialect:
    """How an API words an answer.

    Attributes:
        stream_type: Content type of a streamed answer.
        whole: The whole answer, for JSON.
        opening: What opens a stream before there is any text.
        part: One token of a stream.
        closing: What ends a stream.
    """

    stream_type: str
    whole: Callable[[Words], dict[str, Any]]
    opening: Callable[[Words], bytes]
    part: Callable[[Words, str], bytes]
    closing: Callable[[Words], bytes]


def made_up(model: str, count: int) -> Iterator[str]:
    """So many tokens, the same every time, the model's name first."""
    words = f"{model} is a stand-in and makes these words up.".split()
    for index, word in enumerate(itertools.islice(itertools.cycle(words), count)):
        yield f" {word}" if index else word


# --- Anthropic: POST /v1/messages ----------------------------------------------------------------


def _events(*payloads: dict[str, Any]) -> bytes:
    """Events of a stream; each is named as its payload's type."""
    return b"".join(
        b"event: %b\ndata: %b\n\n" % (payload["type"].encode(), msgspec.json.encode(payload))
        for payload in payloads
    )


def _message(words: Words, text: str | None) -> dict[str, Any]:
    """A message; without a text it is one that has only begun."""
    has_ended = text is not None
    return {
        "id": f"msg_{words.number}",
        "type": "message",
        "role": "assistant",
        "model": words.model,
        "content": [{"type": "text", "text": text}] if has_ended else [],
        "stop_reason": _stop_reason(words) if has_ended else None,
        "stop_sequence": None,
        "usage": {
            "input_tokens": words.prompt_count,
            "output_tokens": words.count if has_ended else 0,
        },
    }


def _stop_reason(words: Words) -> str:
    return "max_tokens" if words.is_cut else "end_turn"


ANTHROPIC = Dialect(
    stream_type="text/event-stream",
    whole=lambda words: _message(words, words.text),
    opening=lambda words: _events(
        {"type": "message_start", "message": _message(words, None)},
        {
            "type": "content_block_start",
            "index": 0,
            "content_block": {"type": "text", "text": ""},
        },
        {"type": "ping"},
    ),
    part=lambda _, token: _events(
        {
            "type": "content_block_delta",
            "index": 0,
            "delta": {"type": "text_delta", "text": token},
        },
    ),
    closing=lambda words: _events(
        {"type": "content_block_stop", "index": 0},
        {
            "type": "message_delta",
            "delta": {"stop_reason": _stop_reason(words), "stop_sequence": None},
            "usage": {"output_tokens": words.count},
        },
        {"type": "message_stop"},
    ),
)


# --- Ollama: POST /api/chat and /api/generate ----------------------------------------------------

_Said = Callable[[str], dict[str, Any]]


def _step(said: _Said, words: Words, text: str, *, is_last: bool) -> dict[str, Any]:
    now = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
    step = {"model": words.model, "created_at": now, **said(text), "done": is_last}
    if not is_last:
        return step
    counts = {"prompt_eval_count": words.prompt_count, "eval_count": words.count}
    return {**step, "done_reason": "length" if words.is_cut else "stop", **counts}


def _line(said: _Said, words: Words, text: str, *, is_last: bool) -> bytes:
    return msgspec.json.encode(_step(said, words, text, is_last=is_last)) + b"\n"


def _ollama(said: _Said) -> Dialect:
    return Dialect(
        stream_type="application/x-ndjson",
        whole=lambda words: _step(said, words, words.text, is_last=True),
        opening=lambda _: b"",
        part=partial(_line, said, is_last=False),
        closing=lambda words: _line(said, words, "", is_last=True),
    )


OLLAMA_CHAT = _ollama(lambda text: {"message": {"role": "assistant", "content": text}})
OLLAMA_GENERATE = _ollama(lambda text: {"response": text})


# --- Forms: POST /v1/audio/transcriptions --------------------------------------------------------


def form_fields(content_type: str, body: bytes) -> dict[str, bytes]:
    """The fields of a multipart form, files too, as they came; nothing if it is none."""
    message = BytesParser(policy=HTTP).parsebytes(
        f"Content-Type: {content_type}\r\n\r\n".encode("latin-1") + body
    )
    parts: Iterable[Any] = message.iter_parts() if message.is_multipart() else ()
    fields = {}
    for part in parts:
        name = part.get_param("name", header="content-disposition")
        fields[str(name)] = part.get_payload(decode=True)
    return fields
