"""Answers in OpenAI's API: chat completions, completions and embeddings."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import trio

from llmux.standin.http1 import Response, sse_event
from llmux.standin.options import Options
from llmux.standin.pacing import generate, wait_for_token
from llmux.standin.prompts import Prompt


@dataclass(frozen=True, kw_only=True)
class Format:
    """Wording of one endpoint's answers.

    Attributes:
        id_prefix: Start of the ids of its answers.
        kind: The `object` of an answer.
        part_kind: The `object` of a part of a streamed answer.
        opening: The choice that opens a stream before there is any text, or None.
        choice: Makes the choice that holds all the text.
        part: Makes the choice that holds a part of the text; the last one holds none.
    """

    id_prefix: str
    kind: str
    part_kind: str
    opening: dict[str, Any] | None
    choice: Callable[[str], dict[str, Any]]
    part: Callable[[str], dict[str, Any]]


CHAT = Format(
    id_prefix="chatcmpl",
    kind="chat.completion",
    part_kind="chat.completion.chunk",
    opening={"delta": {"role": "assistant", "content": ""}},
    choice=lambda text: {"message": {"role": "assistant", "content": text}},
    part=lambda text: {"delta": {"content": text} if text else {}},
)

COMPLETION = Format(
    id_prefix="cmpl",
    kind="text_completion",
    part_kind="text_completion",
    opening=None,
    choice=lambda text: {"text": text},
    part=lambda text: {"text": text},
)


class Completion:
    """The answer to one prompt, as a whole or as a stream."""

    def __init__(
        self, prompt: Prompt, form: Format, options: Options, *, rate: float, number: int
    ) -> None:
        limit = prompt.max_completion_tokens or prompt.max_tokens
        self._format = form
        self._model = options.model
        self._rate = rate
        self._count = limit or options.tokens
        self._finish_reason = "length" if limit else "stop"
        self._prompt_count = prompt.token_count
        self._with_usage = prompt.stream_options is not None and prompt.stream_options.include_usage
        self._envelope = {
            "id": f"{form.id_prefix}-{number}",
            "created": int(time.time()),
            "model": options.model,
        }

    async def write_whole(self, response: Response) -> None:
        """Answer once the last token is due."""
        await wait_for_token(self._rate, self._count, trio.current_time())
        text = "".join(generate(self._model, self._count))
        choice = self._choice(self._format.choice(text), self._finish_reason)
        await response.json(
            {
                "object": self._format.kind,
                **self._envelope,
                "choices": [choice],
                "usage": self.usage,
            }
        )

    async def write_stream(self, response: Response) -> None:
        """Answer token by token."""
        await response.begin_stream("text/event-stream")
        began = trio.current_time()
        if self._format.opening is not None:
            await response.event(self._part([self._choice(self._format.opening)]))
        for number, token in enumerate(generate(self._model, self._count), 1):
            await wait_for_token(self._rate, number, began)
            await response.event(self._part([self._choice(self._format.part(token))]))
        last = self._choice(self._format.part(""), self._finish_reason)
        await response.event(self._part([last]))
        if self._with_usage:
            await response.event(self._part([]) | {"usage": self.usage})
        await response.end_stream(sse_event(b"[DONE]"))

    @property
    def usage(self) -> dict[str, int]:
        return {
            "prompt_tokens": self._prompt_count,
            "completion_tokens": self._count,
            "total_tokens": self._prompt_count + self._count,
        }

    def _choice(self, content: dict[str, Any], finish_reason: str | None = None) -> dict[str, Any]:
        return {"index": 0, **content, "logprobs": None, "finish_reason": finish_reason}

    def _part(self, choices: list[dict[str, Any]]) -> dict[str, Any]:
        part = {"object": self._format.part_kind, **self._envelope, "choices": choices}
        return part | {"usage": None} if self._with_usage else part


def embedding(text: object) -> list[float]:
    """Return eight numbers from -1 to 1, always the same ones for a text."""
    return [byte / 127.5 - 1 for byte in hashlib.sha256(repr(text).encode()).digest()[:8]]
