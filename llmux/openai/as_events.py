"""A whole answer as the events of a stream, for a client that waits for these.

It has its status line and comments by then, so that the answer cannot be passed on as it is. What
its client can use is turned into events; what it cannot use becomes an error.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import msgspec

from llmux.errors import BackendError, BackendSaid, NoStream
from llmux.openai.dialects import ANTHROPIC, OPENAI, RESPONSES, Dialect, event

DONE = b"data: [DONE]\n\n"
"""How OpenAI's streams of completions end; llama.cpp's own do not."""

# Tuples, not sets: what a backend says in these places may be a list, which has no hash.
COMPLETIONS = ("chat.completion", "text_completion")
TOOL_USES = ("tool_use", "server_tool_use")
OTHER_ENDS = ("incomplete", "failed")

MOST_LENIENT_BYTES = 256 << 10
"""Of JSON that msgspec refuses: Python's parser takes up to 40 ms for as much (nothing but empty
lists), and nothing else runs meanwhile."""

_decode = msgspec.json.Decoder().decode


def as_events(status: int, body: bytes, dialect: Dialect) -> bytes:
    """The events that say what a whole answer does.

    Args:
        status: Of the answer.
        body: Its body, decoded.
        dialect: What its client speaks.

    Raises:
        BackendError: It is an error, or nothing that such a stream can say.
    """
    said = _object(body)
    if said is None:
        raise NoStream(status, body)
    if not 200 <= status < 300 or (said.get("error") and "output" not in said):
        raise _error(status, body, said)
    if dialect is ANTHROPIC:
        if said.get("type") != "message":
            raise NoStream(status, body)
        return b"".join(event(each, each["type"]) for each in _anthropic(said))
    if dialect is RESPONSES:
        if said.get("object") != "response":
            raise NoStream(status, body)
        return b"".join(
            event({**each, "sequence_number": number}, each["type"])
            for number, each in enumerate(_responses(said))
        )
    is_completion = dialect is OPENAI and said.get("object") in COMPLETIONS
    return event(_chunk(said)) + (DONE if is_completion else b"")


def _object(body: bytes) -> dict[str, Any] | None:
    try:
        said = _decode(body)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        said = _lenient(body) if len(body) <= MOST_LENIENT_BYTES else None
    return said if isinstance(said, dict) else None


def _lenient(body: bytes) -> Any:
    """Parse JSON that only Python's parser takes; None if it is none, or cannot be encoded."""
    try:
        said = json.loads(body, parse_constant=lambda _: None)
        msgspec.json.encode(said)  # not half a character, written as an escape
    except (ValueError, RecursionError):
        return None
    return said


def _error(status: int, body: bytes, said: dict[str, Any]) -> BackendError:
    """The backend's own error, whichever of the known forms it has."""
    error = said.get("error", said.get("detail", said))
    if isinstance(error, str):
        return BackendSaid(status, error, {})
    message = error.get("message") if isinstance(error, dict) else None
    return (
        BackendSaid(status, message, error) if isinstance(message, str) else NoStream(status, body)
    )


# ---- OpenAI: completions ----


def _chunk(said: dict[str, Any]) -> dict[str, Any]:
    """A chat completion as its one chunk; other objects are the same in a stream."""
    if said.get("object") != "chat.completion" or not isinstance(said.get("choices"), list):
        return said
    choices = [_choice(each) for each in said["choices"] if isinstance(each, dict)]
    return {**said, "object": "chat.completion.chunk", "choices": choices}


def _choice(choice: dict[str, Any]) -> dict[str, Any]:
    rest = {key: value for key, value in choice.items() if key != "message"}
    delta = choice.get("message")
    if isinstance(delta, dict) and isinstance(calls := delta.get("tool_calls"), list):
        numbered = [
            {"index": index, **call} for index, call in enumerate(calls) if isinstance(call, dict)
        ]
        delta = {**delta, "tool_calls": numbered}
    return {**rest, "delta": delta or {}}


# ---- Anthropic: messages ----


def _anthropic(said: dict[str, Any]) -> Iterator[dict[str, Any]]:
    begun = {**said, "content": [], "stop_reason": None, "stop_sequence": None}
    yield {"type": "message_start", "message": begun}
    content = said.get("content")
    blocks = content if isinstance(content, list) else []
    for index, block in enumerate(each for each in blocks if isinstance(each, dict)):
        empty, deltas = _block(block)
        yield {"type": "content_block_start", "index": index, "content_block": empty}
        for delta in deltas:
            yield {"type": "content_block_delta", "index": index, "delta": delta}
        yield {"type": "content_block_stop", "index": index}
    why = {key: said.get(key) for key in ("stop_reason", "stop_sequence")}
    yield {"type": "message_delta", "delta": why, "usage": said.get("usage") or {}}
    yield {"type": "message_stop"}


def _block(block: dict[str, Any]) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """A block without what its deltas say, and these; other kinds come whole."""
    kind = block.get("type")
    if kind == "text":
        return {**block, "text": ""}, [{"type": "text_delta", "text": block.get("text", "")}]
    if kind == "thinking":
        thought = {"type": "thinking_delta", "thinking": block.get("thinking", "")}
        signed = {"type": "signature_delta", "signature": block.get("signature", "")}
        return {**block, "thinking": "", "signature": ""}, [thought, signed]
    if kind in TOOL_USES:
        text = msgspec.json.encode(block.get("input", {})).decode()
        return {**block, "input": {}}, [{"type": "input_json_delta", "partial_json": text}]
    return block, []


# ---- OpenAI: responses ----


def _responses(said: dict[str, Any]) -> Iterator[dict[str, Any]]:
    begun = {**said, "status": "in_progress", "output": [], "usage": None}
    yield {"type": "response.created", "response": begun}
    yield {"type": "response.in_progress", "response": begun}
    output = said.get("output")
    items = output if isinstance(output, list) else []
    for index, item in enumerate(each for each in items if isinstance(each, dict)):
        yield from _item(index, item)
    status = said.get("status")
    end = status if status in OTHER_ENDS else "completed"
    yield {"type": f"response.{end}", "response": said}


def _item(index: int, item: dict[str, Any]) -> Iterator[dict[str, Any]]:
    parts = item.get("content") if item.get("type") == "message" else None
    begun = {**item, "status": "in_progress"}
    if isinstance(parts, list):
        begun["content"] = []
    elif "arguments" in item:
        begun["arguments"] = ""
    yield {"type": "response.output_item.added", "output_index": index, "item": begun}
    place = {"item_id": item.get("id", ""), "output_index": index}
    for number, part in enumerate(parts if isinstance(parts, list) else []):
        yield from _part({**place, "content_index": number}, part)
    if isinstance(text := item.get("arguments"), str):
        delta = "response.function_call_arguments"
        yield {"type": f"{delta}.delta", **place, "delta": text}
        yield {"type": f"{delta}.done", **place, "arguments": text}
    yield {"type": "response.output_item.done", "output_index": index, "item": item}


def _part(place: dict[str, Any], part: Any) -> Iterator[dict[str, Any]]:
    text = part.get("text") if isinstance(part, dict) else None
    if not isinstance(text, str):
        yield {"type": "response.content_part.added", **place, "part": part}
    else:
        yield {"type": "response.content_part.added", **place, "part": {**part, "text": ""}}
        delta = "response.output_text"
        yield {"type": f"{delta}.delta", **place, "delta": text, "logprobs": []}
        yield {"type": f"{delta}.done", **place, "text": text, "logprobs": []}
    yield {"type": "response.content_part.done", **place, "part": part}
