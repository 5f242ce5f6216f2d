"""Requests for what a model has made: they go to that model, by ids that its answers have told."""

from __future__ import annotations

import gzip
import json
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
import trio
from hypothesis import given
from hypothesis import strategies as st

from llmux.openai.jsonbody import read_mentions
from llmux.proxy.stored import Stored, id_of, ids_of, makes_stored
from tests.downstream.test_lanes import error_code, ok, status
from tests.lanes import LANES, OK, Site, running_lane
from tests.servers import ALL_FORMS, running_backends, running_llmux

JSON = [(b"Content-Type", b"application/json; charset=utf-8")]
EVENTS = [(b"Content-Type", b"text/event-stream")]
MADE = b'{"id":"resp_1","object":"response","output":[{"id":"msg_1"}],"metadata":{"id":"x"}}'


# ---- Which requests ----


@pytest.mark.parametrize(
    ("target", "wanted"),
    [
        (b"/v1/responses/resp_1", "resp_1"),
        (b"/v1/responses/resp_1/", "resp_1"),
        (b"//v1//responses//resp_1/input_items?limit=2", "resp_1"),
        (b"/v1/responses/resp%5F1/cancel", "resp_1"),
        (b"/openai/v1/responses/resp_1", "resp_1"),
        (b"/v1/chat/completions/chatcmpl-1/messages", "chatcmpl-1"),
        (b"/v1/conversations/conv_1/items", "conv_1"),
        (b"/v1/files/file-1/content", "file-1"),
        (b"/v1/batches/batch_1/cancel", "batch_1"),
        (b"/v1/messages/batches/b_1/results", "b_1"),
        (b"/v1/threads/thread_1/runs/run_1", "thread_1"),
        (b"/v1/fine_tuning/jobs/job_1", "job_1"),
        (b"/v1/responses", ""),
        (b"/v1/responses/", ""),
        (b"/v1/responses/input_tokens", ""),
        (b"/v1/threads/runs", ""),
        (b"/v1/chat/completions", ""),
        (b"/v1/messages/count_tokens", ""),
        (b"/v1/filesystem/x", ""),
        (b"/responses/x?/v1/responses/y", ""),
        (b"*", ""),
    ],
)
def test_the_id_in_a_path(target: bytes, wanted: str) -> None:
    assert id_of(target) == wanted


@pytest.mark.parametrize(
    ("method", "target", "stores", "does"),
    [
        (b"POST", b"/v1/responses", False, True),
        (b"POST", b"/v1/files?x", False, True),
        (b"POST", b"/v1/threads/thread_1/runs", False, True),
        (b"POST", b"/v1/chat/completions", True, True),
        (b"POST", b"/v1/chat/completions", False, False),
        (b"POST", b"/v1/chat//completions?x=/v1/", False, False),
        (b"POST", b"/v1/embeddings", True, False),
        (b"GET", b"/v1/responses", False, False),
    ],
)
def test_whose_answers_are_looked_at(
    method: bytes, target: bytes, stores: bool, does: bool
) -> None:
    assert makes_stored(method, target, stores=stores) is does


@pytest.mark.parametrize(
    ("body", "ids"),
    [
        (b'{"previous_response_id": "resp_1", "input": "x"}', ["resp_1"]),
        (b'{"conversation": "conv_1"}', ["conv_1"]),
        (b'{"conversation": {"id": "conv_1", "x": {}}}', ["conv_1"]),
        (b'{"input_file_id": "f", "assistant_id": "a", "thread_id": "t"}', ["f", "t", "a"]),
        (b'{"previous_response_id": null, "conversation": 3, "thread_id": ""}', []),
        (b'{"x": {"previous_response_id": "resp_1"}}', []),
        (b'["previous_response_id"]', []),
        (b'{"previous_response_id": "re', []),
    ],
)
def test_the_ids_that_a_body_goes_on_with(body: bytes, ids: list[str]) -> None:
    assert read_mentions(body) == ids


# ---- What answers tell ----


@pytest.mark.parametrize(
    ("headers", "opening", "ids"),
    [
        (JSON, MADE, ["resp_1"]),
        (JSON, MADE[:40], ["resp_1"]),
        (JSON, b' {"error": null, "conversation": {"id": "conv_1"}, "id" : "r\\u005f1", ', ["conv_1", "r_1"]),
        (JSON, b'{"output": [{"id": "msg_1"}], "x": "\\"id\\": \\"y\\"", "metadata": {"id": "z"}}', []),
        (JSON, b'{"id": 3}', []),
        (JSON, b'{"id": "' + b"x" * 300 + b'"}', []),
        (JSON, b'[{"id": "x"}]', []),
        (JSON, b'"id": "x"', []),
        (JSON, b"", []),
        ([(b"content-type", b"text/plain")], MADE, []),
        (EVENTS, b'event: response.created\r\ndata: {"type": "response.created", "response": '
                 b'{"id": "resp_1", "conversation": {"id": "conv_1"}, "output": []', ["resp_1", "conv_1"]),
        (EVENTS, b': hello\n\nevent: thread.run.created\ndata: {"id": "run_1"}\n\ndata: {"id": "x"}', ["run_1"]),
        (EVENTS, b'data: {"id":"chatcmpl-1","choices":[]}\n\n', ["chatcmpl-1"]),
        ([*JSON, (b"Content-Encoding", b"GZIP")], gzip.compress(MADE, mtime=0), ["resp_1"]),
        ([*JSON, (b"Content-Encoding", b"gzip")], MADE, []),
        ([*JSON, (b"Content-Encoding", b"br")], MADE, []),
    ],
)  # fmt: skip
def test_the_ids_in_an_answer(headers: Any, opening: bytes, ids: list[str]) -> None:
    assert ids_of(headers, opening, b"", is_chunked=False) == ids
    assert ids_of(headers, b"%x\r\n%b\r\n" % (len(opening), opening), b"", is_chunked=True) == ids


def test_an_id_behind_the_text() -> None:
    """As llama.cpp writes it."""
    whole = b'{"choices":[{"text":"%b"}],"usage":{"x":1},"id":"chatcmpl-1"}' % (b"x" * 5000)
    assert ids_of(JSON, whole[:2048], whole[-3000:], is_chunked=False) == ["chatcmpl-1"]
    inside = b'{"choices":[{"text":"%b"}],"metadata":{"id":"evil"}}' % (b"x" * 5000)
    assert ids_of(JSON, inside[:2048], inside[-3000:], is_chunked=False) == []


@given(st.binary() | st.lists(st.sampled_from([b'"id"', b":", b'"a"', b"{", b"}", b"[", b"]", b"\\"])).map(b"".join))  # fmt: skip
def test_no_answer_is_an_unforeseen_error(noise: bytes) -> None:
    for headers in (JSON, EVENTS, [*JSON, (b"content-encoding", b"gzip")]):
        for opening in (noise, b"data:{" + noise, b"{" + noise):
            ids_of(headers, opening, noise, is_chunked=True)
    id_of(noise)
    id_of(b"/v1/responses/" + noise)
    read_mentions(b"{" + noise)


def test_the_memory_is_bounded() -> None:
    stored = Stored(3)
    for number in range(3):
        stored.note(f"r{number}", "a")
    assert stored.maker("r0") == "a"
    stored.note("r3", "b")
    assert [stored.maker(f"r{number}") for number in range(4)] == ["a", None, "a", "b"]
    stored.note("r3", "a")
    assert (stored.maker("r3"), len(stored)) == ("b", 3), "what was made is taken from nobody"


# ---- On the lanes ----


def ask(method: bytes, target: bytes, body: bytes = b"", *headers: bytes) -> bytes:
    lines = [
        b"%b %b HTTP/1.1" % (method, target), b"Host: h", b"Connection: close",
        *([b"Content-Type: application/json", b"Content-Length: %d" % len(body)] if body else []),
        *headers,
    ]  # fmt: skip
    return b"\r\n".join([*lines, b"", body])


def model_of(answer: bytes) -> bytes:
    head = answer.partition(b"\r\n\r\n")[0].split(b"\r\n")
    lines = [each.partition(b": ") for each in head]
    return next((value for name, _, value in lines if name.lower() == b"x-llmux-model"), b"")


async def make(site: Site, model: bytes, id: bytes, target: bytes = b"/v1/responses") -> None:  # noqa: A002
    made = ok(b"Content-Type: application/json", body=b'{"id":"%b","x":1}' % id)

    async def answer(stream: trio.SocketStream, request: bytes) -> None:
        await stream.send_all(made)

    site.backend.play = answer
    body = b'{"model": "%b", "store": true}' % model
    assert status(await site.exchange(ask(b"POST", target, body))) == 200


@pytest.fixture(params=LANES)
async def two(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[Site]:
    async with running_lane(request.param, tmp_path, models=("a", "b")) as site:
        yield site


@pytest.mark.parametrize(
    "request_",
    [
        ask(b"GET", b"/v1/responses/made"),
        ask(b"DELETE", b"/v1/responses/made"),
        ask(b"POST", b"/v1/responses/made/cancel"),
        ask(b"POST", b"/v1/responses/made/cancel", b"{}"),
        ask(b"GET", b"//v1/responses/made/input_items/?x=1"),
        ask(b"POST", b"/v1/responses", b'{"previous_response_id": "made", "input": "x"}'),
        ask(b"POST", b"/v1/batches", b'{"input_file_id": "made", "endpoint": "/v1/x"}'),
    ],
)
async def test_what_was_made_is_asked_of_its_maker(two: Site, request_: bytes) -> None:
    answer = await two.exchange(request_)
    assert (status(answer), error_code(answer)) == (404, "id_not_found")
    assert b"'made'" in answer
    await make(two, b"b", b"made")
    await make(two, b"a", b"other")
    answer = await two.exchange(request_)
    assert (status(answer), model_of(answer)) == (200, b"b")
    explicit = request_.replace(b"Host: h", b"Host: h\r\nmodel-override: a")
    assert model_of(await two.exchange(explicit)) == b"a"


@pytest.mark.parametrize("target", [b"/v1/files", b"/v1/chat/completions", b"/upstream/b/v1/files"])
async def test_what_else_is_made(two: Site, target: bytes) -> None:
    await make(two, b"b", b"made", target)
    where = target.removeprefix(b"/upstream/b") + b"/made"
    assert model_of(await two.exchange(ask(b"GET", where))) == b"b"


async def test_a_chat_that_is_not_stored_is_not_remembered(two: Site) -> None:
    await make(two, b"b", b"kept")
    two.backend.play = lambda stream, _: stream.send_all(
        ok(b"Content-Type: application/json", body=b'{"id":"chatcmpl-1"}')
    )
    for body in (b'{"model": "a"}', b'{"model": "a", "store": false}'):
        assert status(await two.exchange(ask(b"POST", b"/v1/chat/completions", body))) == 200
    answer = await two.exchange(ask(b"GET", b"/v1/chat/completions/chatcmpl-1"))
    assert error_code(answer) == "id_not_found"


async def test_errors_make_nothing(two: Site) -> None:
    failed = ok(b"Content-Type: application/json", body=b'{"id":"resp_1"}')
    failed = failed.replace(b"200 OK", b"400 Bad Request", 1)
    two.backend.play = lambda stream, _: stream.send_all(failed)
    await two.exchange(ask(b"POST", b"/v1/responses", b'{"model": "a"}'))
    assert error_code(await two.exchange(ask(b"GET", b"/v1/responses/resp_1"))) == "id_not_found"


@pytest.mark.parametrize("framing", ["chunked", "close"])
async def test_a_stream_can_be_cancelled_before_it_has_ended(two: Site, framing: str) -> None:
    event = b'data: {"type": "response.created", "response": {"id": "resp_1"}}\n\n'
    go_on = trio.Event()

    async def answer(stream: trio.SocketStream, request: bytes) -> None:
        if b"/cancel" in request:
            go_on.set()
            await stream.send_all(OK)
            return
        head = b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\n"
        if framing == "chunked":
            head += b"Transfer-Encoding: chunked\r\n\r\n%x\r\n%b\r\n" % (len(event), event)
        else:
            head += b"Connection: close\r\n\r\n" + event
        await stream.send_all(head)
        await go_on.wait()
        if framing == "chunked":
            await stream.send_all(b"0\r\n\r\n")
        else:
            await stream.aclose()

    two.backend.play = answer
    async with await two.connect() as client:
        body = b'{"model": "a", "stream": true}'
        await client.send_all(ask(b"POST", b"/v1/responses", body))
        received = b""
        with trio.fail_after(20):
            while b"resp_1" not in received:
                received += await client.receive_some()
        answered = await two.exchange(ask(b"POST", b"/v1/responses/resp_1/cancel"))
        assert (status(answered), model_of(answered)) == (200, b"a")


@pytest.mark.parametrize("lane", LANES)
async def test_the_fallback_gets_its_own_and_no_prompt_of_others(lane: str, tmp_path: Path) -> None:
    async with running_lane("fast", tmp_path / "cloud") as cloud:
        url = f"http://127.0.0.1:{cloud.backend.port}"
        cloud.backend.play = lambda stream, _: stream.send_all(
            ok(b"Content-Type: application/json", body=b'{"id":"resp_cloud"}')
        )
        async with running_lane(
            lane, tmp_path, fallback=url, default_model="a", fallback_models=["gpt-*"]
        ) as site:
            prompt = b'{"previous_response_id": "%b", "input": "x"}'
            unknown = await site.exchange(ask(b"POST", b"/v1/responses", prompt % b"resp_x"))
            assert error_code(unknown) == "id_not_found"
            assert cloud.backend.received == []
            made = await site.exchange(ask(b"POST", b"/v1/responses", b'{"model": "gpt-5"}'))
            assert (status(made), len(cloud.backend.received)) == (200, 1)
            more = await site.exchange(ask(b"POST", b"/v1/responses", prompt % b"resp_cloud"))
            assert (status(more), len(cloud.backend.received)) == (200, 2)
            read = await site.exchange(ask(b"GET", b"/v1/responses/resp_x"))
            assert (status(read), len(cloud.backend.received)) == (200, 3)
            assert site.backend.received == []


@pytest.mark.parametrize("form", ALL_FORMS)
async def test_files_go_to_the_model_they_were_given_to(form: str, tmp_path: Path) -> None:
    async with (
        running_backends(tmp_path, "a", "b") as rack,
        running_llmux(rack.write_config(default_model="a"), form) as llmux,
        llmux.client() as client,
    ):
        answer = await client.get("/v1/files/file-1")
        assert (answer.status_code, answer.json()["error"]["code"]) == (404, "id_not_found")
        assert rack.hook_log == []
        answer = await client.post("/v1/responses", content=json.dumps({"input": "x"}))
        assert answer.headers["x-llmux-model"] == "a"
