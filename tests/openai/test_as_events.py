"""Whole answers as events, and bodies without their coding."""

from __future__ import annotations

import gzip
import json
import zlib
from collections.abc import Callable
from typing import Any

import httpx
import openai
import pytest

from llmux.errors import BackendBroke, BackendError, BackendSaid, NoStream
from llmux.openai.as_events import as_events
from llmux.openai.decoding import Decoder
from llmux.openai.dialects import (
    ANTHROPIC,
    COHERE,
    NOTHING_SENT,
    OPENAI,
    RESPONSES,
    Dialect,
    error_info,
)


def events(said: dict[str, Any], dialect: Dialect) -> bytes:
    return as_events(200, json.dumps(said, indent=2).encode(), dialect)


def client(body: bytes) -> openai.OpenAI:
    """The package's own, which gets this for an answer."""

    def answer(_: httpx.Request) -> httpx.Response:
        return httpx.Response(200, headers={"content-type": "text/event-stream"}, content=body)

    http = httpx.Client(transport=httpx.MockTransport(answer))
    return openai.OpenAI(api_key="x", base_url="http://x/v1", http_client=http, max_retries=0)


CHAT = {
    "id": "c", "object": "chat.completion", "created": 1, "model": "a",
    "choices": [{
        "index": 0, "finish_reason": "tool_calls",
        "message": {"role": "assistant", "content": "Hi", "tool_calls": [
            {"id": "t", "type": "function", "function": {"name": "f", "arguments": "{}"}}
        ]},
    }],
    "usage": {"prompt_tokens": 1, "completion_tokens": 2, "total_tokens": 3},
}  # fmt: skip

RESPONSE = {
    "id": "resp_1", "object": "response", "created_at": 1, "model": "a", "status": "completed",
    "parallel_tool_calls": True, "tool_choice": "auto", "tools": [],
    "output": [
        {"type": "message", "id": "m", "role": "assistant", "status": "completed", "content": [
            {"type": "output_text", "text": "Hi", "annotations": []}
        ]},
        {"type": "function_call", "id": "f", "call_id": "k", "name": "n", "arguments": "{}",
         "status": "completed"},
    ],
    "error": None,
}  # fmt: skip

MESSAGE = {
    "id": "m", "type": "message", "role": "assistant", "model": "a", "stop_reason": "tool_use",
    "stop_sequence": None, "usage": {"input_tokens": 1, "output_tokens": 2},
    "content": [
        {"type": "thinking", "thinking": "Hm", "signature": "s"},
        {"type": "text", "text": "Hi"},
        {"type": "tool_use", "id": "t", "name": "f", "input": {"a": 1}},
    ],
}  # fmt: skip


def test_a_chat_completion() -> None:
    with client(events(CHAT, OPENAI)) as api:
        (chunk,) = api.chat.completions.create(model="a", messages=[], stream=True)
    assert chunk.object == "chat.completion.chunk"
    (choice,) = chunk.choices
    assert (choice.delta.content, choice.finish_reason) == ("Hi", "tool_calls")
    assert choice.delta.tool_calls is not None
    assert choice.delta.tool_calls[0].index == 0
    assert chunk.usage is not None


def test_a_text_completion_and_what_llama_cpp_has() -> None:
    said = {"object": "text_completion", "choices": [{"index": 0, "text": "Hi"}]}
    assert events(said, OPENAI).endswith(b"\n\ndata: [DONE]\n\n")
    with client(events(said, OPENAI)) as api:
        (chunk,) = api.completions.create(model="a", prompt="x", stream=True)
    assert chunk.choices[0].text == "Hi"
    assert (
        events({"content": "Hi", "stop": True}, COHERE) == b'data: {"content":"Hi","stop":true}\n\n'
    )


def test_a_response() -> None:
    with (
        client(events(RESPONSE, RESPONSES)) as api,
        api.responses.stream(model="a", input="x") as s,
    ):
        kinds = [event.type for event in s]
        final = s.get_final_response()
    assert kinds[0] == "response.created"
    assert kinds[-1] == "response.completed"
    assert "response.output_text.delta" in kinds
    assert final.output_text == "Hi"


def test_a_message() -> None:
    lines = events(MESSAGE, ANTHROPIC).decode().strip().split("\n\n")
    said = [json.loads(line.partition("data: ")[2]) for line in lines]
    assert [line.partition("\n")[0] for line in lines] == [f"event: {e['type']}" for e in said]
    assert said[0]["message"]["content"] == []
    deltas = [each["delta"] for each in said if each["type"] == "content_block_delta"]
    assert deltas == [
        {"type": "thinking_delta", "thinking": "Hm"},
        {"type": "signature_delta", "signature": "s"},
        {"type": "text_delta", "text": "Hi"},
        {"type": "input_json_delta", "partial_json": '{"a":1}'},
    ]
    assert said[-2]["delta"]["stop_reason"] == "tool_use"
    assert said[-1] == {"type": "message_stop"}


@pytest.mark.parametrize(
    ("status", "body", "message"),
    [
        (400, b'{"error": {"message": "too long", "type": "t", "code": 400}}', "too long"),
        (404, b'{"error": "no such model"}', "no such model"),
        (404, b'{"detail": "Not Found"}', "Not Found"),
        (400, b'{"object": "error", "message": "too long", "code": 40303}', "too long"),
        (200, b'{"type": "error", "error": {"type": "api_error", "message": "odd"}}', "odd"),
    ],
)
def test_errors_of_the_backend(status: int, body: bytes, message: str) -> None:
    for dialect in (OPENAI, ANTHROPIC, RESPONSES):
        with pytest.raises(BackendSaid) as caught:
            as_events(status, body, dialect)
        assert caught.value.message == message


@pytest.mark.parametrize(
    "body", [b"", b"audio", b"[1]", b"\xff", b"[" * 100_000, b'{"error": {}', b'{"x": "\\ud83d"}']
)
def test_what_cannot_be_said(body: bytes) -> None:
    for dialect in (OPENAI, ANTHROPIC, RESPONSES):
        with pytest.raises(NoStream):
            as_events(200, body, dialect)
    for dialect in (ANTHROPIC, RESPONSES):
        with pytest.raises(NoStream):
            as_events(200, json.dumps(CHAT).encode(), dialect)


@pytest.mark.parametrize("odd", [[], {}, ["x"], {"x": 1}, None, 1])
def test_what_should_be_a_word_may_be_anything(odd: Any) -> None:
    part = {"type": odd, "text": "Hi"}
    for dialect, said in (
        (OPENAI, {"object": odd, "choices": []}),
        (ANTHROPIC, {**MESSAGE, "content": [{"type": odd}]}),
        (RESPONSES, {**RESPONSE, "status": odd, "output": [{"type": odd, "content": [part]}]}),
    ):
        assert events(said, dialect)
        with pytest.raises(BackendSaid) as caught:
            as_events(400, json.dumps({"error": {"message": "x", "type": odd}}).encode(), dialect)
        assert dialect.events(error_info(caught.value), NOTHING_SENT)


@pytest.mark.parametrize(
    ("odd", "meant"),
    [
        ("NaN", None),
        ("-Infinity", None),
        ("1e999", None),
        (r'"\ud83d\ude00"', "\U0001f600"),
    ],
)
@pytest.mark.parametrize("mark", [b"", b"\xef\xbb\xbf"])
def test_json_as_lenient_servers_write_it_is_an_answer(odd: str, meant: Any, mark: bytes) -> None:
    body = json.dumps({**CHAT, "odd": "?"}).replace('"?"', odd).encode()
    event, done, _ = as_events(200, mark + body, OPENAI).split(b"\n\n")
    assert json.loads(event.removeprefix(b"data: "))["odd"] == meant
    assert done == b"data: [DONE]"


TEXT = b"data: 1\n\n" * 10_000


def _raw_deflate(data: bytes) -> bytes:
    deflate = zlib.compressobj(wbits=-15)
    return deflate.compress(data) + deflate.flush()


def _members(data: bytes) -> bytes:
    return gzip.compress(data[:1000]) + gzip.compress(data[1000:])


ENCODERS: dict[str, tuple[bytes, Callable[[bytes], bytes]]] = {
    "plain": (b"", bytes),
    "identity": (b"Identity", bytes),
    "gzip": (b"GZip", gzip.compress),
    "x-gzip": (b"x-gzip", gzip.compress),
    "members": (b"gzip", _members),
    "deflate": (b"deflate", zlib.compress),
    "raw deflate": (b"deflate", _raw_deflate),
}


@pytest.mark.parametrize("name", ENCODERS)
@pytest.mark.parametrize("size", [1, 7, 1_000_000])
def test_decoding(name: str, size: int) -> None:
    encoding, encode = ENCODERS[name]
    encoded = encode(TEXT)
    decoder = Decoder(encoding)
    found = b""
    for start in range(0, len(encoded), size):
        for piece in decoder.decode(encoded[start : start + size]):
            assert 0 < len(piece) <= 65536 or name in {"plain", "identity"}
            found += piece
    decoder.check_end()
    assert found == TEXT


def test_what_is_flushed_comes_at_once() -> None:
    deflate = zlib.compressobj(wbits=31)
    decoder = Decoder(b"gzip")
    for number in range(3):
        event = b"data: %d\n\n" % number
        data = deflate.compress(event) + deflate.flush(zlib.Z_SYNC_FLUSH)
        assert b"".join(decoder.decode(data)) == event
    with pytest.raises(BackendBroke):
        decoder.check_end()


def test_what_cannot_be_decoded() -> None:
    for encoding in (b"br", b"zstd", b"gzip, gzip", b"odd"):
        with pytest.raises(BackendError, match="Content-Encoding"):
            Decoder(encoding)
    with pytest.raises(BackendBroke):
        list(Decoder(b"gzip").decode(b"data: 1\n\n"))
