"""The stand-in over real sockets, its command line, and the demo's hooks with a real `sh`."""

from __future__ import annotations

import hashlib
import json
import os
import signal
import subprocess
import sys
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest
import trio
import yaml
from click.testing import CliRunner
from trio.testing import MockClock, memory_stream_pair

from bench import processes
from llmux.standin.cli import main
from llmux.standin.options import Options
from llmux.standin.pidfile import hold
from llmux.standin.server import Standin, serve

SERVE = [sys.executable, "-m", "llmux.standin", "serve", "--model=llama", "--port=0"]
ROOT = Path(__file__).parents[2]
WORDS = "llama is a stand-in and makes these words up."


@asynccontextmanager
async def running(**options: Any) -> AsyncIterator[tuple[Standin, httpx.AsyncClient]]:
    """A stand-in for `llama` and a client of it; at the end it answers nobody."""
    with trio.fail_after(10):
        async with trio.open_nursery() as nursery:
            standin = await nursery.start(serve, Options(model="llama", **options))
            async with httpx.AsyncClient(
                base_url=standin.url, trust_env=False, verify=False
            ) as client:
                yield standin, client
                await idle(client)
            nursery.cancel_scope.cancel()


async def idle(client: httpx.AsyncClient) -> None:
    """Ask until it answers nobody."""
    while (await client.get("/stats")).json()["in_flight"]:
        pass


@pytest.fixture
async def client() -> AsyncIterator[httpx.AsyncClient]:
    async with running() as (_, client):
        yield client


def chat(text: str = "Who are you?", **fields: Any) -> dict[str, Any]:
    return {"model": "llama", "messages": [{"role": "user", "content": text}], **fields}


def events(body: str) -> list[Any]:
    """The data of a complete stream, without the mark at its end."""
    *parts, rest = body.split("\n\n")
    assert rest == ""
    data = [part.removeprefix("data: ") for part in parts]
    assert all(part.startswith("data: ") for part in parts)
    assert data.pop() == "[DONE]"
    return [json.loads(event) for event in data]


async def test_chat(client: httpx.AsyncClient) -> None:
    response = await client.post("/v1/chat/completions", json=chat(max_tokens=9))
    answer = response.json()
    assert response.headers["content-type"] == "application/json"
    assert answer["object"] == "chat.completion"
    assert (answer["model"], answer["id"]) == ("llama", "chatcmpl-1")
    assert answer["usage"] == {"prompt_tokens": 3, "completion_tokens": 9, "total_tokens": 12}
    [choice] = answer["choices"]
    assert choice["message"] == {"role": "assistant", "content": WORDS}
    assert choice["finish_reason"] == "length"


async def test_a_chat_of_parts_and_silence_counts_its_words(client: httpx.AsyncClient) -> None:
    image = {"type": "image_url", "image_url": {"url": "data:,"}}
    messages = [{"content": [{"type": "text", "text": "two words"}, image]}, {"content": None}]
    answer = (await client.post("/v1/chat/completions", json={"messages": messages})).json()
    assert answer["usage"]["prompt_tokens"] == 2


async def test_a_completion_as_long_as_the_server_likes(client: httpx.AsyncClient) -> None:
    answer = (await client.post("/v1/completions", json={"prompt": ["a b", "c"]})).json()
    assert (answer["object"], answer["id"]) == ("text_completion", "cmpl-1")
    assert answer["usage"] == {"prompt_tokens": 3, "completion_tokens": 32, "total_tokens": 35}
    [choice] = answer["choices"]
    assert len(choice["text"].split()) == 32
    assert choice["finish_reason"] == "stop"


async def test_a_streamed_chat(client: httpx.AsyncClient) -> None:
    ask = chat(stream=True, max_completion_tokens=9)
    response = await client.post("/v1/chat/completions", json=ask)
    assert response.headers["content-type"] == "text/event-stream"
    assert response.headers["transfer-encoding"] == "chunked"
    parts = events(response.text)
    assert {part["object"] for part in parts} == {"chat.completion.chunk"}
    assert {part["id"] for part in parts} == {"chatcmpl-1"}
    assert not any("usage" in part for part in parts)
    choices = [part["choices"][0] for part in parts]
    assert choices[0]["delta"] == {"role": "assistant", "content": ""}
    assert "".join(choice["delta"]["content"] for choice in choices[1:-1]) == WORDS
    assert choices[-1]["delta"] == {}
    assert [choice["finish_reason"] for choice in choices] == [None] * 10 + ["length"]


async def test_a_streamed_chat_with_usage(client: httpx.AsyncClient) -> None:
    ask = chat(stream=True, max_tokens=1, stream_options={"include_usage": True})
    *parts, last = events((await client.post("/v1/chat/completions", json=ask)).text)
    assert [part["usage"] for part in parts] == [None] * 3
    assert last["choices"] == []
    assert last["usage"] == {"prompt_tokens": 3, "completion_tokens": 1, "total_tokens": 4}


async def test_a_streamed_completion(client: httpx.AsyncClient) -> None:
    ask = {"prompt": [1, 2], "stream": True, "max_tokens": 9}
    parts = events((await client.post("/v1/completions", json=ask)).text)
    choices = [part["choices"][0] for part in parts]
    assert "".join(choice["text"] for choice in choices) == WORDS
    assert choices[-1]["finish_reason"] == "length"


@pytest.mark.parametrize(
    ("asked", "embeddings", "tokens"),
    [
        ("two words", 1, 2),
        (["one", "and two"], 2, 3),
        ([7, 8, 10**30], 1, 3),
        ([[7], [8, 9]], 2, 3),
    ],
)
async def test_embeddings(
    client: httpx.AsyncClient, asked: Any, embeddings: int, tokens: int
) -> None:
    bodies = [(await client.post("/v1/embeddings", json={"input": asked})).json() for _ in "ab"]
    assert bodies[0] == bodies[1]
    assert bodies[0]["usage"] == {"prompt_tokens": tokens, "total_tokens": tokens}
    assert [item["index"] for item in bodies[0]["data"]] == list(range(embeddings))
    assert all(-1 <= number <= 1 for item in bodies[0]["data"] for number in item["embedding"])


async def test_models_and_health(client: httpx.AsyncClient) -> None:
    [model] = (await client.get("/v1/models")).json()["data"]
    assert (model["id"], model["object"]) == ("llama", "model")
    assert (await client.get("/health")).status_code == 200


async def test_sleeping_and_waking() -> None:
    async with running(asleep=True) as (standin, client):
        assert repr(standin) == "<Standin 'llama' asleep, 0 in flight>"
        for path, sleeping in (("/wake_up", False), ("/sleep?level=1", True), ("/sleep", True)):
            assert (await client.post(path)).status_code == 200
            assert (await client.get("/is_sleeping")).json() == {"is_sleeping": sleeping}
            assert (await client.get("/health")).status_code == 200
        assert standin.engine.mistakes == 0


@pytest.mark.parametrize("endpoint", ["chat/completions", "completions", "embeddings"])
async def test_a_request_while_it_sleeps_is_a_mistake(endpoint: str) -> None:
    async with running(asleep=True) as (_, client):
        refused = await client.post(f"/v1/{endpoint}", json={})
        assert refused.status_code == 503
        assert refused.json()["error"]["message"] == "llama is asleep"
        stats = {"model": "llama", "sleeping": True, "in_flight": 0, "served": 0, "mistakes": 1}
        assert (await client.get("/stats")).json() == stats


async def test_a_sleep_during_a_request_is_a_mistake() -> None:
    async with running() as (standin, client):
        ask = chat(stream=True, rate=1e-9)
        async with client.stream("POST", "/v1/chat/completions", json=ask):
            assert standin.engine.in_flight == 1
            await client.post("/sleep?level=1")
        assert standin.engine.mistakes == 1


@pytest.mark.parametrize(
    "options", [{"rate": 1e-9}, {"tokens": 1 << 60}], ids=["between tokens", "while writing"]
)
async def test_a_client_that_leaves_ends_its_stream(options: dict[str, Any]) -> None:
    body = b'{"stream": true}'
    head = b"POST /v1/completions HTTP/1.1\r\ncontent-length: %d\r\n\r\n" % len(body)
    async with running(**options) as (standin, client):
        async with await trio.open_tcp_stream("127.0.0.1", standin.port) as stream:
            await stream.send_all(head + body)
            assert (await stream.receive_some()).startswith(b"HTTP/1.1 200 OK\r\n")
            assert standin.engine.in_flight == 1
        await idle(client)
        assert standin.engine.served == 0


async def test_wrong_requests_are_refused_and_the_connection_goes_on(
    client: httpx.AsyncClient,
) -> None:
    for method, path, body, status in (
        ("POST", "/v1/chat/completions", b"{", 400),
        ("POST", "/v1/chat/completions", b'{"max_tokens": 0}', 400),
        ("POST", "/v1/chat/completions", b'{"max_tokens": 1%s}' % (b"0" * 30), 400),
        ("POST", "/v1/completions", b'{"rate": -1}', 400),
        ("POST", "/v1/embeddings", b"[" * 100_000, 400),
        ("GET", "/v1/chat/completions", b"", 404),
        ("HEAD", "/nothing", b"", 404),
        ("POST", "/nothing", b"", 404),
    ):
        response = await client.request(method, path, content=body)
        assert response.status_code == status
        assert method == "HEAD" or response.json()["error"]["type"] == "standin_error"
    assert (await client.get("/stats")).json()["served"] == 0


async def exchange(standin: Standin, *sent: bytes) -> bytes:
    """All that comes back on one connection until the server closes it."""
    stream = await trio.open_tcp_stream("127.0.0.1", standin.port)
    async with stream:
        for data in sent:
            await stream.send_all(data)
        return b"".join([bytes(data) async for data in stream])


async def test_requests_in_a_row_on_one_connection() -> None:
    health = b"GET /health HTTP/1.1\r\nhost: x\r\n"
    async with running() as (standin, _):
        answers = await exchange(standin, health + b"\r\n" + health, b"connection: close\r\n\r\n")
        assert answers.count(b"HTTP/1.1 200 OK\r\n") == 2
        assert answers.count(b"connection: close\r\n") == 1


async def test_a_body_in_chunks() -> None:
    head = b"POST /v1/completions HTTP/1.1\r\nhost: x\r\nconnection: close\r\n"
    body = b'8\r\n{"prompt\r\na\r\n": "a b c"\r\n', b"1\r\n}\r\n0\r\n\r\n"
    async with running() as (standin, _):
        answer = await exchange(standin, head + b"transfer-encoding: chunked\r\n\r\n", *body)
        assert b'"prompt_tokens":3' in answer


async def test_a_request_to_upgrade_is_answered_without() -> None:
    upgrade = b"GET /health HTTP/1.1\r\nhost: x\r\nconnection: upgrade, close\r\nupgrade: h2c\r\n"
    async with running() as (standin, _):
        assert (await exchange(standin, upgrade + b"\r\n")).startswith(b"HTTP/1.1 200 OK")


async def test_what_is_not_http_is_cut_off() -> None:
    async with running() as (standin, client):
        assert await exchange(standin, b"\x16\x03\x01 hello\r\n\r\n") == b""
        assert (await client.get("/health")).status_code == 200


async def arrivals(standin: Standin, ask: dict[str, Any]) -> list[float]:
    """When each piece of an answer came, in seconds after the request."""
    ours, theirs = memory_stream_pair()
    body = json.dumps(ask).encode()
    began = trio.current_time()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(standin.serve_client, theirs)
        head = b"POST /v1/completions HTTP/1.1\r\nconnection: close\r\ncontent-length: %d\r\n\r\n"
        await ours.send_all(head % len(body) + body)
        return [round(trio.current_time() - began, 6) async for _ in ours]


async def test_a_stream_comes_at_its_rate(autojump_clock: MockClock) -> None:
    standin = Standin(Options(model="llama", rate=4, tokens=3), port=0)
    assert set(await arrivals(standin, {"stream": True})) == {0, 0.25, 0.5, 0.75}
    asked = {"stream": True, "rate": 0.5, "max_tokens": 2}
    assert set(await arrivals(standin, asked)) == {0, 2, 4}
    assert set(await arrivals(standin, {"stream": True, "rate": 0})) == {0}


async def test_a_whole_answer_comes_when_its_stream_would_end(autojump_clock: MockClock) -> None:
    standin = Standin(Options(model="llama", rate=4, tokens=3), port=0)
    assert await arrivals(standin, {}) == [0.75]


async def test_it_listens_where_it_is_told_to() -> None:
    async with running(host="localhost") as (standin, client):
        assert standin.url == f"http://localhost:{standin.port}"
        assert (await client.get("/health")).status_code == 200


# --- The command line ----------------------------------------------------------------------------


def run(*arguments: object) -> tuple[int, str]:
    """Exit code and output of a command, run in this process."""
    result = CliRunner().invoke(main, [str(argument) for argument in arguments])
    return result.exit_code, result.output


class Served:
    """A stand-in in a process of its own."""

    def __init__(self, folder: Path, *options: str) -> None:
        self.pid_path = folder / "run" / "llama.pid"
        self.process = subprocess.Popen(
            [*SERVE, f"--pidfile={self.pid_path}", *options],
            stdout=subprocess.PIPE,
            text=True,
        )
        assert self.process.stdout is not None
        said = self.process.stdout.readline()
        assert said.startswith("stand-in for llama on http://127.0.0.1:")
        self.port = int(said.rpartition(":")[2])

    def close(self) -> None:
        self.process.kill()
        self.process.communicate()


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Callable[..., Served]]:
    started: list[Served] = []

    def start(*options: str) -> Served:
        started.append(Served(tmp_path, *options))
        return started[-1]

    yield start
    for served in started:
        served.close()


def test_waiting_and_calling(start: Callable[..., Served]) -> None:
    port = start("--asleep").port
    wait = ("wait", "--port", port)
    call = ("call", "--port", port)
    assert run(*wait) == (0, "")
    sleeps = f"Error: 127.0.0.1:{port} is not ready after 0 s: it sleeps\n"
    assert run(*wait, "--awake", "--timeout", 0) == (1, sleeps)
    assert run(*call, "POST", "/wake_up") == (0, "{}\n")
    assert run(*wait, "--awake") == (0, "")
    assert "answers 404" in run(*wait, "--path", "/no", "--timeout", 0)[1]
    assert run(*call, "GET", "/is_sleeping") == (0, '{"is_sleeping":false}\n')
    code, output = run(*call, "GET", "/no")
    assert code == 1
    assert "No such endpoint: GET /no" in output
    assert output.endswith("\nError: GET /no answers 404\n")


def test_a_port_that_nobody_listens_on(free_port: int) -> None:
    for command in (("wait", "--timeout", 0), ("call", "GET", "/health")):
        code, output = run(*command, "--port", free_port)
        assert code == 1
        assert "refused" in output


def test_stopping_returns_when_the_process_has_ended_though_nobody_has_reaped_it(
    start: Callable[..., Served],
) -> None:
    served = start()
    assert run("stop", "--pidfile", served.pid_path) == (0, "")
    assert served.process.wait() == 0
    assert run("stop", "--pidfile", served.pid_path) == (0, "")


def test_stopping_kills_a_process_that_does_not_listen(start: Callable[..., Served]) -> None:
    served = start()
    served.process.send_signal(signal.SIGSTOP)
    assert run("stop", "--pidfile", served.pid_path, "--timeout", 0) == (0, "")
    assert served.process.wait() == -signal.SIGKILL


def test_stopping_spares_the_process_that_an_old_file_names(tmp_path: Path) -> None:
    path = tmp_path / "old.pid"
    path.write_text(f"{os.getpid()}\n")
    assert run("stop", "--pidfile", path) == (0, "")
    assert run("stop", "--pidfile", tmp_path / "none.pid") == (0, "")


def test_a_second_server_does_not_start(start: Callable[..., Served]) -> None:
    served = start()
    serve = ("serve", "--model", "llama")
    held = f"Error: {served.pid_path} is held: the server runs already\n"
    assert run(*serve, "--port", 0, "--pidfile", served.pid_path) == (1, held)
    code, output = run(*serve, "--port", served.port)
    assert (code, len(output.splitlines())) == (1, 1)
    assert "in use" in output


def test_a_server_may_end_with_the_holder_of_a_file(
    start: Callable[..., Served], tmp_path: Path
) -> None:
    owner = tmp_path / "owner.pid"
    with hold(owner):
        served = start(f"--while-held={owner}")
        assert run("wait", "--port", served.port) == (0, "")
        assert served.process.poll() is None
    assert served.process.wait(timeout=20) == 0


def test_a_server_does_not_outlive_a_holder_that_is_gone_already(
    start: Callable[..., Served], tmp_path: Path
) -> None:
    served = start(f"--while-held={tmp_path / 'none.pid'}")
    assert served.process.wait(timeout=20) == 0


# --- The demo's hooks ----------------------------------------------------------------------------


@pytest.fixture
def free_port() -> int:
    return processes.free_port()


class Demo:
    """A model of the demo's config, its hooks run as llmux runs them, on a port of the test's."""

    def __init__(self, model: str, folder: Path, port: int) -> None:
        self.folder = folder
        self.url = f"http://127.0.0.1:{port}"
        self.hooks = yaml.safe_load((ROOT / "llmux.yaml").read_text())["models"][model]
        self.environment = {
            **os.environ,
            "PYTHON": sys.executable,
            "PYTHONPATH": str(ROOT),
            "LLMUX_MODEL": model,
            "LLMUX_PORT": str(port),
        }

    def run(self, *hooks: str) -> list[int]:
        """The hooks' exit codes."""
        return [self._run(self.hooks[hook]) for hook in hooks]

    def _run(self, script: str) -> int:
        # Into a file: the server that a hook leaves behind would hold a pipe open.
        with (self.folder / "log").open("a") as log:
            return subprocess.run(
                ["sh", "-c", script.replace("./hooks", str(ROOT / "hooks"))],
                cwd=self.folder,
                env=self.environment,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                timeout=60,
                check=False,
            ).returncode

    def ask(self, path: str) -> Any:
        return httpx.get(f"{self.url}{path}", trust_env=False).json()

    def stop(self) -> None:
        assert self._run("./hooks/demo/sleep.sh") == 0


@pytest.fixture
def start_demo(tmp_path: Path, free_port: int) -> Iterator[Callable[[str], Demo]]:
    """Makes a model of the demo, whose server is stopped at the end."""
    made: list[Demo] = []

    def make(model: str) -> Demo:
        made.append(Demo(model, tmp_path, free_port))
        return made[-1]

    yield make
    for demo in made:
        demo.stop()


def test_the_demos_model_that_is_a_process(start_demo: Callable[[str], Demo]) -> None:
    demo = start_demo("llama")
    assert demo.run("alive", "sleep", "wake", "alive", "wake", "alive") == [1, 0, 0, 0, 0, 0]
    assert demo.ask("/v1/models")["data"][0]["id"] == "llama"
    assert demo.run("sleep", "alive", "sleep") == [0, 1, 0]
    with pytest.raises(httpx.ConnectError):
        demo.ask("/health")


@pytest.mark.slow
def test_the_demos_model_that_keeps_running(start_demo: Callable[[str], Demo]) -> None:
    demo = start_demo("mistral")
    assert demo.run("alive", "sleep", "wake", "alive", "wake") == [1, 0, 0, 0, 0]
    assert demo.run("sleep", "alive", "sleep") == [0, 1, 0]
    assert demo.ask("/stats")["sleeping"] is True
    assert demo.run("wake", "alive") == [0, 0]
    assert demo.ask("/stats")["mistakes"] == 0


# ---- Other APIs ----


async def test_anthropics_messages(client: httpx.AsyncClient) -> None:
    answer = (await client.post("/v1/messages", json=chat(max_tokens=9))).json()
    assert answer["content"] == [{"type": "text", "text": WORDS}]
    assert (answer["type"], answer["model"], answer["stop_reason"]) == (
        "message", "llama", "max_tokens",
    )  # fmt: skip
    assert answer["usage"] == {"input_tokens": 3, "output_tokens": 9}


async def test_anthropics_messages_as_a_stream(client: httpx.AsyncClient) -> None:
    response = await client.post("/v1/messages", json=chat(max_tokens=2, stream=True))
    assert response.headers["content-type"] == "text/event-stream"
    *parts, rest = response.text.split("\n\n")
    assert rest == ""
    payloads = []
    for part in parts:
        name, data = part.split("\n")
        payloads.append(json.loads(data.removeprefix("data: ")))
        assert name == f"event: {payloads[-1]['type']}"
    assert [payload["type"] for payload in payloads] == [
        "message_start", "content_block_start", "ping", "content_block_delta",
        "content_block_delta", "content_block_stop", "message_delta", "message_stop",
    ]  # fmt: skip
    assert [p["delta"]["text"] for p in payloads[3:5]] == ["llama", " is"]
    assert payloads[0]["message"]["content"] == []
    assert payloads[6]["usage"] == {"output_tokens": 2}


@pytest.mark.parametrize(
    ("path", "question", "said"),
    [
        ("/api/chat", {"messages": [{"content": "Who?"}]}, lambda p: p["message"]["content"]),
        ("/api/generate", {"prompt": "Who?"}, lambda p: p["response"]),
    ],
)
async def test_ollamas_api(
    client: httpx.AsyncClient, path: str, question: Any, said: Callable[[Any], str]
) -> None:
    question = question | {"model": "llama", "options": {"num_predict": 9}}
    whole = (await client.post(path, json=question | {"stream": False})).json()
    assert (said(whole), whole["done"], whole["done_reason"]) == (WORDS, True, "length")
    response = await client.post(path, json=question)  # a stream, unless told otherwise
    assert response.headers["content-type"] == "application/x-ndjson"
    lines = [json.loads(line) for line in response.text.splitlines()]
    assert "".join(map(said, lines)) == WORDS
    assert [line["done"] for line in lines] == [False] * 9 + [True]
    assert (lines[-1]["prompt_eval_count"], lines[-1]["eval_count"]) == (1, 9)


async def test_a_transcription_tells_what_was_heard(client: httpx.AsyncClient) -> None:
    sound = bytes(range(256)) * 5 + b"\r\n\n\r--"  # whatever a parser might trip over
    answer = await client.post(
        "/v1/audio/transcriptions", data={"model": "whisper-1"}, files={"file": ("a.wav", sound)}
    )
    digest = hashlib.sha256(sound).hexdigest()
    assert answer.json() == {"text": f"whisper-1 heard {len(sound)} bytes, sha256 {digest}"}


@pytest.mark.parametrize("body", [{"data": {"model": "x"}}, {"json": {}}, {}])
async def test_a_transcription_without_a_file(client: httpx.AsyncClient, body: Any) -> None:
    assert (await client.post("/v1/audio/transcriptions", **body)).status_code == 400
