"""Answers in Anthropic's API and in Ollama's.

Anthropic streams named server-sent events, Ollama one JSON object a line.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any

import msgspec
import trio

from llmux.standin.http1 import Response
from llmux.standin.pacing import generate, wait_for_token


@dataclass(frozen=True, kw_only=True)
class Reply:
    """Content of one answer.

    Attributes:
        model: Name of the answering model.
        count: Number of tokens.
        is_truncated: True if the request's limit ends it.
        prompt_count: Tokens of the prompt.
        number: Serial number of the answer on this server.
    """

    model: str
    count: int
    is_truncated: bool
    prompt_count: int
    number: int

    def tokens(self) -> Iterator[str]:
        return generate(self.model, self.count)

    @property
    def text(self) -> str:
        return "".join(self.tokens())


@dataclass(frozen=True, kw_only=True)
class Dialect:
    """Wording of an API's answers.

    Attributes:
        stream_type: Content type of a streamed answer.
        whole: Makes the whole answer, for JSON.
        opening: Makes the start of a stream, before there is any text.
        part: Makes one token of a stream.
        closing: Makes the end of a stream.
    """

    stream_type: str
    whole: Callable[[Reply], dict[str, Any]]
    opening: Callable[[Reply], bytes]
    part: Callable[[Reply, str], bytes]
    closing: Callable[[Reply], bytes]

    async def write_whole(self, response: Response, reply: Reply, rate: float) -> None:
        """Answer once the last token is due."""
        await wait_for_token(rate, reply.count, trio.current_time())
        await response.json(self.whole(reply))

    async def write_stream(self, response: Response, reply: Reply, rate: float) -> None:
        """Answer token by token."""
        await response.begin_stream(self.stream_type)
        began = trio.current_time()
        await response.piece(self.opening(reply))
        for number, token in enumerate(reply.tokens(), 1):
            await wait_for_token(rate, number, began)
            await response.piece(self.part(reply, token))
        await response.end_stream(self.closing(reply))


# --- Anthropic: POST /v1/messages ----------------------------------------------------------------


def _events(*payloads: dict[str, Any]) -> bytes:
    """Encode events of a stream, each named after its payload's type."""
    return b"".join(
        b"event: %b\ndata: %b\n\n" % (payload["type"].encode(), msgspec.json.encode(payload))
        for payload in payloads
    )


def _message(reply: Reply, text: str | None) -> dict[str, Any]:
    """Make a message; one without text has only started."""
    has_ended = text is not None
    return {
        "id": f"msg_{reply.number}",
        "type": "message",
        "role": "assistant",
        "model": reply.model,
        "content": [{"type": "text", "text": text}] if has_ended else [],
        "stop_reason": _stop_reason(reply) if has_ended else None,
        "stop_sequence": None,
        "usage": {
            "input_tokens": reply.prompt_count,
            "output_tokens": reply.count if has_ended else 0,
        },
    }


def _stop_reason(reply: Reply) -> str:
    return "max_tokens" if reply.is_truncated else "end_turn"


ANTHROPIC = Dialect(
    stream_type="text/event-stream",
    whole=lambda reply: _message(reply, reply.text),
    opening=lambda reply: _events(
        {"type": "message_start", "message": _message(reply, None)},
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
    closing=lambda reply: _events(
        {"type": "content_block_stop", "index": 0},
        {
            "type": "message_delta",
            "delta": {"stop_reason": _stop_reason(reply), "stop_sequence": None},
            "usage": {"output_tokens": reply.count},
        },
        {"type": "message_stop"},
    ),
)


# --- Ollama: POST /api/chat and /api/generate ----------------------------------------------------

_Wording = Callable[[str], dict[str, Any]]


def _step(wording: _Wording, reply: Reply, text: str, *, is_last: bool) -> dict[str, Any]:
    now = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
    step = {"model": reply.model, "created_at": now, **wording(text), "done": is_last}
    if not is_last:
        return step
    counts = {"prompt_eval_count": reply.prompt_count, "eval_count": reply.count}
    return {**step, "done_reason": "length" if reply.is_truncated else "stop", **counts}


def _line(wording: _Wording, reply: Reply, text: str, *, is_last: bool) -> bytes:
    return msgspec.json.encode(_step(wording, reply, text, is_last=is_last)) + b"\n"


def _ollama(wording: _Wording) -> Dialect:
    return Dialect(
        stream_type="application/x-ndjson",
        whole=lambda reply: _step(wording, reply, reply.text, is_last=True),
        opening=lambda _: b"",
        part=partial(_line, wording, is_last=False),
        closing=lambda reply: _line(wording, reply, "", is_last=True),
    )


OLLAMA_CHAT = _ollama(lambda text: {"message": {"role": "assistant", "content": text}})
OLLAMA_GENERATE = _ollama(lambda text: {"response": text})
