"""Which dialect a request speaks, and how each words an error."""

from __future__ import annotations

import json

import msgspec
import pytest

from llmux.errors import (
    BackendSaid,
    InvalidKey,
    LlmuxError,
    ModelNotFound,
    NotReady,
    QueueFull,
    RequestCancelled,
    SwitchTimeout,
)
from llmux.http.chunks import tail_of_chunks
from llmux.openai.dialects import (
    ANTHROPIC,
    COHERE,
    MAX_CLOSE_BYTES,
    NOTHING_SENT,
    OLLAMA,
    OPENAI,
    RESPONSES,
    TEI,
    Dialect,
    StreamState,
    close_reason,
    dialect_of,
    dialect_of_head,
    error_info,
    realtime_event,
    stream_state,
    streams_events,
)
from llmux.openai.streams import is_at_boundary, waits_for_events

PATHS = {
    OPENAI: [
        b"/v1/chat/completions", b"/chat/completions", b"/v1/embeddings", b"/v1/audio/speech",
        b"/v1/score", b"/completion", b"/infill", b"/tokenize", b"/api/v1/chat/completions",
        b"/api/chat/completions", b"/api/v0/completions", b"/v1/threads/t/messages", b"/", b"*", b"",
        b"/upstream/responses/v1/chat/completions", b"/v1/realtime", b"/v1/models/x",
    ],
    ANTHROPIC: [
        b"/v1/messages", b"/v1/messages?beta=true", b"/v1/messages/", b"/v1//messages",
        b"/v1/messages/count_tokens", b"/v1/messages/batches", b"/v1/messages/batches/b/results",
        b"/upstream/org/a/v1/messages", b"/anthropic/v1/messages", b"/v1/complete",
        b"/api/v1/messages",
    ],
    RESPONSES: [
        b"/v1/responses", b"/responses", b"/openai/responses?api-version=1", b"/v1/responses/r1",
        b"/v1/responses/r1/cancel", b"/v1/responses/r1/input_items", b"/v1/responses/compact",
        b"/upstream/a/v1/responses/",
    ],
    OLLAMA: [
        b"/api/chat", b"/api/generate", b"/api/embed", b"/api/embeddings", b"/api/show",
        b"/api/pull", b"/api/ps", b"/api/tags", b"/api/version", b"/api/blobs/sha256:0",
        b"/upstream/a/api/chat", b"/ollama/api/chat", b"/api/chat/",
    ],
    COHERE: [b"/v1/rerank", b"/v2/rerank", b"/v1/reranking", b"/v2/chat", b"/v2/embed", b"/v1/chat"],
    TEI: [b"/rerank", b"/embed", b"/embed_all", b"/predict", b"/similarity", b"/generate",
          b"/generate_stream", b"/upstream/a/embed"],
}  # fmt: skip


@pytest.mark.parametrize("dialect", PATHS, ids=lambda dialect: dialect.name)
def test_the_path_says_what_is_spoken(dialect: Dialect) -> None:
    for path in PATHS[dialect]:
        assert dialect_of(path).name == dialect.name, path
        assert dialect_of_head(b"POST " + path + b" HTTP/1.1\r\nbad\r\n\r\n").name == (
            dialect.name if path else "openai"
        )


def test_anthropic_clients_name_their_version() -> None:
    headers = [(b"Anthropic-Version", b"2023-06-01")]
    assert dialect_of(b"/v1/models/x", headers) is ANTHROPIC
    assert dialect_of(b"/messages", headers) is ANTHROPIC
    assert dialect_of(b"/v1/chat/completions", headers) is OPENAI
    assert dialect_of(b"/api/chat", headers) is OLLAMA


def test_what_has_no_path_is_openais() -> None:
    for head in (b"", b"\0", b"POST", b"POST  ", b"GET /api/chat"):
        assert dialect_of_head(head).name in {"openai", "ollama"}


ERRORS: list[tuple[LlmuxError, str]] = [
    (ModelNotFound("x"), "not_found_error"),
    (InvalidKey(), "authentication_error"),
    (QueueFull("full"), "rate_limit_error"),
    (SwitchTimeout(), "timeout_error"),
    (NotReady("x"), "overloaded_error"),
    (LlmuxError("odd"), "api_error"),
]


@pytest.mark.parametrize(("error", "kind"), ERRORS, ids=str)
def test_anthropic(error: LlmuxError, kind: str) -> None:
    body = ANTHROPIC.body(error_info(error))
    assert body == {
        "type": "error",
        "error": {
            "type": kind,
            "message": error.message,
            "code": error.code,
            "details": {"error_code": error.code},
        },
    }
    encoded = msgspec.json.encode(body)
    assert (
        ANTHROPIC.events(error_info(error), NOTHING_SENT) == b"event: error\ndata: %b\n\n" % encoded
    )


def test_openai_and_ollama() -> None:
    said = error_info(NotReady("x"))
    detail = {
        "message": "Model not ready: x", "type": "llmux_error", "param": None, "code": "not_ready",
    }  # fmt: skip
    assert OPENAI.body(said) == RESPONSES.body(said) == {"error": detail}
    assert (
        OPENAI.events(said, NOTHING_SENT)
        == b"data: " + msgspec.json.encode({"error": detail}) + b"\n\n"
    )
    assert OLLAMA.line(said) == {"error": "Model not ready: x", "code": "not_ready"}


def test_responses_end_with_an_error_and_a_failure() -> None:
    events = RESPONSES.events(error_info(NotReady("x")), StreamState(7, "resp_1")).decode()
    first, second = events.strip().split("\n\n")
    assert first.startswith("event: error\ndata: ")
    assert second.startswith("event: response.failed\ndata: ")
    error, failed = (json.loads(each.partition("data: ")[2]) for each in (first, second))
    assert (error["type"], error["sequence_number"], error["code"]) == ("error", 7, "not_ready")
    assert error["error"]["message"] == error["message"] == "Model not ready: x"
    assert (failed["type"], failed["sequence_number"]) == ("response.failed", 8)
    response = failed["response"]
    assert (response["id"], response["status"]) == ("resp_1", "failed")
    assert response["error"] == {"code": "not_ready", "message": "Model not ready: x"}


def test_cohere_and_text_embeddings() -> None:
    said = error_info(QueueFull("full"))
    assert COHERE.body(said)["message"] == "full"
    assert COHERE.body(said)["error"]["code"] == "queue_full"
    assert b'"finish_reason":"ERROR"' in COHERE.events(said, NOTHING_SENT)
    assert COHERE.line(said)["is_finished"] is True
    assert TEI.body(said) == {
        "error": "full", "error_type": "overloaded", "message": "full", "code": "queue_full",
    }  # fmt: skip


def test_what_a_backend_says_keeps_its_own_words() -> None:
    extra = {"message": "too long", "type": "invalid_request_error", "code": 400, "n_ctx": 512}
    said = error_info(BackendSaid(400, "too long", extra))
    assert OPENAI.body(said)["error"] == {**extra, "param": None}
    assert ANTHROPIC.body(said)["error"]["type"] == "invalid_request_error"
    vllm = error_info(BackendSaid(400, "too long", {**extra, "type": "BadRequestError"}))
    assert ANTHROPIC.body(vllm)["error"]["type"] == "invalid_request_error"


def test_numbers_go_on() -> None:
    opening = b'event: response.created\ndata: {"response":{"id": "resp_a1"}}\n\n'
    ending = b'data: {"sequence_number":4}\n\ndata: {"sequence_number": 5}\n\n'
    assert stream_state(opening, ending) == StreamState(6, "resp_a1")
    assert stream_state(b"", b"") == NOTHING_SENT


def test_close_reasons() -> None:
    assert close_reason(NotReady("a")) == (1013, "not_ready: Model not ready: a")
    assert close_reason(RequestCancelled())[0] == 1011
    code, reason = close_reason(LlmuxError("é" * 200))
    assert code == 1011
    assert len(reason.encode()) <= MAX_CLOSE_BYTES
    assert realtime_event(b"/v1/other", NotReady("a")) == b""
    said = json.loads(realtime_event(b"/v1/realtime?model=a", NotReady("a")))
    assert (said["type"], said["error"]["code"]) == ("error", "not_ready")


STREAMING = [
    b"/v1/chat/completions", b"/v1/completions", b"/completion", b"/infill", b"/v1/messages",
    b"/v1/responses", b"/v2/chat", b"/upstream/a/v1/messages?beta=true", b"/api/v1/chat/completions",
]  # fmt: skip
OTHERS = [
    b"/api/chat", b"/api/generate", b"/v1/audio/speech", b"/v1/chat", b"/v1/embeddings", b"/generate",
    b"/", b"/v1/chat/completions/tail",
]  # fmt: skip


def test_paths_that_stream_events() -> None:
    for path in STREAMING:
        assert streams_events(path), path
    for path in OTHERS:
        assert not streams_events(path), path


def waits(target: bytes, *accept: bytes, asks: bool = True, method: bytes = b"POST") -> bool:
    headers = [(b"Accept", value) for value in accept]
    return waits_for_events(method, target, headers, asks_for_stream=asks)


def test_who_waits_for_events() -> None:
    chat = b"/v1/chat/completions"
    assert waits(chat)
    assert waits(chat, b"*/*")
    assert waits(chat, b"application/json"), "as OpenAI's and Anthropic's packages say"
    assert waits(chat, b"Text/Event-Stream; charset=utf-8")
    assert not waits(chat, asks=False)
    assert not waits(chat, b"application/x-ndjson")
    assert not waits(chat, method=b"HEAD")
    assert not waits(chat, b"application/json, text/event-stream", asks=False), "it may be JSON"
    assert not waits(chat, b"text/event-stream;q=0, audio/mpeg")
    assert waits(b"/v1/responses/r?stream=true", asks=False, method=b"GET")
    assert waits(b"/odd", b"text/event-stream", asks=False, method=b"GET")
    assert waits(b"/odd", b"application/json", b"text/event-stream")
    assert not waits(b"/odd")
    for path in OTHERS:
        assert not waits(path), path
    assert not waits(b"/api/chat", b"text/event-stream"), "Ollama streams lines whatever is said"


@pytest.mark.parametrize(
    ("kind", "tail", "stands"),
    [
        (b"text/event-stream", b"", True),
        (b"Text/Event-Stream", b"x\n\n", True),
        (b"text/event-stream", b"\r\n\r\n", True),
        (b"text/event-stream", b"x\n", False),
        (b"application/x-ndjson", b"}\n", True),
        (b"application/x-ndjson", b"}", False),
    ],
)
def test_where_something_may_follow(kind: bytes, tail: bytes, stands: bool) -> None:
    headers = [(b"Content-Type", kind)]
    assert is_at_boundary(headers, tail) == stands
    assert not is_at_boundary([*headers, (b"Content-Encoding", b"gzip")], tail)
    assert is_at_boundary([*headers, (b"Content-Encoding", b"identity")], tail) == stands


@pytest.mark.parametrize(
    ("raw", "tail"),
    [
        (b"4\r\nxx\n\n\r\n", b"xx\n\n"),
        (b"9;a=b\r\ndata: 1\n\r\n1\r\n\n\r\n", b"\n\n"),
        (b"6\r\nx\r\n\r\n\r\n", b"\r\n\r\n"),
        (b"4\r\nxx\n\n", None),
        (b"4\r\nxx", None),
        (b"1c\r\n", None),
        (b"4\r\nxx\n\n\r\n1C;a=b\r\n", None),
    ],
)
def test_the_tail_of_chunks(raw: bytes, tail: bytes | None) -> None:
    found = tail_of_chunks(raw)
    assert found is None if tail is None else found is not None and found.endswith(tail)
