"""The stand-in's server: its endpoints and its connections.

It speaks OpenAI's API, and as much of Anthropic's and Ollama's as their clients need. `/sleep`,
`/wake_up` and `/is_sleeping` are vLLM's (its development mode); `GET /stats` gives the counters.
"""

from __future__ import annotations

import hashlib
import itertools
from collections.abc import Awaitable, Callable
from functools import partial

import httptools
import trio

from llmux.standin.dialects import ANTHROPIC, OLLAMA_CHAT, OLLAMA_GENERATE, Dialect, Reply
from llmux.standin.engine import Engine
from llmux.standin.http1 import HttpError, Request, Response, read_requests
from llmux.standin.openai import CHAT, COMPLETION, Completion, Format, embedding
from llmux.standin.options import Options
from llmux.standin.prompts import (
    EmbeddingInput,
    OllamaPrompt,
    Prompt,
    count_tokens,
    form_fields,
)

_Endpoint = Callable[[Request, Response], Awaitable[None]]


class Standin:
    """A running stand-in.

    Attributes:
        options: Its settings.
        port: Port that it listens on.
        engine: State and counters of its model.
    """

    def __init__(self, options: Options, port: int) -> None:
        self.options = options
        self.port = port
        self.engine = Engine(options)
        self._numbers = itertools.count(1)
        self._endpoints: dict[tuple[str, str], _Endpoint] = {
            ("POST", "/v1/chat/completions"): partial(self._complete, CHAT),
            ("POST", "/v1/completions"): partial(self._complete, COMPLETION),
            ("POST", "/v1/embeddings"): self._embed,
            ("POST", "/v1/audio/transcriptions"): self._transcribe,
            ("POST", "/v1/messages"): partial(self._speak, ANTHROPIC, Prompt),
            ("POST", "/api/chat"): partial(self._speak, OLLAMA_CHAT, OllamaPrompt),
            ("POST", "/api/generate"): partial(self._speak, OLLAMA_GENERATE, OllamaPrompt),
            ("GET", "/v1/models"): self._list_models,
            ("POST", "/sleep"): self._sleep,
            ("POST", "/wake_up"): self._wake_up,
            ("GET", "/is_sleeping"): self._is_sleeping,
            ("GET", "/health"): self._health,
            ("GET", "/stats"): self._stats,
        }

    def __repr__(self) -> str:
        state = "asleep" if self.engine.asleep else "awake"
        return f"<Standin {self.options.model!r} {state}, {self.engine.in_flight} in flight>"

    @property
    def url(self) -> str:
        """Base URL, without a slash at the end."""
        return f"http://{self.options.host}:{self.port}"

    async def serve_client(self, stream: trio.abc.Stream) -> None:
        """Answer a connection's requests one by one until either side closes it."""
        received, requests = trio.open_memory_channel[Request](0)
        try:
            async with stream, trio.open_nursery() as nursery:
                nursery.start_soon(read_requests, stream, received, nursery.cancel_scope)
                async for request in requests:
                    await self._answer(request, Response(stream, request))
                    if not request.keep_alive:
                        break
                nursery.cancel_scope.cancel()
        except* (trio.BrokenResourceError, httptools.HttpParserError):
            pass  # the client is gone or does not speak HTTP: nobody to tell

    async def _answer(self, request: Request, response: Response) -> None:
        endpoint = self._endpoints.get((request.method, request.path), self._refuse)
        try:
            await endpoint(request, response)
        except HttpError as error:
            body = {"message": str(error), "type": "standin_error", "param": None, "code": None}
            await response.json({"error": body}, error.status)

    def _rate(self, prompt: Prompt) -> float:
        return self.options.rate if prompt.rate is None else prompt.rate

    async def _complete(self, form: Format, request: Request, response: Response) -> None:
        with self.engine.serving():
            prompt = request.decode(Prompt)
            completion = Completion(
                prompt,
                form,
                self.options,
                rate=self._rate(prompt),
                number=next(self._numbers),
            )
            write = completion.write_stream if prompt.stream else completion.write_whole
            await write(response)

    async def _speak(
        self, dialect: Dialect, kind: type[Prompt], request: Request, response: Response
    ) -> None:
        with self.engine.serving():
            prompt = request.decode(kind)
            reply = Reply(
                model=self.options.model,
                count=prompt.max_tokens or self.options.tokens,
                is_truncated=prompt.max_tokens is not None,
                prompt_count=prompt.token_count,
                number=next(self._numbers),
            )
            write = dialect.write_stream if prompt.stream else dialect.write_whole
            await write(response, reply, self._rate(prompt))

    async def _transcribe(self, request: Request, response: Response) -> None:
        with self.engine.serving():
            fields = form_fields(request.content_type, request.body)
            if not {"file", "model"} <= fields.keys():
                raise HttpError(400, "Expected a form with the fields 'file' and 'model'")
            name, file = fields["model"].decode(errors="replace"), fields["file"]
            digest = hashlib.sha256(file).hexdigest()
            await response.json({"text": f"{name} heard {len(file)} bytes, sha256 {digest}"})

    async def _embed(self, request: Request, response: Response) -> None:
        with self.engine.serving():
            texts = request.decode(EmbeddingInput).texts()
            data = [
                {"object": "embedding", "index": index, "embedding": embedding(text)}
                for index, text in enumerate(texts)
            ]
            count = count_tokens(texts)
            usage = {"prompt_tokens": count, "total_tokens": count}
            await response.json(
                {"object": "list", "data": data, "model": self.options.model, "usage": usage}
            )

    async def _list_models(self, _: Request, response: Response) -> None:
        model = {"id": self.options.model, "object": "model", "created": 0, "owned_by": "standin"}
        await response.json({"object": "list", "data": [model]})

    async def _sleep(self, _: Request, response: Response) -> None:
        await self.engine.sleep()
        await response.json({})

    async def _wake_up(self, _: Request, response: Response) -> None:
        await self.engine.wake()
        await response.json({})

    async def _is_sleeping(self, _: Request, response: Response) -> None:
        await response.json({"is_sleeping": self.engine.asleep})

    async def _health(self, _: Request, response: Response) -> None:
        await response.json({})  # also while asleep, as with vLLM

    async def _stats(self, _: Request, response: Response) -> None:
        await response.json(self.engine.stats())

    async def _refuse(self, request: Request, _: Response) -> None:
        raise HttpError(404, f"No such endpoint: {request.method} {request.path}")


async def serve(
    options: Options, *, task_status: trio.TaskStatus[Standin] = trio.TASK_STATUS_IGNORED
) -> None:
    """Serve until cancelled.

    Args:
        options: Settings of the stand-in.
        task_status: Gets the stand-in once it listens.

    Raises:
        OSError: The address or port cannot be listened on.
    """
    listeners = await trio.open_tcp_listeners(options.port, host=options.host)
    standin = Standin(options, port=listeners[0].socket.getsockname()[1])
    task_status.started(standin)
    await trio.serve_listeners(standin.serve_client, listeners)
