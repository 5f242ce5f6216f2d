"""Convert a whole response into the events of a stream.

A client that waits for a stream may already have received a status line and keep-alive comments
when its backend answers with plain JSON, which can then no longer be passed on unchanged. A
response that fits the client's API is split into that API's events; anything else is an error.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import msgspec

from llmux.errors import BackendError, BackendSaid, NoStream
from llmux.openai.dialects import ANTHROPIC, OPENAI, RESPONSES, Dialect, event

DONE = b"data: [DONE]\n\n"
"""End of OpenAI's completion streams; llama.cpp's native API has none."""

# Tuples, not sets: the backend's value may be a list, which has no hash.
COMPLETIONS = ("chat.completion", "text_completion")
TOOL_USES = ("tool_use", "server_tool_use")
UNCOMPLETED_STATUSES = ("incomplete", "failed")

MAX_LENIENT_BYTES = 256 << 10
"""Limit for JSON that msgspec refuses. Python's parser takes up to 40 ms for that much (nothing but
empty lists), and blocks the event loop meanwhile."""

_decode = msgspec.json.Decoder().decode


def as_events(status: int, body: bytes, dialect: Dialect) -> bytes:
    """Encode a response, whose body has no content coding, as events.

    Raises:
        BackendError: The response is an error, or does not fit the client's API.
    """
    response = _object(body)
    if response is None:
        raise NoStream(status, body)
    if not 200 <= status < 300 or (response.get("error") and "output" not in response):
        raise _error(status, body, response)
    if dialect is ANTHROPIC:
        if response.get("type") != "message":
            raise NoStream(status, body)
        return b"".join(event(each, each["type"]) for each in _anthropic(response))
    if dialect is RESPONSES:
        if response.get("object") != "response":
            raise NoStream(status, body)
        return b"".join(
            event({**each, "sequence_number": number}, each["type"])
            for number, each in enumerate(_responses(response))
        )
    is_completion = dialect is OPENAI and response.get("object") in COMPLETIONS
    return event(_chunk(response)) + (DONE if is_completion else b"")


def _object(body: bytes) -> dict[str, Any] | None:
    try:
        response = _decode(body)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        response = _decode_leniently(body) if len(body) <= MAX_LENIENT_BYTES else None
    return response if isinstance(response, dict) else None


def _decode_leniently(body: bytes) -> Any:
    """Decode JSON that only Python's parser accepts; None if that fails or it cannot be encoded."""
    try:
        # NaN and Infinity become null, since clients' parsers refuse them.
        response = json.loads(body, parse_constant=lambda _: None)
        msgspec.json.encode(response)  # raises for a lone surrogate, which UTF-8 cannot encode
    except (ValueError, RecursionError):
        return None
    return response


def _error(status: int, body: bytes, response: dict[str, Any]) -> BackendError:
    """Return the backend's own error, in any of the known forms."""
    # OpenAI and Ollama use `error`, FastAPI uses `detail`, older vLLMs put `message` at the top.
    error = response.get("error", response.get("detail", response))
    if isinstance(error, str):
        return BackendSaid(status, error, {})
    message = error.get("message") if isinstance(error, dict) else None
    return (
        BackendSaid(status, message, error) if isinstance(message, str) else NoStream(status, body)
    )


# ---- OpenAI: completions ----


def _chunk(response: dict[str, Any]) -> dict[str, Any]:
    """Convert a chat completion to a single chunk; other objects are the same in a stream."""
    if response.get("object") != "chat.completion" or not isinstance(response.get("choices"), list):
        return response
    choices = [_choice(each) for each in response["choices"] if isinstance(each, dict)]
    return {**response, "object": "chat.completion.chunk", "choices": choices}


def _choice(choice: dict[str, Any]) -> dict[str, Any]:
    rest = {key: value for key, value in choice.items() if key != "message"}
    delta = choice.get("message")
    if isinstance(delta, dict) and isinstance(calls := delta.get("tool_calls"), list):
        # In a stream `index` is required: clients use it to join the pieces of a call.
        numbered = [
            {"index": index, **call} for index, call in enumerate(calls) if isinstance(call, dict)
        ]
        delta = {**delta, "tool_calls": numbered}
    return {**rest, "delta": delta or {}}


# ---- Anthropic: messages ----


def _anthropic(response: dict[str, Any]) -> Iterator[dict[str, Any]]:
    start = {**response, "content": [], "stop_reason": None, "stop_sequence": None}
    yield {"type": "message_start", "message": start}
    content = response.get("content")
    blocks = content if isinstance(content, list) else []
    for index, block in enumerate(each for each in blocks if isinstance(each, dict)):
        empty, deltas = _block(block)
        yield {"type": "content_block_start", "index": index, "content_block": empty}
        for delta in deltas:
            yield {"type": "content_block_delta", "index": index, "delta": delta}
        yield {"type": "content_block_stop", "index": index}
    delta = {key: response.get(key) for key in ("stop_reason", "stop_sequence")}
    yield {"type": "message_delta", "delta": delta, "usage": response.get("usage") or {}}
    yield {"type": "message_stop"}


def _block(block: dict[str, Any]) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """Return an emptied block and the deltas that fill it; unknown kinds stay whole."""
    kind = block.get("type")
    if kind == "text":
        return {**block, "text": ""}, [{"type": "text_delta", "text": block.get("text", "")}]
    if kind == "thinking":
        thinking = {"type": "thinking_delta", "thinking": block.get("thinking", "")}
        signature = {"type": "signature_delta", "signature": block.get("signature", "")}
        return {**block, "thinking": "", "signature": ""}, [thinking, signature]
    if kind in TOOL_USES:
        text = msgspec.json.encode(block.get("input", {})).decode()
        return {**block, "input": {}}, [{"type": "input_json_delta", "partial_json": text}]
    return block, []


# ---- OpenAI: responses ----


def _responses(response: dict[str, Any]) -> Iterator[dict[str, Any]]:
    started = {**response, "status": "in_progress", "output": [], "usage": None}
    yield {"type": "response.created", "response": started}
    yield {"type": "response.in_progress", "response": started}
    output = response.get("output")
    items = output if isinstance(output, list) else []
    for index, item in enumerate(each for each in items if isinstance(each, dict)):
        yield from _item(index, item)
    status = response.get("status")
    end = status if status in UNCOMPLETED_STATUSES else "completed"
    yield {"type": f"response.{end}", "response": response}


def _item(index: int, item: dict[str, Any]) -> Iterator[dict[str, Any]]:
    parts = item.get("content") if item.get("type") == "message" else None
    added = {**item, "status": "in_progress"}
    if isinstance(parts, list):
        added["content"] = []
    elif "arguments" in item:
        added["arguments"] = ""
    yield {"type": "response.output_item.added", "output_index": index, "item": added}
    position = {"item_id": item.get("id", ""), "output_index": index}
    for number, part in enumerate(parts if isinstance(parts, list) else []):
        yield from _part({**position, "content_index": number}, part)
    if isinstance(text := item.get("arguments"), str):
        delta = "response.function_call_arguments"
        yield {"type": f"{delta}.delta", **position, "delta": text}
        yield {"type": f"{delta}.done", **position, "arguments": text}
    yield {"type": "response.output_item.done", "output_index": index, "item": item}


def _part(position: dict[str, Any], part: Any) -> Iterator[dict[str, Any]]:
    text = part.get("text") if isinstance(part, dict) else None
    if not isinstance(text, str):
        yield {"type": "response.content_part.added", **position, "part": part}
    else:
        yield {"type": "response.content_part.added", **position, "part": {**part, "text": ""}}
        delta = "response.output_text"
        yield {"type": f"{delta}.delta", **position, "delta": text, "logprobs": []}
        yield {"type": f"{delta}.done", **position, "text": text, "logprobs": []}
    yield {"type": "response.content_part.done", **position, "part": part}
