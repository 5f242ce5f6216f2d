"""Tokens are found where each API tells of them, wherever its answer is split, and never guessed."""

from __future__ import annotations

import gzip
import json
import random
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import structlog
import trio
from hypothesis import given
from hypothesis import strategies as st

from llmux.openai.tokens import LOOK_BYTES, NO_TOKENS, SlidingCount, Tokens, tokens_of
from tests.lanes import LANES, Site, play, running_lane

BODY = b'{"model": "a"}'
POST = (
    b"POST /v1/chat/completions HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\n"
    b"Connection: close\r\n\r\n" % len(BODY) + BODY
)

JSON, EVENTS, LINES = b"application/json", b"text/event-stream", b"application/x-ndjson"
Parts = list[bytes]


@dataclass
class Case:
    """An answer as a server sends it, one part a write, and the tokens that it tells of."""

    kind: bytes
    parts: Parts
    tokens: Tokens
    is_counted: bool = False


def whole(answer: dict[str, Any], *tokens: int | None, indent: int | None = None) -> Case:
    return Case(JSON, [json.dumps(answer, indent=indent).encode()], Tokens(*tokens), True)


def events(*payloads: Any, named: bool = False, ends: bytes = b"\n") -> Parts:
    parts = []
    for payload in payloads:
        name = b"event: %b%b" % (payload["type"].encode(), ends) if named else b""
        data = payload.encode() if isinstance(payload, str) else json.dumps(payload).encode()
        parts.append(name + b"data: " + data + ends + ends)
    return parts


def delta(text: str, **more: Any) -> dict[str, Any]:
    choices = [{"index": 0, "delta": {"content": text}, "finish_reason": None}]
    return {"id": "c1", "object": "chat.completion.chunk", "choices": choices, **more}


USAGE = {"prompt_tokens": 12, "completion_tokens": 34, "total_tokens": 46}
CACHED = {**USAGE, "prompt_tokens_details": {"cached_tokens": 8}}
MESSAGE = {"choices": [{"index": 0, "message": {"role": "assistant", "content": "hi"}}]}
TIMINGS = {"cache_n": 7, "prompt_n": 5, "prompt_ms": 3.2, "predicted_n": 34, "predicted_ms": 900.1}
RESPONSE_USAGE = {
    "input_tokens": 12,
    "input_tokens_details": {"cached_tokens": 8},
    "output_tokens": 34,
    "output_tokens_details": {"reasoning_tokens": 0},
    "total_tokens": 46,
}
TEXT = 'It says "usage": {"prompt_tokens": 999} and \'data: x\'.\n\nEnd.'
TOOL = {"type": "tool_use", "id": "t", "name": "f", "input": {"usage": {"input_tokens": 999}}}
ANTHROPIC = {"id": "m", "type": "message", "role": "assistant", "content": [TOOL]}
STREAM = [delta(""), *(delta(f"word{n} ") for n in range(40)), delta(TEXT)]
OLLAMA = {"model": "a", "done": False, "message": {"role": "assistant", "content": "hi "}}
OLLAMA_END = {
    **OLLAMA,
    "done": True,
    "done_reason": "stop",
    "total_duration": 4883583458,
    "prompt_eval_count": 12,
    "prompt_eval_duration": 342546000,
    "eval_count": 34,
    "eval_duration": 4535599000,
}


def anthropic(*ends: dict[str, Any], started: dict[str, Any]) -> Parts:
    start = {"type": "message_start", "message": {**ANTHROPIC, "content": [], "usage": started}}
    block = {"type": "content_block_delta", "index": 0, "delta": {"type": "text_delta"}}
    texts = [{**block, "delta": {"type": "text_delta", "text": f"{TEXT} {n}"}} for n in range(80)]
    stop = {"type": "message_stop"}
    return events(start, {"type": "ping"}, *texts, *ends, stop, named=True)


def message_delta(usage: dict[str, Any]) -> dict[str, Any]:
    return {"type": "message_delta", "delta": {"stop_reason": "end_turn"}, "usage": usage}


def responses(output: str) -> Parts:
    """The last event repeats all of the output, and the usage comes behind it."""
    begun = {"type": "response.created", "response": {"id": "r", "output": [], "usage": None}}
    word = {"type": "response.output_text.delta", "delta": "hi"}
    text = {"type": "output_text", "text": output, "annotations": []}
    ended: dict[str, Any] = {
        "id": "r",
        "output": [{"content": [text]}],
        "tools": [{"type": "function"}],
    }
    ended |= {"truncation": "disabled", "usage": RESPONSE_USAGE, "user": None, "metadata": {}}
    done = {"type": "response.completed", "sequence_number": 9, "response": ended}
    return events(begun, *(word for _ in range(20)), done, named=True)


LONG = TEXT * (2 * LOOK_BYTES // len(TEXT))

CASES = {
    "chat": whole({**MESSAGE, "usage": CACHED}, 12, 34, 8),
    "chat, usage first": whole({"usage": USAGE, **MESSAGE}, 12, 34),
    "chat, indented": whole({**MESSAGE, "usage": CACHED}, 12, 34, 8, indent=2),
    "chat, long": whole({"choices": [LONG], "usage": USAGE, "service_tier": None}, 12, 34),
    "chat, long, usage first": whole({"usage": USAGE, "choices": [LONG]}),
    "chat, deepseek": whole({"usage": {**USAGE, "prompt_cache_hit_tokens": 3}}, 12, 34, 3),
    "chat, llama.cpp": whole({**MESSAGE, "timings": TIMINGS}, 12, 34, 7),
    "completions": whole({"choices": [{"text": TEXT, "logprobs": None}], "usage": USAGE}, 12, 34),
    "llama.cpp's own": whole({"content": TEXT, "stop": True, "timings": TIMINGS}, 12, 34, 7),
    "embeddings": whole(
        {"data": [{"embedding": [0.123] * 9000}], "usage": {"prompt_tokens": 8, "total_tokens": 8}},
        8,
    ),
    "responses": whole({"output": [TEXT], "usage": RESPONSE_USAGE, "user": None}, 12, 34, 8),
    "transcription": whole(
        {"text": TEXT, "usage": {"type": "tokens", "input_tokens": 14, "output_tokens": 45}}, 14, 45
    ),
    "transcription by time": whole({"text": TEXT, "usage": {"type": "duration", "seconds": 9}}),
    "anthropic": whole({**ANTHROPIC, "usage": {"input_tokens": 12, "output_tokens": 34}}, 12, 34),
    "anthropic, cached": whole(
        {
            **ANTHROPIC,
            "usage": {
                "input_tokens": 3,
                "cache_creation_input_tokens": 1,
                "cache_read_input_tokens": 8,
                "output_tokens": 34,
            },
        },
        12, 34, 8,
    ),
    "anthropic, nested only": whole({**ANTHROPIC, "pad": LONG, "content": [TOOL]}),
    "ollama": whole(OLLAMA_END, 12, 34),
    "ollama, cached": whole({"response": "hi", "done": True, "eval_count": 34}, None, 34),
    "ollama's embeddings": whole({"embeddings": [[0.1] * 9000], "prompt_eval_count": 8}, 8),
    "chat stream": Case(
        EVENTS,
        events(*STREAM, {"choices": [], "usage": CACHED}, "[DONE]"),
        Tokens(12, 34, 8),
    ),
    "chat stream, null usage before": Case(
        EVENTS,
        events(*(each | {"usage": None} for each in STREAM), delta("", usage=USAGE), "[DONE]"),
        Tokens(12, 34),
    ),
    "chat stream, usage in all": Case(
        b"Text/Event-Stream; charset=utf-8",
        events(*(delta("x", usage=USAGE | {"completion_tokens": n}) for n in range(35)), "[DONE]"),
        Tokens(12, 34),
    ),
    "chat stream, lines end with CR LF": Case(
        EVENTS,
        events(*STREAM, {"choices": [], "usage": USAGE}, "[DONE]", ends=b"\r\n"),
        Tokens(12, 34),
    ),
    "chat stream, llama.cpp without usage": Case(
        EVENTS, events(*STREAM, delta("", timings=TIMINGS), "[DONE]"), Tokens(12, 34, 7)
    ),
    "chat stream without usage": Case(EVENTS, events(*STREAM, "[DONE]"), NO_TOKENS),
    "responses stream": Case(EVENTS, responses(TEXT), Tokens(12, 34, 8)),
    "responses stream, long": Case(EVENTS, responses(LONG), Tokens(12, 34, 8)),
    "anthropic stream": Case(
        EVENTS,
        anthropic(
            message_delta({"output_tokens": 34}),
            started={"input_tokens": 12, "output_tokens": 1},
        ),
        Tokens(12, 34),
    ),
    "anthropic stream, cached": Case(
        EVENTS,
        anthropic(
            message_delta({"output_tokens": 34}),
            started={"input_tokens": 4, "cache_read_input_tokens": 8, "output_tokens": 1},
        ),
        Tokens(12, 34, 8),
    ),
    "anthropic stream, all at the end": Case(
        EVENTS,
        anthropic(
            message_delta({"input_tokens": 12, "output_tokens": 34}),
            started={"input_tokens": 0, "output_tokens": 0},
        ),
        Tokens(12, 34),
    ),
    "anthropic stream that was cut": Case(
        EVENTS,
        anthropic(started={"input_tokens": 12, "output_tokens": 1})[:-1],
        Tokens(12),
    ),
    "ollama stream": Case(
        LINES,
        [json.dumps(each).encode() + b"\n" for each in [*[OLLAMA] * 40, OLLAMA_END]],
        Tokens(12, 34),
    ),
    "ollama stream, long context": Case(
        LINES,
        [
            json.dumps({"response": "hi", "done": False}).encode() + b"\n",
            json.dumps(
                {"done": True, "context": [12345] * 4000, "prompt_eval_count": 12, "eval_count": 34}
            ).encode()
            + b"\n",
        ],
        Tokens(12, 34),
    ),
}  # fmt: skip


def chunk(data: bytes) -> bytes:
    return b"%x\r\n%b\r\n" % (len(data), data)


def head(kind: bytes, *lines: bytes) -> bytes:
    fields = [b"HTTP/1.1 200 OK", b"Content-Type: " + kind, *lines]
    return b"\r\n".join([*fields, b"", b""])


def forms(case: Case) -> dict[str, Parts]:
    """The answer as servers send it: counted, in chunks, until the connection closes."""
    data = b"".join(case.parts)
    chunks = [*map(chunk, case.parts), b"0\r\n\r\n"]
    in_chunks = [head(case.kind, b"Transfer-Encoding: chunked"), *chunks]
    found = {"chunks": in_chunks, "close": [head(case.kind), *case.parts]}
    if case.is_counted:
        found["length"] = [head(case.kind, b"Content-Length: %d" % len(data)), data]
    return found


def split(parts: Parts, seed: int) -> Parts:
    """The same bytes, the last of them in a few pieces that begin and end anywhere."""
    data = b"".join(parts)
    numbers = random.Random(seed)
    cuts = sorted(numbers.randrange(max(0, len(data) - 700), len(data)) for _ in range(4))
    return [data[i:j] for i, j in zip([0, *cuts], [*cuts, len(data)], strict=True) if i < j]


@pytest.mark.parametrize("lane", LANES)
async def test_each_api(tmp_path: Path, lane: str) -> None:
    expected: Counter[str] = Counter()
    with structlog.testing.capture_logs() as entries:
        async with running_lane(lane, tmp_path, access_log=True) as site:
            for name, case in CASES.items():
                for form, parts in forms(case).items():
                    for seed in range(3):
                        pieces = split(parts, seed) if seed else parts
                        site.backend.play = play(*pieces, close=form == "close")
                        entries.clear()
                        await site.exchange(POST)
                        with trio.fail_after(20):
                            while not (lines := [e for e in entries if e["event"] == "request"]):
                                await trio.sleep(0.001)
                        line = lines[-1]
                        told = line["tokens_in"], line["tokens_out"]
                        assert told == (case.tokens.prompt, case.tokens.completion), (name, form)
                        expected.update({k: n for k, n in case.tokens._asdict().items() if n})
            assert await counted(site) == expected


async def counted(site: Site) -> dict[str, float]:
    found = {}
    async with site.client() as client:
        text = (await client.get("/metrics")).text
    for line in text.splitlines():
        if line.startswith("llmux_tokens_total{"):
            labels, _, value = line.rpartition(" ")
            assert 'model="a"' in labels
            found[labels.partition('kind="')[2].partition('"')[0]] = float(value)
    assert set(found) == {"prompt", "completion", "cached"}
    return {kind: count for kind, count in found.items() if count}


@given(st.sampled_from(sorted(CASES)), st.randoms(use_true_random=False))
def test_wherever_the_framing_stands(name: str, numbers: random.Random) -> None:
    """Chunks of any length: their heads stand in the middle of words."""
    case = CASES[name]
    data = b"".join(case.parts)
    cuts = sorted(numbers.randrange(len(data)) for _ in range(numbers.randrange(40)))
    pieces = [data[i:j] for i, j in zip([0, *cuts], [*cuts, len(data)], strict=True) if i < j]
    body = b"".join(map(chunk, pieces)) + b"0\r\n\r\n"
    headers = [(b"content-type", case.kind)]
    assert tokens_of(headers, body[:2048], body[-LOOK_BYTES:], is_chunked=True) == case.tokens


@given(st.binary(), st.sampled_from([JSON, EVENTS, LINES]), st.booleans())
def test_no_bytes_do_harm(data: bytes, kind: bytes, is_chunked: bool) -> None:
    for body in (data, b'{"usage":' + data, b'data: {"usage":' + data, data + b'"usage":{}}'):
        tokens_of([(b"content-type", kind)], body, body, is_chunked=is_chunked)


@pytest.mark.parametrize(
    "value",
    ["-1", "1e300", "1e400", '"12"', "true", "false", "null", "12.5", "12.0", "[]", "{}", "NaN",
     "100000001", "1" + 400 * "0", "1" + 5000 * "0", '{"a":' * 2000],
)  # fmt: skip
def test_what_is_no_number_of_tokens_counts_nothing(value: str) -> None:
    body = f'{{"usage": {{"prompt_tokens": {value}, "completion_tokens": 3}}}}'.encode()
    found = tokens_of([(b"content-type", JSON)], b"", body, is_chunked=False)
    assert found in (Tokens(None, 3), NO_TOKENS)
    for key in ("usage", "timings", "prompt_eval_count"):
        odd = f'{{"{key}": {value}}}'.encode()
        assert tokens_of([(b"content-type", JSON)], b"", odd, is_chunked=False) == NO_TOKENS or (
            key == "prompt_eval_count" and value == "100000001"
        )


def test_a_cache_does_not_hold_more_than_was_asked() -> None:
    usage = {**USAGE, "prompt_tokens_details": {"cached_tokens": 13}}
    body = json.dumps({"usage": usage}).encode()
    found = tokens_of([(b"content-type", JSON)], b"", body, is_chunked=False)
    assert found == Tokens(12, 34)


def test_compressed_answers_and_other_types_are_not_looked_at() -> None:
    body = json.dumps({"usage": USAGE}).encode()
    kinds = [JSON, b"application/problem+json", b"APPLICATION/JSON; charset=utf-8"]
    for kind in kinds:
        assert tokens_of([(b"Content-Type", kind)], b"", body, is_chunked=False) == Tokens(12, 34)
    for headers in (
        [(b"content-type", JSON), (b"Content-Encoding", b"gzip")],
        [(b"content-type", b"text/html")],
        [],
    ):
        assert tokens_of(headers, b"", body, is_chunked=False) == NO_TOKENS
    plain = [(b"content-type", JSON), (b"content-encoding", b"Identity")]
    assert tokens_of(plain, b"", body, is_chunked=False) == Tokens(12, 34)


@pytest.mark.parametrize("lane", LANES)
async def test_what_is_not_an_answer_of_the_model_counts_nothing(tmp_path: Path, lane: str) -> None:
    body = json.dumps({"usage": USAGE}).encode()
    zipped = gzip.compress(body)
    async with running_lane(lane, tmp_path) as site:
        failed = head(JSON, b"Content-Length: %d" % len(body)).replace(b"200 OK", b"500 No")
        site.backend.play = play(failed + body)
        await site.exchange(POST)
        encoded = head(JSON, b"Content-Encoding: gzip", b"Content-Length: %d" % len(zipped))
        site.backend.play = play(encoded + zipped)
        await site.exchange(POST)
        assert await counted(site) == {}


@pytest.mark.parametrize("lane", LANES)
async def test_the_last_answer_on_a_connection_is_not_counted_again(
    tmp_path: Path, lane: str
) -> None:
    body = json.dumps({"usage": USAGE}).encode()
    async with running_lane(lane, tmp_path) as site:
        site.backend.play = play(head(JSON, b"Content-Length: %d" % len(body)) + body)
        await site.exchange(POST)
        site.backend.play = play(head(JSON, b"Content-Length: 2") + b"{}")
        await site.exchange(POST)
        site.backend.play = play(b"HTTP/1.1 204 No Content\r\n\r\n")
        await site.exchange(POST)
        assert await counted(site) == {"prompt": 12, "completion": 34}


# ---- How many a second ----


@pytest.mark.parametrize("lane", LANES)
async def test_status_has_tokens_per_second(tmp_path: Path, lane: str) -> None:
    body = json.dumps({"usage": USAGE | {"completion_tokens": 600}}).encode()
    async with running_lane(lane, tmp_path) as site, site.client() as client:
        before = (await client.get("/control/status")).json()["models"]["a"]
        assert before["tokens_per_sec"] == 0
        site.backend.play = play(head(JSON, b"Content-Length: %d" % len(body)) + body)
        await site.exchange(POST)
        after = (await client.get("/control/status")).json()["models"]["a"]
        assert after["tokens_per_sec"] == 10


@pytest.mark.parametrize("lane", LANES)
async def test_those_who_watch_are_told(tmp_path: Path, lane: str) -> None:
    body = json.dumps({"usage": USAGE | {"completion_tokens": 600}}).encode()
    async with running_lane(lane, tmp_path) as site, site.client() as client:
        site.backend.play = play(head(JSON, b"Content-Length: %d" % len(body)) + body)
        found: dict[str, Any] = {}
        with trio.fail_after(20):
            async with client.stream("GET", "/control/events") as stream:
                name, has_asked = "", False
                async for line in stream.aiter_lines():
                    if line.startswith("event: "):
                        name = line[7:]
                    elif line.startswith("data: ") and name in {"tokens", "requests"}:
                        said = json.loads(line[6:])
                        if name == "tokens" or said["ended"]:
                            found[name] = said
                    if not has_asked:
                        has_asked = True
                        await site.exchange(POST)
                    if len(found) == 2:
                        break
    assert found["tokens"]["models"] == {"a": 10.0}
    (ended,) = found["requests"]["ended"]
    assert (ended["tokens_in"], ended["tokens_out"]) == (12, 600)
    assert ended["first_byte_secs"] >= 0


def test_the_last_minute() -> None:
    recent = SlidingCount()
    recent.add(600, 1000)
    assert recent.per_second(1000) == 10
    recent.add(60, 1030)
    assert recent.per_second(1054) == 11
    assert recent.per_second(1061) == 1
    assert recent.per_second(1030 + 61) == 0
    recent.add(6, 9_999_999)
    assert recent.per_second(9_999_999) == 0.1


@pytest.mark.parametrize("lane", LANES)
@pytest.mark.parametrize(
    "again",
    [
        b"GET /v1/responses/resp_1",
        b"GET /v1/responses/resp_1?stream=true",
        b"POST /v1/responses/resp_1/cancel",
        b"POST /v1/chat/completions/resp_1",
    ],
)
async def test_an_answer_that_is_fetched_again_is_not_counted_again(
    tmp_path: Path, lane: str, again: bytes
) -> None:
    said = b'{"id":"resp_1","usage":{"input_tokens":3,"output_tokens":7}}'
    head = b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n"
    rest = b" HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\nContent-Length: %d\r\n\r\n%b"
    async with running_lane(lane, tmp_path) as site:
        site.backend.play = play(head % len(said) + said)
        body = b'{"model":"a"}'
        await site.exchange(b"POST /v1/responses" + rest % (len(body), body))
        assert said in await site.exchange(again + rest % (0, b""))
        metrics = await site.exchange(b"GET /metrics" + rest % (0, b""))
        assert b'llmux_tokens_total{kind="completion",model="a"} 7.0' in metrics
