"""The whole road over real sockets: a real llmux process, real `sh` hooks, backends that check."""

from __future__ import annotations

import json
import os
import re
import signal
import socket
import sys
from collections import Counter
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import aclosing, suppress
from functools import partial
from pathlib import Path
from typing import Any, cast

import httpx
import pytest
import trio

from tests.servers import (
    ALL_FORMS,
    FORMS,
    LlmuxProcess,
    Rack,
    chat,
    running_backends,
    running_llmux,
    start_in_vain,
    tally,
)

CHAT = "/v1/chat/completions"


@pytest.fixture
async def rack(tmp_path: Path) -> AsyncIterator[Rack]:
    async with running_backends(tmp_path, "a", "b") as rack:
        yield rack


@pytest.fixture
async def llmux(rack: Rack) -> AsyncIterator[LlmuxProcess]:
    async with running_llmux(rack.write_config()) as llmux:
        yield llmux


@pytest.fixture
async def client(llmux: LlmuxProcess) -> AsyncIterator[httpx.AsyncClient]:
    async with llmux.client() as client:
        yield client


async def first_chunk(answer: httpx.Response) -> bytes:
    async with aclosing(cast("AsyncGenerator[bytes, None]", answer.aiter_raw())) as chunks:
        return await anext(chunks)


async def metric(client: httpx.AsyncClient, series: str) -> float:
    for line in (await client.get("/metrics")).text.splitlines():
        name, _, value = line.rpartition(" ")
        if name == series:
            return float(value)
    return 0.0


async def status(client: httpx.AsyncClient) -> Any:
    return (await client.get("/control/status")).json()


async def test_one_model(client: httpx.AsyncClient, rack: Rack) -> None:
    answer = await client.post(CHAT, json=chat("a"))
    assert answer.status_code == 200
    assert answer.json()["served_by"] == "a"
    assert answer.headers["x-llmux-model"] == "a"
    assert float(answer.headers["x-llmux-wait-ms"]) > 0
    assert rack.hook_log == ["a wake"]
    again = await client.post(CHAT, json=chat("a"))
    assert again.headers["x-llmux-wait-ms"] == "0"
    assert rack.hook_log == ["a wake"]


async def test_a_switch(client: httpx.AsyncClient, rack: Rack) -> None:
    for model in "aba":
        assert (await client.post(CHAT, json=chat(model))).json()["served_by"] == model
    assert rack.hook_log == ["a wake", "a sleep", "b wake", "b sleep", "a wake"]


async def test_errors_and_own_paths(client: httpx.AsyncClient) -> None:
    unknown = await client.post(CHAT, json=chat("nope"))
    assert unknown.status_code == 404
    assert unknown.json()["error"] == {
        "message": "Model not found: nope. Known names: a, b",
        "type": "llmux_error",
        "param": None,
        "code": "model_not_found",
    }
    unnamed = await client.post(CHAT, content=b"hello")
    assert (unnamed.status_code, unnamed.json()["error"]["code"]) == (404, "no_model")
    models = (await client.get("/v1/models")).json()
    assert [model["id"] for model in models["data"]] == ["a", "b"]
    assert models["data"][0]["llmux"] == {"state": "asleep", "in_flight": 0, "queued": 0}
    assert (await client.get("/v1/models/b")).json()["id"] == "b"
    assert (await client.get("/v1/models/c")).status_code == 404
    assert (await client.get("/health")).json() == {"status": "ok"}
    assert (await client.get("/control/nope")).json()["error"]["code"] == "not_found"
    refused = await client.delete("/v1/models")
    assert refused.status_code == 405
    assert "GET" in refused.headers["allow"]


async def test_ten_at_once_for_one_model(client: httpx.AsyncClient, rack: Rack) -> None:
    answers = await many(client, ["a"] * 10)
    assert tally(answers) == {200: 10}
    assert rack.hook_log == ["a wake"]
    assert rack.backends["a"].served == 10


async def test_mixed_requests_for_two_models(client: httpx.AsyncClient, rack: Rack) -> None:
    answers = await many(client, ["a", "b"] * 10)
    assert tally(answers) == {200: 20}
    served = Counter(answer.json()["served_by"] for answer in answers)
    assert served == {"a": 10, "b": 10}
    assert {name: backend.served for name, backend in rack.backends.items()} == served


async def many(client: httpx.AsyncClient, models: list[str]) -> list[httpx.Response]:
    answers: list[httpx.Response] = []

    async def ask(model: str) -> None:
        answers.append(await client.post(CHAT, json=chat(model)))

    async with trio.open_nursery() as nursery:
        for model in models:
            nursery.start_soon(ask, model)
    return answers


async def test_a_switch_takes_at_least_its_hooks_time_and_costs_are_per_direction(
    rack: Rack,
) -> None:
    slow = {"b": {"wake": "sleep 1.2; : > b.awake"}, "a": {"wake": "sleep 0.2; : > a.awake"}}
    async with running_llmux(rack.write_config(models=slow)) as llmux, llmux.client() as client:
        for model in "abab":
            answer = await client.post(CHAT, json=chat(model))
            assert float(answer.headers["x-llmux-wait-ms"]) >= (1200 if model == "b" else 200)
        costs = (await status(client))["estimated_costs"]
        assert costs["a"]["b"] >= 1.2 > costs["b"]["a"] >= 0.2
        assert costs["idle"]["a"] >= 0.2
        series = 'llmux_switch_total{from="a",result="success",to="b"}'
        assert await metric(client, series) == 2


async def test_a_stream_outlives_a_switch_request_and_holds_it_back(
    client: httpx.AsyncClient, rack: Rack
) -> None:
    gate = trio.Event()
    wanted = trio.Event()

    async def next_chunk(number: int) -> None:
        if number == 2:
            await gate.wait()

    rack.backends["a"].next_chunk = next_chunk

    async def ask_b() -> None:
        wanted.set()
        assert (await client.post(CHAT, json=chat("b"))).json()["served_by"] == "b"
        assert rack.backends["a"].served == 1

    async with trio.open_nursery() as nursery:
        request = client.stream("POST", CHAT, json=chat("a", stream=True, chunks=4))
        async with request as answer:
            chunks = answer.aiter_text()
            received = await anext(chunks)
            nursery.start_soon(ask_b)
            await until(client, lambda now: now["models"]["a"]["state"] == "draining")
            assert rack.hook_log == ["a wake"]
            gate.set()
            async for chunk in chunks:
                received += chunk
        assert received == "data: 0\n\ndata: 1\n\ndata: 2\n\ndata: 3\n\n"
    assert rack.hook_log == ["a wake", "a sleep", "b wake"]


async def until(client: httpx.AsyncClient, condition: Any) -> None:
    with trio.fail_after(10):
        while not condition(await status(client)):
            await trio.sleep(0.01)


async def test_a_client_that_leaves_the_line_is_forgotten(rack: Rack) -> None:
    slow = {"a": {"wake": "sleep 0.5; : > a.awake"}}
    async with running_llmux(rack.write_config(models=slow)) as llmux, llmux.client() as client:
        async with trio.open_nursery() as nursery:
            leaving = trio.CancelScope()

            async def leave() -> None:
                with leaving:
                    await client.post(CHAT, json=chat("a"))

            nursery.start_soon(leave)
            await until(client, lambda now: now["models"]["a"]["queued"] == 1)
            leaving.cancel()
            await until(client, lambda now: now["models"]["a"]["queued"] == 0)
        assert (await client.post(CHAT, json=chat("b"))).status_code == 200
        assert rack.backends["a"].received == []


async def test_a_client_that_leaves_in_flight_stops_the_backend(
    client: httpx.AsyncClient, rack: Rack
) -> None:
    endless = chat("a", stream=True, chunks=1_000_000, interval=0.01)
    async with client.stream("POST", CHAT, json=endless) as answer:
        await first_chunk(answer)
    with trio.fail_after(20):
        assert (await client.post(CHAT, json=chat("b"))).status_code == 200
        while not rack.backends["a"].aborted:
            await trio.sleep(0.01)
    now = await status(client)
    assert now["models"]["a"]["in_flight"] == 0


async def test_a_hook_that_fails(rack: Rack) -> None:
    broken = {"b": {"wake": "echo no such GPU >&2; exit 7"}}
    async with running_llmux(rack.write_config(models=broken)) as llmux, llmux.client() as client:
        assert (await client.post(CHAT, json=chat("a"))).status_code == 200
        answer = await client.post(CHAT, json=chat("b"))
        assert answer.status_code == 500
        assert answer.json()["error"]["code"] == "hook_failed"
        assert answer.json()["error"]["message"] == (
            "Hook failed for b: wake hook exited with 7 (its log: llmux logs b)"
        )
        assert (await client.post(CHAT, json=chat("a"))).status_code == 200
        assert await metric(client, 'llmux_hook_failures_total{hook="wake",model="b"}') == 1
    assert rack.hook_log == ["a wake", "a sleep", "b sleep", "a wake"]


@pytest.mark.parametrize("form", ALL_FORMS)
async def test_a_model_that_keeps_failing(rack: Rack, form: str) -> None:
    """Its clients are told, in the form of their API, and the model that works is left alone."""
    broken = {"b": {"wake": "echo no such GPU >&2; exit 7"}}
    config = rack.write_config(models=broken, policy={"wake_failures": 1})
    async with running_llmux(config, form) as llmux, llmux.client() as client:
        assert (await client.post(CHAT, json=chat("b"))).status_code == 500
        assert (await client.post(CHAT, json=chat("a"))).status_code == 200
        for path, told in (
            (CHAT, lambda data: data["error"]),
            ("/v1/messages", lambda data: data["error"]),
            ("/api/chat", lambda data: {"message": data["error"]}),
        ):
            answer = await client.post(path, json=chat("b"))
            assert answer.status_code == 503
            assert answer.headers["retry-after"] == "60"
            error = told(answer.json())
            assert error["message"] == (
                "Model b has failed to wake the last time: Hook failed for b: wake hook exited "
                "with 7 (its log: llmux logs b)"
            )
        assert (await client.post(CHAT, json=chat("b"))).json()["error"]["code"] == "model_failing"
        assert (await client.get("/health")).json() == {"status": "ok", "failing_models": 1}
        assert (await client.get("/v1/models/b")).json()["llmux"]["failing"] is True
        assert "failing" not in (await client.get("/v1/models/a")).json()["llmux"]
        status = (await client.get("/control/status")).json()["models"]
        assert (status["b"]["failing"], status["b"]["failed_wakes"]) == (True, 1)
        assert (status["a"]["failing"], status["a"]["failed_wakes"]) == (False, 0)
        assert await metric(client, 'llmux_model_failing{model="b"}') == 1
        assert await metric(client, 'llmux_model_failing{model="a"}') == 0
    assert rack.hook_log == ["b sleep", "a wake"]


async def test_a_hook_whose_file_is_missing_is_told_at_the_start(rack: Rack) -> None:
    missing = {"b": {"wake": "./wake-b.sh"}}
    async with running_llmux(rack.write_config(models=missing)) as llmux:
        (line,) = (line for line in llmux.lines if "hook_unusable" in line)
        assert "models.b.wake: there is no ./wake-b.sh in " in line


async def test_a_reload_to_llmuxs_own_port_changes_nothing(rack: Rack) -> None:
    config = rack.write_config()
    async with running_llmux(config) as llmux, llmux.client() as client:
        assert (await client.post(CHAT, json=chat("a"))).status_code == 200
        own = int(llmux.url.rpartition(":")[2])
        rack.write_config(models={"a": {"port": own}})
        answer = await client.post("/control/reload")
        assert answer.status_code == 400
        message = answer.json()["error"]["message"]
        assert message.startswith(f"{config}:1:")
        assert f"models.a.port: is llmux's own port ({own})" in message
        assert (await client.post(CHAT, json=chat("a"))).status_code == 200


async def test_keys_and_hosts_are_told_at_the_start(rack: Rack) -> None:
    async with running_llmux(rack.write_config(host="0.0.0.0")) as llmux:
        (line,) = (line for line in llmux.lines if "config_suspect" in line)
        assert "host: 0.0.0.0 is open to other machines" in line


async def test_a_hook_that_outlives_its_deadline(rack: Rack) -> None:
    hanging = {"b": {"wake": "sleep 60", "hook_timeouts": {"wake": 0.3}}}
    async with running_llmux(rack.write_config(models=hanging)) as llmux, llmux.client() as client:
        answer = await client.post(CHAT, json=chat("b"))
        assert answer.status_code == 500
        assert "took longer than 0.3 s" in answer.json()["error"]["message"]
        assert (await client.post(CHAT, json=chat("a"))).status_code == 200


async def test_a_hook_that_starts_a_server_without_a_redirect(rack: Rack) -> None:
    """`sh -c "server &"` neither hangs the switch nor hurts the server."""
    wake = "(while sleep 0.05; do echo alive; done) & echo $! > a.pid; : > a.awake"
    leaky = {"a": {"wake": wake, "sleep": "kill $(cat a.pid); rm -f a.awake"}}
    async with running_llmux(rack.write_config(models=leaky)) as llmux, llmux.client() as client:
        with trio.fail_after(20):
            assert (await client.post(CHAT, json=chat("a"))).status_code == 200
        log = rack.folder / "state" / "logs" / "a.log"
        with trio.fail_after(20):
            while log.read_text().count("alive") < 3:
                await trio.sleep(0.02)
        assert (await client.post(CHAT, json=chat("b"))).status_code == 200


async def test_groups_do_not_wait_for_each_other(rack: Rack) -> None:
    slow = {"wake": "sleep 60", "hook_timeouts": {"wake": 1}}
    groups = {"a": slow, "b": {"group": "other"}}
    async with running_llmux(rack.write_config(models=groups)) as llmux, llmux.client() as client:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(ask_in_vain, client, "a")
            await until(client, lambda now: now["models"]["a"]["state"] == "waking")
            assert (await client.post(CHAT, json=chat("b"))).status_code == 200
            nursery.cancel_scope.cancel()


async def ask_in_vain(client: httpx.AsyncClient, model: str) -> None:
    await client.post(CHAT, json=chat(model))


async def test_control(client: httpx.AsyncClient, rack: Rack) -> None:
    switched = await client.post("/control/switch", json={"model": "b"})
    assert switched.json() == {"message": "Switched to model: b"}
    now = await status(client)
    assert (now["state"], now["active_model"], now["mode"]) == ("active", "b", "auto")
    assert now["queue_depth"] == {"a": 0, "b": 0}
    assert now["models"]["b"]["awake"] is True

    await client.post("/control/mode", json={"mode": "manual"})
    refused = await client.post(CHAT, json=chat("a"))
    assert refused.status_code == 503
    assert refused.json()["error"]["message"] == (
        "Manual mode active: model a not available (active: b)"
    )
    assert (await client.post(CHAT, json=chat("b"))).status_code == 200
    assert (await client.post("/control/switch", json={"model": "a"})).status_code == 200
    assert rack.hook_log == ["b wake", "b sleep", "a wake"]

    assert (await client.post("/control/switch", json={"model": "x"})).status_code == 404
    bodies: list[Any] = [{"mode": "x"}, {"mode": "auto", "more": 1}, [], None]
    for body in bodies:
        assert (await client.post("/control/mode", json=body)).status_code == 400


FOREIGN: list[dict[str, str]] = [
    {"X-Forwarded-For": "10.0.0.1"},
    {"Forwarded": "for=10.0.0.1"},
    {"X-Forwarded-Host": "llmux.example"},
    {"X-Real-IP": "10.0.0.1"},
    {"Via": "1.1 proxy"},
    {"Sec-Fetch-Site": "cross-site", "Sec-Fetch-Mode": "no-cors"},
    {"Sec-Fetch-Site": "cross-site", "Sec-Fetch-Mode": "navigate"},
    {"Sec-Fetch-Site": "same-site"},
    {"Origin": "https://evil.example"},
    {"Origin": "null"},
    {"Host": "rebound.example:3000"},
    {"Host": "["},
]
"""Header fields that requests of this machine's own programs do not have."""


async def test_control_answers_only_this_machine(client: httpx.AsyncClient) -> None:
    for headers in FOREIGN:
        answer = await client.get("/control/status", headers=headers)
        assert (answer.status_code, answer.json()["error"]["code"]) == (403, "forbidden"), headers


async def test_naming_a_model_in_other_ways(client: httpx.AsyncClient, rack: Rack) -> None:
    by_header = await client.post(CHAT, json=chat("b"), headers={"model-override": "a"})
    assert by_header.json()["served_by"] == "a"
    by_path = await client.post("/upstream/b/rerank?x=1", content=b"{}")
    assert by_path.json()["served_by"] == "b"
    request, _ = rack.backends["b"].received[-1]
    assert request.target == b"/rerank?x=1"
    assert (await client.get("/anything?model=a")).json()["served_by"] == "a"
    by_form = await client.post("/v1/audio/transcriptions", data={"model": "b"})
    assert by_form.json()["served_by"] == "b"


async def test_aliases_upstream_names_and_headers(rack: Rack) -> None:
    named = {
        "a": {
            "aliases": ["gpt-4o", "/data/m"],
            "upstream_model": "org/a",
            "headers": {"Authorization": "k"},
        }
    }
    async with running_llmux(rack.write_config(models=named)) as llmux, llmux.client() as client:
        body = b'{ "model" : "gpt-4o",  "n": 1e0, "messages": [{"model": "gpt-4o"}] }'
        answer = await client.post(CHAT, content=body, headers={"authorization": "client's"})
        assert answer.headers["x-llmux-model"] == "a"
        assert (await client.get("/v1/models//data/m")).json()["id"] == "a"
        request, forwarded = rack.backends["a"].received[-1]
        assert forwarded == body.replace(b'"gpt-4o"', b'"org/a"', 1)
        headers = dict(request.headers)
        assert headers[b"authorization"] == b"k"
        assert headers[b"x-forwarded-for"] == b"127.0.0.1"
        assert headers[b"host"] == b"127.0.0.1:%d" % rack.backends["a"].port


async def test_a_backend_that_is_gone(rack: Rack) -> None:
    with trio.socket.socket() as unused:
        await unused.bind(("127.0.0.1", 0))
        gone = {"a": {"port": unused.getsockname()[1], "hook_timeouts": {"wake": 0.5}}}
        async with running_llmux(rack.write_config(models=gone)) as llmux, llmux.client() as client:
            answer = await client.post(CHAT, json=chat("a"))
    assert (answer.status_code, answer.json()["error"]["code"]) == (502, "backend_error")


async def test_a_body_over_the_limit(rack: Rack) -> None:
    config = rack.write_config(limits={"body_bytes": 1000})
    async with running_llmux(config) as llmux, llmux.client() as client:
        answer = await client.post(CHAT, content=b" " * 1001)
        assert (answer.status_code, answer.json()["error"]["code"]) == (413, "body_too_large")

        async def pieces() -> AsyncIterator[bytes]:
            for _ in range(11):
                yield b" " * 100

        assert (await client.post(CHAT, content=pieces())).status_code == 413


async def test_stopping_finishes_streams_and_refuses_those_who_wait(rack: Rack) -> None:
    gate = trio.Event()

    async def next_chunk(number: int) -> None:
        if number == 1:
            await gate.wait()

    rack.backends["a"].next_chunk = next_chunk
    async with (
        running_llmux(rack.write_config()) as llmux,
        llmux.client() as client,
        trio.open_nursery() as nursery,
    ):
        async with client.stream("POST", CHAT, json=chat("a", stream=True, chunks=2)) as answer:
            chunks = answer.aiter_raw()
            await anext(chunks)

            async def wait_in_line() -> None:
                refused = await client.post(CHAT, json=chat("b"))
                assert refused.status_code == 503
                assert refused.json()["error"]["code"] == "shutting_down"
                assert refused.headers["retry-after"] == "5"
                gate.set()

            nursery.start_soon(wait_in_line)
            await until(client, lambda now: now["models"]["b"]["queued"] == 1)
            nursery.start_soon(llmux.terminate)
            rest = b"".join([chunk async for chunk in chunks])
        assert rest == b"data: 1\n\n"


PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + bytes([0, 0, 0, 4, 0, 0, 0, 0, 0])


@pytest.mark.parametrize(
    "sent", [b"POST / HTTP/1.1\r\nHost: h\r\n", b"GET / HTTP/1.0\r\n", PREFACE]
)
async def test_stopping_waits_for_no_head(rack: Rack, sent: bytes) -> None:
    async with running_llmux(rack.write_config()) as llmux:
        url = httpx.URL(llmux.url)
        async with await trio.open_tcp_stream(url.host, url.port or 0) as stream:
            await stream.send_all(sent)
            await trio.sleep(0.1)  # until it is read
            assert await llmux.terminate(seconds=5) == 0


@pytest.mark.parametrize("form", ALL_FORMS)
async def test_200_requests_over_4_models(tmp_path: Path, form: str) -> None:
    async with running_backends(tmp_path, "a", "b", "c", "d") as rack:
        async with running_llmux(rack.write_config(), form) as llmux, llmux.client() as client:
            answers = await many(client, list("abcd") * 50)
            assert tally(answers) == {200: 200}
            now = await status(client)
            for model in now["models"].values():
                assert (model["in_flight"], model["queued"]) == (0, 0)
        assert {name: backend.served for name, backend in rack.backends.items()} == dict.fromkeys(
            "abcd", 50
        )
        assert rack.violations == []
        if form == "hypercorn":
            assert any("hypercorn -k trio" in line for line in llmux.lines)


@pytest.mark.parametrize("form", ["hypercorn -k trio", "hypercorn"])
async def test_leaving_and_streaming_on_hypercorn(rack: Rack, form: str) -> None:
    async with running_llmux(rack.write_config(), form) as llmux, llmux.client() as client:
        endless = chat("a", stream=True, chunks=1_000_000, interval=0.01)
        async with client.stream("POST", CHAT, json=endless) as answer:
            await first_chunk(answer)
        with trio.fail_after(20):
            assert (await client.post(CHAT, json=chat("b"))).status_code == 200
            while not rack.backends["a"].aborted:
                await trio.sleep(0.01)


@pytest.mark.parametrize("form", ALL_FORMS)
async def test_a_frame_behind_a_handshake_that_is_refused(rack: Rack, form: str) -> None:
    """Its WebSockets are llmux's own: Hypercorn's end the server here."""
    async with running_llmux(rack.write_config(), form) as llmux, llmux.client() as client:
        handshake = (
            b"GET /health HTTP/1.1\r\nHost: h\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n"
            b"Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n"
        )
        port = cast("int", httpx.URL(llmux.url).port)
        async with await trio.open_tcp_stream("127.0.0.1", port) as stream:
            await stream.send_all(handshake + b"\x81\x85\0\0\0\0hello")
            with trio.fail_after(20):
                assert (await stream.receive_some()).startswith(b"HTTP/1.1 404")
        assert (await client.get("/health")).status_code == 200


@pytest.mark.parametrize("form", ["llmux", "hypercorn -k trio"])
async def test_what_hypercorn_cannot_read_ends_a_connection_only(rack: Rack, form: str) -> None:
    config = rack.write_config(http2=True)
    async with running_llmux(config, form) as llmux, llmux.client() as client:
        upgrade = {"Connection": "Upgrade, HTTP2-Settings", "Upgrade": "h2c"}
        answer = await client.get("/health", headers={**upgrade, "HTTP2-Settings": "x"})
        assert answer.status_code == 101  # said before they are read
        assert (await client.get("/health")).status_code == 200
        assert not any("Traceback" in line for line in llmux.lines)


@pytest.mark.parametrize("form", FORMS)
async def test_a_config_that_cannot_be_served(rack: Rack, form: str) -> None:
    config = rack.write_config(port="x", prot=1)
    code, lines = await start_in_vain(config, form)
    assert code == (2 if form == "llmux" else 0)
    column = config.read_text().index('"prot"') + 1
    assert lines == [
        f"{config}:1:2: port: expected int, got str",
        f"{config}:1:{column}: prot: unknown key, did you mean 'port'?",
    ]


@pytest.mark.parametrize("form", ALL_FORMS)
async def test_a_switcher_that_dies_ends_the_process(rack: Rack, form: str) -> None:
    (rack.folder / "broken_policy.py").write_text(
        "class Broken:\n"
        "    def __init__(self, config): pass\n"
        "    def decide(self, snapshot):\n"
        "        if any(model.queued for model in snapshot.models.values()):\n"
        "            raise RuntimeError('no idea')\n"
    )
    config = rack.write_config(policy={"name": "broken_policy:Broken"})
    code = 3 if form == "llmux" else 0
    async with running_llmux(config, form, ends_with=code) as llmux, llmux.client() as client:
        with trio.fail_after(10):
            try:
                answer = await client.post(CHAT, json=chat("a"))
            except httpx.TransportError:
                pass
            else:
                assert answer.status_code == 503
            await llmux.process.wait()
        assert any("switcher_died" in line for line in llmux.lines)
        assert any("no idea" in line for line in llmux.lines)


async def test_stopping_lets_a_hook_that_runs_use_the_grace(rack: Rack) -> None:
    slow = {"a": {"wake": "touch started; sleep 0.5; touch done"}}
    async with running_llmux(rack.write_config(models=slow)) as llmux, llmux.client() as client:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(ask_in_vain, client, "a")
            with trio.fail_after(20):
                while not (rack.folder / "started").exists():
                    await trio.sleep(0.01)
            assert await llmux.terminate() == 0
    assert (rack.folder / "done").exists()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
async def test_stopping_ends_a_hook_that_runs(rack: Rack, number: signal.Signals) -> None:
    hanging = {"a": {"wake": "echo $$ > a.pid; sleep 60", "hook_timeouts": {"wake": 1}}}
    async with running_llmux(rack.write_config(models=hanging)) as llmux, llmux.client() as client:
        async with trio.open_nursery() as nursery:

            async def ask() -> None:
                answer = await client.post(CHAT, json=chat("a"))
                assert answer.json()["error"]["code"] == "shutting_down"

            nursery.start_soon(ask)
            with trio.fail_after(20):
                while not (rack.folder / "a.pid").exists():
                    await trio.sleep(0.01)
            llmux.process.send_signal(number)
        with trio.fail_after(10):
            assert await llmux.process.wait() == 0
    pid = int((rack.folder / "a.pid").read_text())
    with pytest.raises(ProcessLookupError):
        os.kill(pid, 0)
    (line,) = (line for line in llmux.lines if " stopping " in line)
    again = "Ctrl-C again" if number is signal.SIGINT else "a second signal"
    assert f"waits_for='the wake hook of a' hint='{again} cuts them'" in line


@pytest.mark.parametrize("number", [signal.SIGHUP, signal.SIGTERM, signal.SIGINT])
async def test_a_signal_waits_until_llmux_has_started(
    rack: Rack, number: signal.Signals, monkeypatch: pytest.MonkeyPatch
) -> None:
    code = (
        "import signal; from llmux.cli import main; from llmux.server import signals; hold_back = signals.hold_back;"
        f"signals.hold_back = lambda: (hold_back(), signal.raise_signal({number:d}));"
        "main.main(prog_name='llmux')"
    )
    monkeypatch.setitem(FORMS, "signalled", [sys.executable, "-c", code])
    config = rack.write_config(models={"a": {"wake": "cat /proc/self/status > a.awake"}})
    async with running_llmux(config, "signalled") as llmux, llmux.client() as client:
        if number == signal.SIGHUP:
            assert (await client.post(CHAT, json=chat("a"))).status_code == 200
            status = rack.backends["a"].awake.read_text()
            assert re.search(r"SigBlk:\s*0+\n", status), "hooks must hear what ends them"
        else:
            with trio.fail_after(10):
                await llmux.process.wait()


async def test_a_signal_after_the_end_changes_nothing(
    rack: Rack, monkeypatch: pytest.MonkeyPatch
) -> None:
    code = (
        "import signal; from llmux.cli import main, serve; run = serve.serve;"
        "serve.serve = lambda options: (run(options), signal.raise_signal(signal.SIGINT))[0];"
        "main.main(prog_name='llmux')"
    )
    monkeypatch.setitem(FORMS, "signalled", [sys.executable, "-c", code])
    async with running_llmux(rack.write_config(), "signalled") as llmux:
        assert await llmux.terminate() == 0


async def test_a_second_signal_ends_everything_at_once(rack: Rack) -> None:
    hanging = {"a": {"wake": "echo $$ > a.pid; exec sleep 60"}}
    async with (
        running_llmux(rack.write_config(models=hanging), ends_with=4) as llmux,
        llmux.client() as client,
    ):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(ask_in_vain, client, "a")
            with trio.fail_after(20):
                while not (rack.folder / "a.pid").exists():
                    await trio.sleep(0.01)
            llmux.process.send_signal(signal.SIGTERM)
            with trio.fail_after(20):
                while not any("stopping" in line for line in llmux.lines):
                    await trio.sleep(0.01)
            llmux.process.send_signal(signal.SIGINT)
            with trio.fail_after(10):
                assert await llmux.process.wait() == 4
    assert not any("Traceback" in line for line in llmux.lines)
    pid = int((rack.folder / "a.pid").read_text())
    with pytest.raises(ProcessLookupError):
        os.kill(pid, 0)


@pytest.mark.parametrize("form", FORMS)
async def test_on_shutdown_the_model_may_be_put_to_sleep(rack: Rack, form: str) -> None:
    models = {"a": {"sleep": "sleep 0.2; echo asleep >> asleep; exit 1"}}
    config = rack.write_config(models=models, on_shutdown="sleep")
    async with running_llmux(config, form) as llmux, llmux.client() as client:
        assert (await client.post(CHAT, json=chat("a"))).status_code == 200
        assert await llmux.terminate() == 0
    assert (rack.folder / "asleep").read_text() == "asleep\n"  # once, also if it fails


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("on_shutdown", ["leave", "sleep"])
async def test_the_end_tells_of_models_that_stay_awake(
    rack: Rack, on_shutdown: str, form: str
) -> None:
    config = rack.write_config(on_shutdown=on_shutdown)
    async with running_llmux(config, form) as llmux, llmux.client() as client:
        assert (await client.post(CHAT, json=chat("a"))).status_code == 200
        assert await llmux.terminate() == 0
        told = [line for line in llmux.lines if "models_left" in line]
    assert len(told) == (on_shutdown == "leave")
    assert all("['a']" in line and "keep running" in line for line in told)


@pytest.mark.parametrize("form", ALL_FORMS)
@pytest.mark.parametrize("on_shutdown", ["leave", "sleep"])
async def test_a_hook_is_ended_with_the_grace(rack: Rack, on_shutdown: str, form: str) -> None:
    models = {"a": {"wake": "echo begun >> hooks.log; sleep 60", "sleep": ": > asleep"}}
    settings = {"shutdown_grace_secs": 0.5, "on_shutdown": on_shutdown}
    config = rack.write_config(models=models, **settings)
    async with running_llmux(config, form) as llmux, llmux.client() as client:
        async with trio.open_nursery() as nursery:

            async def ask() -> None:
                with suppress(httpx.RemoteProtocolError):  # Hypercorn cuts it
                    await client.post(CHAT, json=chat("a"))

            nursery.start_soon(ask)
            with trio.fail_after(10):
                while not rack.hook_log:
                    await trio.sleep(0.01)
            assert await llmux.terminate(seconds=10) == 0
    assert (rack.folder / "asleep").exists() == (on_shutdown == "sleep")


async def test_a_gate_whose_backend_breaks_off_stops_nothing(rack: Rack) -> None:
    async def break_off(stream: trio.SocketStream) -> None:
        if b"/metrics" in await stream.receive_some():
            await stream.send_all(b"HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\nvllm:num")
        else:
            await stream.send_all(b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n")
        await stream.aclose()

    async with trio.open_nursery() as nursery:
        serve = partial(trio.serve_tcp, break_off, 0, host="127.0.0.1")
        (listener,) = await nursery.start(serve)
        model = {"wake": "true", "sleep": "true", "alive": "true"}
        model["port"] = listener.socket.getsockname()[1]
        config = rack.write_config(models={"a": model}, policy={"gate": True})
        async with running_llmux(config) as llmux, llmux.client() as client:
            for _ in range(3):
                assert (await client.post(CHAT, json=chat("a"))).status_code == 200
                await trio.sleep(0.6)  # the gate looks every second
            assert (await client.get("/health")).status_code == 200
        nursery.cancel_scope.cancel()


async def test_more_connections_than_allowed_are_told_so(rack: Rack) -> None:
    async with running_llmux(rack.write_config(limits={"connections": 2})) as llmux:
        url = httpx.URL(llmux.url)
        held = [await trio.open_tcp_stream(url.host, url.port or 0) for _ in range(2)]
        await trio.sleep(0.1)  # until they are accepted
        async with llmux.client() as client:
            answer = await client.get("/health")
            assert (answer.status_code, answer.headers["retry-after"]) == (503, "1")
            assert answer.json()["error"]["code"] == "too_many_connections"
        await held.pop().aclose()
        await trio.sleep(0.1)
        async with llmux.client() as client:
            assert (await client.get("/health")).status_code == 200
        await held.pop().aclose()


async def test_systemd_is_told_when_llmux_serves_and_when_it_stops(
    rack: Rack, monkeypatch: pytest.MonkeyPatch
) -> None:
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as systemd:
        systemd.settimeout(10)
        systemd.bind(str(rack.folder / "notify"))
        monkeypatch.setenv("NOTIFY_SOCKET", str(rack.folder / "notify"))
        async with running_llmux(rack.write_config()) as llmux:
            assert systemd.recv(100) == b"READY=1"
            assert await llmux.terminate() == 0
        assert systemd.recv(100) == b"STOPPING=1"


async def test_an_address_that_cannot_be_had(rack: Rack) -> None:
    # 192.0.2.0/24 is for documentation (RFC 5737): no machine has it.
    code, lines = await start_in_vain(rack.write_config(host="192.0.2.1"), "llmux")
    assert code == 1
    assert lines == ["cannot listen on 192.0.2.1:0: Cannot assign requested address"]


async def test_a_port_that_another_program_has(rack: Rack) -> None:
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = other.getsockname()[1]
        code, lines = await start_in_vain(rack.write_config(port=port), "llmux")
    assert code == 1
    assert lines == [
        f"cannot listen on 127.0.0.1:{port}: Address already in use; `port` or -p chooses another"
    ]


@pytest.mark.parametrize("form", ALL_FORMS)
async def test_a_second_llmux_names_the_first(rack: Rack, llmux: LlmuxProcess, form: str) -> None:
    code, (line,) = await start_in_vain(rack.folder / "llmux.json", form)
    assert code == (2 if form == "llmux" else 0)
    assert f"pid {llmux.process.pid}" in line
    assert str(rack.folder / "llmux.json") in line


def test_the_rack_writes_json(tmp_path: Path) -> None:
    config = Rack(tmp_path, {}).write_config(port=1)
    assert json.loads(config.read_text())["port"] == 1
