"""A small model server without a model: it speaks OpenAI's API, sleeps and wakes as vLLM does.

Anthropic's messages, Ollama's chat and generate, and transcriptions are there for their clients.

It lets anybody try, test and measure llmux without a GPU, and it notices what must never happen: a
request while it sleeps, and a sleep during a request. `GET /stats` tells its counters.
"""

from __future__ import annotations

import fcntl
import hashlib
import itertools
import os
import signal
import time
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager, nullcontext, suppress
from dataclasses import dataclass
from functools import partial
from http import HTTPStatus
from pathlib import Path
from typing import Annotated, Any, TypeVar

import click
import httptools
import httpx
import msgspec
import trio
from msgspec import Meta

from llmux.standin.dialects import (
    ANTHROPIC,
    OLLAMA_CHAT,
    OLLAMA_GENERATE,
    Dialect,
    Words,
    form_fields,
    made_up,
)

HOST = "127.0.0.1"

T = TypeVar("T")


@dataclass(frozen=True, kw_only=True)
class Options:
    """What a stand-in is started with.

    Attributes:
        model: The name that it answers with.
        host: The address that it listens on.
        port: Where it listens; 0 lets the system pick one.
        rate: Tokens per second of an answer; 0 for as fast as the client reads.
        tokens: Length of an answer whose request does not say `max_tokens`.
        wake_s: How long `/wake_up` takes.
        sleep_s: How long `/sleep` takes.
        asleep: Whether it sleeps from the start.
    """

    model: str
    host: str = HOST
    port: int = 0
    rate: float = 0
    tokens: int = 32
    wake_s: float = 0
    sleep_s: float = 0
    asleep: bool = False


class _Refused(Exception):
    """A request that gets an error for an answer."""

    def __init__(self, status: int, message: str) -> None:
        super().__init__(message)
        self.status = status


# --- HTTP/1.1 ------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class _Request:
    method: str
    path: str
    body: bytes
    content_type: str
    keep_alive: bool

    def decode(self, kind: type[T]) -> T:
        """The body as JSON of the given shape."""
        try:
            return msgspec.json.decode(self.body, type=kind)
        except (msgspec.DecodeError, RecursionError) as error:
            raise _Refused(400, f"Cannot read the body: {error}") from None


class _Parser:
    """Turns a connection's bytes into requests; the `on_` methods are httptools' callbacks."""

    def __init__(self) -> None:
        self._parser = httptools.HttpRequestParser(self)
        self._finished: list[_Request] = []

    def feed(self, data: bytes | bytearray) -> list[_Request]:
        """The requests that end within this data.

        Raises:
            httptools.HttpParserError: This is not HTTP.
        """
        # Whoever asks to upgrade is answered as if it had not (RFC 9110 section 7.8).
        with suppress(httptools.HttpParserUpgrade):
            self._parser.feed_data(data)
        finished, self._finished = self._finished, []
        return finished

    def on_message_begin(self) -> None:
        self._url = b""
        self._content_type = b""
        self._body = bytearray()

    def on_url(self, url: bytes) -> None:
        self._url += url

    def on_header(self, name: bytes, value: bytes) -> None:
        if name.lower() == b"content-type":
            self._content_type = value

    def on_body(self, body: bytes) -> None:
        self._body += body

    def on_message_complete(self) -> None:
        self._finished.append(
            _Request(
                method=self._parser.get_method().decode(),
                path=self._url.decode("latin-1").partition("?")[0],
                body=bytes(self._body),
                content_type=self._content_type.decode("latin-1"),
                keep_alive=self._parser.should_keep_alive(),
            )
        )


async def _read_requests(
    stream: trio.abc.ReceiveStream,
    requests: trio.MemorySendChannel[_Request],
    client: trio.CancelScope,
) -> None:
    """Read requests until the client leaves, which ends the answer that it was getting."""
    parser = _Parser()
    async for data in stream:
        for request in parser.feed(data):
            await requests.send(request)
    client.cancel()


class _Answer:
    """Writes the answer to one request."""

    def __init__(self, stream: trio.abc.SendStream, request: _Request) -> None:
        self._stream = stream
        self._request = request

    def _head(self, status: int, **fields: str) -> bytes:
        if not self._request.keep_alive:
            fields["connection"] = "close"
        lines = [f"{name.replace('_', '-')}: {value}\r\n" for name, value in fields.items()]
        return f"HTTP/1.1 {status} {HTTPStatus(status).phrase}\r\n{''.join(lines)}\r\n".encode()

    async def json(self, payload: object, status: int = 200) -> None:
        """Write all of it."""
        body = msgspec.json.encode(payload)
        head = self._head(status, content_type="application/json", content_length=str(len(body)))
        # What answers a HEAD tells of a body and has none (RFC 9110 section 9.3.2).
        await self._stream.send_all(head if self._request.method == "HEAD" else head + body)

    async def begin_stream(self, content_type: str) -> None:
        """Begin a body that comes piece by piece."""
        await self._stream.send_all(
            self._head(200, content_type=content_type, transfer_encoding="chunked")
        )

    async def piece(self, data: bytes) -> None:
        """Write one piece of it."""
        if data:  # an empty chunk would be its end
            await self._stream.send_all(_chunk(data))

    async def end_stream(self, data: bytes) -> None:
        """Write the last piece, and with it the end of the body: nobody sees one alone."""
        await self._stream.send_all(_chunk(data) + b"0\r\n\r\n")

    async def event(self, payload: object) -> None:
        """Write one event of a stream."""
        await self.piece(_event(msgspec.json.encode(payload)))


def _event(data: bytes) -> bytes:
    return b"data: %b\n\n" % data


def _chunk(data: bytes) -> bytes:
    return b"%x\r\n%b\r\n" % (len(data), data)


# --- What is asked -------------------------------------------------------------------------------


class _Part(msgspec.Struct):
    text: str = ""


class _Message(msgspec.Struct):
    content: str | list[_Part] | None = None


class _StreamOptions(msgspec.Struct):
    include_usage: bool = False


_Text = str | list[str | int | list[int]]
"""What completions and embeddings take: a text, several, or token ids."""

_Rate = Annotated[float, Meta(ge=0)]
_Count = Annotated[int, Meta(ge=1, le=1 << 31)]


class _Ask(msgspec.Struct):
    """A request for words. Fields that make no difference here are ignored."""

    messages: list[_Message] = []
    prompt: _Text = ""
    max_tokens: _Count | None = None
    max_completion_tokens: _Count | None = None
    stream: bool = False
    stream_options: _StreamOptions | None = None
    rate: _Rate | None = None


class _OllamaOptions(msgspec.Struct):
    num_predict: _Count | None = None


class _OllamaAsk(_Ask):
    """The same in Ollama's words: it streams unless told otherwise."""

    stream: bool = True
    options: _OllamaOptions | None = None

    def __post_init__(self) -> None:
        if self.options is not None:
            self.max_tokens = self.options.num_predict


class _EmbeddingAsk(msgspec.Struct):
    input: _Text

    def texts(self) -> list[Any]:
        """What to embed, one by one: a list of numbers is one text."""
        several = isinstance(self.input, list) and not any(isinstance(i, int) for i in self.input)
        return list(self.input) if several else [self.input]


def _count_tokens(text: object) -> int:
    """Every word is a token, and so is every token id."""
    match text:
        case str():
            return len(text.split())
        case list():
            return sum(map(_count_tokens, text))
        case _Message(content=inner) | _Part(text=inner):
            return _count_tokens(inner)
        case _:
            return 0 if text is None else 1


# --- What is answered ----------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class _Shape:
    """How one endpoint words an answer.

    Attributes:
        id_prefix: What its ids begin with.
        kind: The `object` of an answer.
        part_kind: The `object` of a part of a streamed answer.
        opening: The choice that opens a stream before there is any text, or None.
        choice: The choice that holds all the text.
        part: The choice that holds a part of the text; none of it in the last one.
    """

    id_prefix: str
    kind: str
    part_kind: str
    opening: dict[str, Any] | None
    choice: Callable[[str], dict[str, Any]]
    part: Callable[[str], dict[str, Any]]


_CHAT = _Shape(
    id_prefix="chatcmpl",
    kind="chat.completion",
    part_kind="chat.completion.chunk",
    opening={"delta": {"role": "assistant", "content": ""}},
    choice=lambda text: {"message": {"role": "assistant", "content": text}},
    part=lambda text: {"delta": {"content": text} if text else {}},
)

_COMPLETION = _Shape(
    id_prefix="cmpl",
    kind="text_completion",
    part_kind="text_completion",
    opening=None,
    choice=lambda text: {"text": text},
    part=lambda text: {"text": text},
)


class _Reply:
    """The answer to one request for words, as a whole or as a stream."""

    def __init__(
        self, ask: _Ask, shape: _Shape, options: Options, *, rate: float, number: int
    ) -> None:
        limit = ask.max_completion_tokens or ask.max_tokens
        self._shape = shape
        self._model = options.model
        self._rate = rate
        self._count = limit or options.tokens
        self._finish_reason = "length" if limit else "stop"
        self._prompt_count = _count_tokens(ask.messages) + _count_tokens(ask.prompt)
        self._with_usage = ask.stream_options is not None and ask.stream_options.include_usage
        self._envelope = {
            "id": f"{shape.id_prefix}-{number}",
            "created": int(time.time()),
            "model": options.model,
        }

    async def write_whole(self, answer: _Answer) -> None:
        """Answer at once, when a stream would have ended."""
        await _wait_for_token(self._rate, self._count, trio.current_time())
        text = "".join(made_up(self._model, self._count))
        choice = self._choice(self._shape.choice(text), self._finish_reason)
        await answer.json(
            {"object": self._shape.kind, **self._envelope, "choices": [choice], "usage": self.usage}
        )

    async def write_stream(self, answer: _Answer) -> None:
        """Answer token by token."""
        await answer.begin_stream("text/event-stream")
        began = trio.current_time()
        if self._shape.opening is not None:
            await answer.event(self._part([self._choice(self._shape.opening)]))
        for number, token in enumerate(made_up(self._model, self._count), 1):
            await _wait_for_token(self._rate, number, began)
            await answer.event(self._part([self._choice(self._shape.part(token))]))
        last = self._choice(self._shape.part(""), self._finish_reason)
        await answer.event(self._part([last]))
        if self._with_usage:
            await answer.event(self._part([]) | {"usage": self.usage})
        await answer.end_stream(_event(b"[DONE]"))

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
        part = {"object": self._shape.part_kind, **self._envelope, "choices": choices}
        return part | {"usage": None} if self._with_usage else part


async def _wait_for_token(rate: float, number: int, began: float) -> None:
    """Wait until the token is due; a late one does not delay those after it."""
    if rate:
        await trio.sleep_until(began + number / rate)


async def _write_whole(answer: _Answer, dialect: Dialect, words: Words, rate: float) -> None:
    """Answer in another API's words, when a stream would have ended."""
    await _wait_for_token(rate, words.count, trio.current_time())
    await answer.json(dialect.whole(words))


async def _write_stream(answer: _Answer, dialect: Dialect, words: Words, rate: float) -> None:
    """Answer in another API's words, token by token."""
    await answer.begin_stream(dialect.stream_type)
    began = trio.current_time()
    await answer.piece(dialect.opening(words))
    for number, token in enumerate(words.tokens(), 1):
        await _wait_for_token(rate, number, began)
        await answer.piece(dialect.part(words, token))
    await answer.end_stream(dialect.closing(words))


def _embedding(text: object) -> list[float]:
    """Eight numbers from -1 to 1, the same every time."""
    return [byte / 127.5 - 1 for byte in hashlib.sha256(repr(text).encode()).digest()[:8]]


# --- The server ----------------------------------------------------------------------------------

_Endpoint = Callable[[_Request, _Answer], Awaitable[None]]


class Standin:
    """A running stand-in: its state, its counters and its endpoints.

    Attributes:
        options: What it was started with.
        port: Where it listens.
        asleep: Whether it would refuse a request.
        in_flight: Requests that it is answering.
        served: Requests that it has answered to the end.
        mistakes: Requests that came while it slept, and sleeps that came during a request. vLLM's
            engine may not survive the latter.
    """

    def __init__(self, options: Options, port: int) -> None:
        self.options = options
        self.port = port
        self.asleep = options.asleep
        self.in_flight = 0
        self.served = 0
        self.mistakes = 0
        self._numbers = itertools.count(1)
        self._endpoints: dict[tuple[str, str], _Endpoint] = {
            ("POST", "/v1/chat/completions"): partial(self._complete, _CHAT),
            ("POST", "/v1/completions"): partial(self._complete, _COMPLETION),
            ("POST", "/v1/embeddings"): self._embed,
            ("POST", "/v1/audio/transcriptions"): self._transcribe,
            ("POST", "/v1/messages"): partial(self._speak, ANTHROPIC, _Ask),
            ("POST", "/api/chat"): partial(self._speak, OLLAMA_CHAT, _OllamaAsk),
            ("POST", "/api/generate"): partial(self._speak, OLLAMA_GENERATE, _OllamaAsk),
            ("GET", "/v1/models"): self._list_models,
            ("POST", "/sleep"): self._sleep,
            ("POST", "/wake_up"): self._wake_up,
            ("GET", "/is_sleeping"): self._is_sleeping,
            ("GET", "/health"): self._health,
            ("GET", "/stats"): self._stats,
        }

    def __repr__(self) -> str:
        state = "asleep" if self.asleep else "awake"
        return f"<Standin {self.options.model!r} {state}, {self.in_flight} in flight>"

    @property
    def url(self) -> str:
        """Where it answers, without a slash at the end."""
        return f"http://{self.options.host}:{self.port}"

    async def serve_client(self, stream: trio.abc.Stream) -> None:
        """Answer a connection's requests one by one until either side closes it."""
        received, requests = trio.open_memory_channel[_Request](0)
        try:
            async with stream, trio.open_nursery() as nursery:
                nursery.start_soon(_read_requests, stream, received, nursery.cancel_scope)
                async for request in requests:
                    await self._answer(request, _Answer(stream, request))
                    if not request.keep_alive:
                        break
                nursery.cancel_scope.cancel()
        except* (trio.BrokenResourceError, httptools.HttpParserError):
            pass  # the client is gone or does not speak HTTP: nobody to tell

    async def _answer(self, request: _Request, answer: _Answer) -> None:
        endpoint = self._endpoints.get((request.method, request.path), self._refuse)
        try:
            await endpoint(request, answer)
        except _Refused as refused:
            error = {"message": str(refused), "type": "standin_error", "param": None, "code": None}
            await answer.json({"error": error}, refused.status)

    @contextmanager
    def _serving(self) -> Iterator[None]:
        """Count a request for the model."""
        if self.asleep:
            self.mistakes += 1
            raise _Refused(503, f"{self.options.model} is asleep")
        self.in_flight += 1
        try:
            yield
            self.served += 1
        finally:
            self.in_flight -= 1

    async def _complete(self, shape: _Shape, request: _Request, answer: _Answer) -> None:
        with self._serving():
            ask = request.decode(_Ask)
            rate = self.options.rate if ask.rate is None else ask.rate
            reply = _Reply(ask, shape, self.options, rate=rate, number=next(self._numbers))
            await (reply.write_stream(answer) if ask.stream else reply.write_whole(answer))

    async def _speak(
        self, dialect: Dialect, kind: type[_Ask], request: _Request, answer: _Answer
    ) -> None:
        with self._serving():
            ask = request.decode(kind)
            rate = self.options.rate if ask.rate is None else ask.rate
            words = Words(
                model=self.options.model,
                count=ask.max_tokens or self.options.tokens,
                is_cut=ask.max_tokens is not None,
                prompt_count=_count_tokens(ask.messages) + _count_tokens(ask.prompt),
                number=next(self._numbers),
            )
            write = _write_stream if ask.stream else _write_whole
            await write(answer, dialect, words, rate)

    async def _transcribe(self, request: _Request, answer: _Answer) -> None:
        with self._serving():
            fields = form_fields(request.content_type, request.body)
            if not {"file", "model"} <= fields.keys():
                raise _Refused(400, "Expected a form with the fields 'file' and 'model'")
            name, file = fields["model"].decode(errors="replace"), fields["file"]
            digest = hashlib.sha256(file).hexdigest()
            await answer.json({"text": f"{name} heard {len(file)} bytes, sha256 {digest}"})

    async def _embed(self, request: _Request, answer: _Answer) -> None:
        with self._serving():
            texts = request.decode(_EmbeddingAsk).texts()
            data = [
                {"object": "embedding", "index": index, "embedding": _embedding(text)}
                for index, text in enumerate(texts)
            ]
            count = _count_tokens(texts)
            usage = {"prompt_tokens": count, "total_tokens": count}
            await answer.json(
                {"object": "list", "data": data, "model": self.options.model, "usage": usage}
            )

    async def _list_models(self, _: _Request, answer: _Answer) -> None:
        model = {"id": self.options.model, "object": "model", "created": 0, "owned_by": "standin"}
        await answer.json({"object": "list", "data": [model]})

    async def _sleep(self, _: _Request, answer: _Answer) -> None:
        if self.in_flight:
            self.mistakes += 1
        if not self.asleep:
            self.asleep = True
            await trio.sleep(self.options.sleep_s)
        await answer.json({})

    async def _wake_up(self, _: _Request, answer: _Answer) -> None:
        if self.asleep:
            await trio.sleep(self.options.wake_s)
            self.asleep = False
        await answer.json({})

    async def _is_sleeping(self, _: _Request, answer: _Answer) -> None:
        await answer.json({"is_sleeping": self.asleep})

    async def _health(self, _: _Request, answer: _Answer) -> None:
        await answer.json({})  # also while asleep, as with vLLM

    async def _stats(self, _: _Request, answer: _Answer) -> None:
        await answer.json(
            {
                "model": self.options.model,
                "sleeping": self.asleep,
                "in_flight": self.in_flight,
                "served": self.served,
                "mistakes": self.mistakes,
            }
        )

    async def _refuse(self, request: _Request, _: _Answer) -> None:
        raise _Refused(404, f"No such endpoint: {request.method} {request.path}")


async def serve(
    options: Options, *, task_status: trio.TaskStatus[Standin] = trio.TASK_STATUS_IGNORED
) -> None:
    """Serve until cancelled.

    Args:
        options: What to serve.
        task_status: Gets the stand-in once it can be reached.

    Raises:
        OSError: The address or port cannot be listened on.
    """
    listeners = await trio.open_tcp_listeners(options.port, host=options.host)
    standin = Standin(options, port=listeners[0].socket.getsockname()[1])
    task_status.started(standin)
    await trio.serve_listeners(standin.serve_client, listeners)


# --- The command line ----------------------------------------------------------------------------


@click.group()
def main() -> None:
    """A stand-in for a model server, and what hooks need to drive one (or a real vLLM)."""


_port = click.option("--port", type=click.IntRange(0, 65535), required=True)
_file = click.Path(path_type=Path, dir_okay=False)
_seconds = click.FloatRange(min=0)


@main.command("serve")
@_port
@click.option("--host", default=HOST, help="The address to listen on.")
@click.option("--model", required=True, help="The name that it answers with.")
@click.option("--rate", type=click.FloatRange(min=0), default=0, help="Tokens/s; 0: no pauses.")
@click.option("--tokens", type=click.IntRange(min=1), default=32, help="Length of an answer.")
@click.option("--wake-secs", "wake_s", type=_seconds, default=0, help="How long /wake_up takes.")
@click.option("--sleep-secs", "sleep_s", type=_seconds, default=0, help="How long /sleep takes.")
@click.option("--asleep", is_flag=True, help="Sleep from the start.")
@click.option("--pidfile", type=_file, help="What `stop` needs.")
def serve_command(pidfile: Path | None, **options: Any) -> None:
    """Serve until SIGTERM or SIGINT."""
    with _pid_file(pidfile) if pidfile else nullcontext():
        try:
            trio.run(_serve_until_signal, Options(**options))
        except* OSError as errors:
            raise click.ClickException(str(errors.exceptions[0])) from None


async def _serve_until_signal(options: Options) -> None:
    with trio.open_signal_receiver(signal.SIGTERM, signal.SIGINT) as signals:
        async with trio.open_nursery() as nursery:
            standin: Standin = await nursery.start(serve, options)
            click.echo(f"stand-in for {options.model} on {standin.url}")
            await anext(signals)
            nursery.cancel_scope.cancel()


@contextmanager
def _pid_file(path: Path) -> Iterator[None]:
    """Hold the file, with this process's id in it.

    The lock on it ends with the process, reaped or not, so a file without one is nobody's, and the
    id in it is never taken for that of another process.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a+") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise click.ClickException(f"{path} is held: the server runs already") from None
        file.truncate(0)
        file.write(f"{os.getpid()}\n")
        file.flush()
        yield


def _holder(path: Path) -> int | None:
    """The process that holds the file, if any."""
    try:
        with path.open() as file:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except FileNotFoundError:
        return None
    except BlockingIOError:
        return int(path.read_text())
    return None


@main.command("stop")
@click.option("--pidfile", type=_file, required=True)
@click.option("--timeout", "patience_s", type=_seconds, default=10, help="SIGKILL comes after it.")
def stop_command(pidfile: Path, patience_s: float) -> None:
    """Stop the server that holds the pid file, if there is one."""
    for number, bound_s in ((signal.SIGTERM, patience_s), (signal.SIGKILL, 5.0)):
        holder = _holder(pidfile)
        if holder is not None:
            with suppress(ProcessLookupError):
                os.kill(holder, number)
        if _poll(lambda: _holder(pidfile), bound_s) is None:
            return
    raise click.ClickException(f"the process that holds {pidfile} cannot be stopped")


def _poll(obstacle: Callable[[], T | None], patience_s: float) -> T | None:
    """Wait until nothing is in the way; what still is when the time is over."""
    deadline = time.monotonic() + patience_s
    while (found := obstacle()) is not None and time.monotonic() < deadline:
        time.sleep(0.05)
    return found


def _client(port: int, timeout_s: float | None) -> httpx.Client:
    # Proxies of the environment are not for the loopback interface, and it needs no certificates.
    return httpx.Client(
        base_url=f"http://{HOST}:{port}",
        timeout=timeout_s,
        trust_env=False,
        verify=False,  # noqa: S501
    )


@main.command("wait")
@_port
@click.option("--timeout", "patience_s", type=_seconds, default=30, help="0: look once.")
@click.option("--path", default="/health", help="What must answer with 200.")
@click.option("--awake", is_flag=True, help="Also wait until /is_sleeping says false.")
def wait_command(port: int, patience_s: float, path: str, awake: bool) -> None:
    """Wait until a server is ready."""
    with _client(port, timeout_s=5) as client:
        obstacle = _poll(lambda: _not_ready(client, path, awake=awake), patience_s)
    if obstacle is not None:
        raise click.ClickException(f"{HOST}:{port} is not ready after {patience_s:g} s: {obstacle}")


def _not_ready(client: httpx.Client, path: str, *, awake: bool) -> str | None:
    try:
        status = client.get(path).status_code
        if status != 200:
            return f"{path} answers {status}"
        if awake and client.get("/is_sleeping").json()["is_sleeping"]:
            return "it sleeps"
    except httpx.TransportError as error:
        return str(error)
    return None


@main.command("call")
@_port
@click.argument("method")
@click.argument("path")
def call_command(port: int, method: str, path: str) -> None:
    """Send a request and print what it answers; fails unless with 2xx."""
    try:
        with _client(port, timeout_s=None) as client:  # a wake takes what it takes
            response = client.request(method, path)
    except httpx.TransportError as error:
        raise click.ClickException(f"{HOST}:{port}: {error}") from None
    click.echo(response.text)
    if not response.is_success:
        raise click.ClickException(f"{method} {path} answers {response.status_code}")
