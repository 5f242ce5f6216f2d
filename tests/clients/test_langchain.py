"""LangChain's models of OpenAI's and of Ollama's API."""

from __future__ import annotations

import asyncio
import gc
import json
import time
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
import trio

from tests.clients.site import (
    PATIENCE_S,
    WORDS,
    Site,
    in_thread,
    needs_package,
    package,
    running_site,
)
from tests.lanes import play

pytestmark = [
    pytest.mark.slow,
    needs_package("langchain_openai"),
    needs_package("langchain_ollama"),
    # LangChain's own, of Python and of pydantic.
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
    pytest.mark.filterwarnings("ignore::UserWarning:langchain_core"),
]

WEATHER = {
    "name": "weather",
    "description": "Tells the weather.",
    "parameters": {"type": "object", "properties": {"city": {"type": "string"}}},
}
CALL = {
    "id": "call_1",
    "type": "function",
    "function": {"name": "weather", "arguments": '{"city": "Ulm"}'},
}
FAST: dict[str, Any] = {"max_retries": 0, "timeout": PATIENCE_S}


@pytest.fixture(autouse=True)
def _left_open() -> Iterator[None]:
    """LangChain never closes its connections, of which Python would warn in another test."""
    yield
    clients = package("langchain_openai.chat_models._client_utils")
    clients._cached_sync_httpx_client.cache_clear()
    clients._cached_async_httpx_client.cache_clear()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ResourceWarning)
        gc.collect()


def chat_openai(site: Site, model: str, **options: Any) -> Any:
    settings = {"base_url": site.api, "api_key": "unused", **FAST, **options}
    return package("langchain_openai").ChatOpenAI(model=model, **settings)


def answer(kind: str, message: dict[str, Any]) -> bytes:
    """A response of OpenAI's API: whole, or as a stream with one chunk."""
    part = "message" if kind == "chat.completion" else "delta"
    choice = {"index": 0, "finish_reason": "tool_calls", part: message}
    body = {"id": "x", "object": kind, "created": 0, "model": "x", "choices": [choice]}
    content, text = "application/json", json.dumps(body)
    if part == "delta":
        content, text = "text/event-stream", f"data: {text}\n\ndata: [DONE]\n\n"
    head = f"HTTP/1.1 200 OK\r\nContent-Type: {content}\r\nContent-Length: {len(text)}\r\n\r\n"
    return (head + text).encode()


async def test_invoke_stream_batch_and_switch(site: Site) -> None:
    def work() -> None:
        for name in "aba":
            model = chat_openai(site, name)
            message = model.invoke("Who are you?")
            assert message.content == f"{name} {WORDS}"
            assert message.usage_metadata["output_tokens"] == 9
            parts = [part.content for part in model.stream("Who are you?")]
            assert "".join(parts) == f"{name} {WORDS}"
            assert len([part for part in parts if part]) == 9
        both = [chat_openai(site, name) for name in "ab"]
        said = [each.content for model in both for each in model.batch(["Who?", "Who?"])]
        assert said == [f"{name} {WORDS}" for name in "aabb"]
        named = chat_openai(site, "gpt-4o", default_headers={"model-override": "b"})
        assert named.invoke("Who are you?").content == f"b {WORDS}"

    await in_thread(work)


async def test_embeddings(site: Site) -> None:
    def work() -> None:
        settings = {"base_url": site.api, "api_key": "unused", **FAST}
        model = package("langchain_openai").OpenAIEmbeddings(
            model="b", check_embedding_ctx_length=False, **settings
        )
        vectors = model.embed_documents(["one", "two", "one"])
        assert [len(vector) for vector in vectors] == [8, 8, 8]
        assert vectors[0] == vectors[2] != vectors[1]

    await in_thread(work)


async def test_tool_calls(site: Site) -> None:
    """They reach the server as they are, and its calls reach the program."""

    def whole() -> Any:
        return chat_openai(site, "scripted").bind_tools([WEATHER]).invoke("How is Ulm?")

    def streamed() -> Any:
        parts = list(chat_openai(site, "scripted").bind_tools([WEATHER]).stream("How is Ulm?"))
        total = parts[0]
        for part in parts[1:]:
            total += part
        return total

    message = {"role": "assistant", "content": None, "tool_calls": [CALL]}
    site.scripted.play = play(answer("chat.completion", message))
    told = [await in_thread(whole)]
    delta = message | {"tool_calls": [{"index": 0, **CALL}]}
    site.scripted.play = play(answer("chat.completion.chunk", delta))
    told.append(await in_thread(streamed))
    for each in told:
        (call,) = each.tool_calls
        assert (call["name"], call["args"], call["id"]) == ("weather", {"city": "Ulm"}, "call_1")
    for body in site.bodies()[-2:]:
        (tool,) = json.loads(body)["tools"]
        assert tool["function"] == WEATHER


async def test_a_switch_that_takes_longer_than_chunks_may(form: str, tmp_path: Path) -> None:
    """Its limit on the time between chunks begins with the response, and so not in line."""
    async with running_site(tmp_path, form, {"a": {"held": True}}) as site:

        async def main() -> str:
            model = chat_openai(site, "a", stream_chunk_timeout=0.5)
            return "".join([part.content async for part in model.astream("Who are you?")])

        async with trio.open_nursery() as nursery:
            said: list[str] = []

            async def ask() -> None:
                said.append(await in_thread(lambda: asyncio.run(main())))

            nursery.start_soon(ask)
            await site.until_queued("a", 1)
            await trio.sleep(1)
            site.go()
        assert said == [f"a {WORDS}"]


async def test_comments_begin_the_response_but_are_no_chunks(form: str, tmp_path: Path) -> None:
    """With them, that limit applies to the time in line."""
    policy = {"waiting_keepalive_secs": 0.1}
    async with running_site(tmp_path, form, {"a": {"held": True}}, policy=policy) as site:

        async def main(limit_s: float | None) -> str:
            model = chat_openai(site, "a", stream_chunk_timeout=limit_s)
            return "".join([part.content async for part in model.astream("Who are you?")])

        with pytest.raises(Exception, match="stream_chunk_timeout"):
            await in_thread(lambda: asyncio.run(main(0.5)))
        async with trio.open_nursery() as nursery:
            said: list[str] = []

            async def ask() -> None:
                said.append(await in_thread(lambda: asyncio.run(main(None))))

            nursery.start_soon(ask)
            await trio.sleep(1)
            site.go()
        assert said == [f"a {WORDS}"]


async def test_a_task_that_is_cancelled(site: Site) -> None:
    async def main() -> None:
        model = chat_openai(site, "a", max_tokens=10_000, extra_body={"rate": 20})
        stream = model.astream("Who are you?")
        await anext(stream)
        await stream.aclose()
        assert site.standins["a"].engine.in_flight <= 1
        asking = asyncio.create_task(model.ainvoke("Who are you?"))
        while site.standins["a"].engine.in_flight != 1:
            await asyncio.sleep(0.01)
        asking.cancel()
        with pytest.raises(asyncio.CancelledError):
            await asking

    await in_thread(lambda: asyncio.run(main()))
    await site.until(lambda: site.standins["a"].engine.in_flight == 0)
    assert site.standins["a"].engine.served == 0


async def test_an_unknown_model(site: Site) -> None:
    def work() -> None:
        with pytest.raises(package("openai").NotFoundError, match="Known names: a, b, scripted"):
            chat_openai(site, "none").invoke("Who?")

    await in_thread(work)


async def test_it_comes_back_when_told(tmp_path: Path) -> None:
    """A 503 with `Retry-After`: too many connections, until one of the others ends.

    Not under Hypercorn, which would close the idle one by itself after 5 s.
    """
    async with running_site(tmp_path, limits={"connections": 1}) as site:
        host, port = site.url.removeprefix("http://").split(":")
        other = await trio.open_tcp_stream(host, int(port))
        await other.send_all(b"GET /health HTTP/1.1\r\nHost: x\r\n\r\n")
        assert (await other.receive_some()).startswith(b"HTTP/1.1 200")
        answers: list[tuple[float, int, str | None]] = []
        told = trio.Event()
        token = trio.lowlevel.current_trio_token()

        def note(response: httpx.Response) -> None:
            after = response.headers.get("retry-after")
            answers.append((time.monotonic(), response.status_code, after))
            token.run_sync_soon(told.set)

        def work() -> str:
            with httpx.Client(event_hooks={"response": [note]}) as http:
                model = chat_openai(site, "a", http_client=http, max_retries=4)
                return str(model.invoke("Who are you?").content)

        async def let_in() -> None:
            await told.wait()
            await other.aclose()

        async with trio.open_nursery() as nursery:
            nursery.start_soon(let_in)
            assert await in_thread(work) == f"a {WORDS}"
        (first, refused, after), (second, *_), *_ = answers
        assert (refused, after, answers[-1][1]) == (503, "1", 200)
        # Left to itself, the client would come back after half a second.
        assert second - first >= 1


# LangChain's client of Ollama cannot be closed.
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
async def test_ollamas_api(site: Site) -> None:
    ollama = package("langchain_ollama")

    def work() -> None:
        for name in "ab":
            model = ollama.ChatOllama(model=name, base_url=site.url)
            assert model.invoke("Who are you?").content == f"{name} {WORDS}"
            said = "".join(part.content for part in model.stream("Who are you?"))
            assert said == f"{name} {WORDS}"
        checked = ollama.ChatOllama(model="a", base_url=site.url, validate_model_on_init=True)
        assert checked.invoke("Who are you?").content == f"a {WORDS}"
        with pytest.raises(package("ollama").ResponseError, match="Known names: ") as error:
            ollama.ChatOllama(model="none", base_url=site.url).invoke("Who?")
        assert error.value.status_code == 404

    await in_thread(work)
