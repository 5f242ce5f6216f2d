"""Errors as the real packages show them: before a stream, in one, and behind comments."""

from __future__ import annotations

import json
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import openai
import pytest
import trio

from tests.clients.site import (
    PATIENCE_S,
    QUESTION,
    Site,
    in_thread,
    needs_package,
    openai_client,
    package,
    running_site,
)

pytestmark = pytest.mark.slow

Play = Callable[[trio.SocketStream, bytes], Awaitable[None]]

COMMENTS: dict[str, Any] = {"policy": {"waiting_keepalive_secs": 0.1}}

ASK: dict[str, Any] = {"messages": QUESTION, "max_tokens": 9}

START = {
    "type": "message_start",
    "message": {"id": "m", "type": "message", "role": "assistant", "model": "a", "content": [],
                "stop_reason": None, "stop_sequence": None,
                "usage": {"input_tokens": 1, "output_tokens": 1}},
}  # fmt: skip
CREATED = {
    "type": "response.created", "sequence_number": 0,
    "response": {"id": "resp_7", "object": "response", "created_at": 1, "model": "a", "output": [],
                 "status": "in_progress", "parallel_tool_calls": True, "tool_choice": "auto",
                 "tools": []},
}  # fmt: skip


def breaking(kind: str, said: bytes) -> Play:
    """Answer with the beginning of a stream, and break off."""

    async def answer(stream: trio.SocketStream, request: bytes) -> None:
        head = f"HTTP/1.1 200 OK\r\nContent-Type: {kind}\r\nTransfer-Encoding: chunked\r\n\r\n"
        await stream.send_all(head.encode() + b"%x\r\n%b\r\n" % (len(said), said))
        await trio.sleep(0.2)
        await stream.aclose()

    return answer


def event(payload: dict[str, Any]) -> bytes:
    return f"event: {payload['type']}\ndata: {json.dumps(payload)}\n\n".encode()


def whole(body: dict[str, Any], status: str = "200 OK", seconds: float = 0.4) -> Play:
    """Answer late, and with no events."""
    data = json.dumps(body).encode()
    head = f"HTTP/1.1 {status}\r\nContent-Type: application/json\r\nContent-Length: {len(data)}\r\n\r\n"

    async def answer(stream: trio.SocketStream, request: bytes) -> None:
        await trio.sleep(seconds)
        await stream.send_all(head.encode() + data)

    return answer


def anthropic_client(site: Site) -> Any:
    return package("anthropic").Anthropic(
        base_url=site.url, api_key="unused", max_retries=0, timeout=PATIENCE_S
    )


@needs_package("anthropic")
async def test_anthropic(form: str, tmp_path: Path) -> None:
    anthropic = package("anthropic")
    models = {"b": {"wake": "sleep 0.4; exit 1"}}
    async with running_site(tmp_path, form, models, **COMMENTS) as site:

        def fails(model: str, **options: Any) -> Any:
            with anthropic_client(site) as api, pytest.raises(anthropic.APIStatusError) as error:
                list(api.messages.create(model=model, **ASK, **options))
            return error.value

        def work() -> None:
            unknown = fails("none")
            assert isinstance(unknown, anthropic.NotFoundError)
            assert unknown.type == "not_found_error"
            assert unknown.body["error"]["code"] == "model_not_found"

            site.scripted.play = breaking("text/event-stream", event(START))
            broken = fails("scripted", stream=True)
            assert broken.type == "api_error"
            assert "Backend error: closed the connection" in str(broken)

            assert fails("b", stream=True).body["error"]["code"] == "hook_failed"

            busy = {"type": "error", "error": {"type": "overloaded_error", "message": "busy"}}
            site.scripted.play = whole(busy, "529 Overloaded")
            assert fails("scripted", stream=True).type == "overloaded_error"

            message = {**START["message"], "content": [{"type": "text", "text": "Hi"}]}  # type: ignore[dict-item]
            site.scripted.play = whole({**message, "stop_reason": "end_turn"})
            with anthropic_client(site) as api:
                with api.messages.stream(model="scripted", **ASK) as stream:
                    final = stream.get_final_message()
            assert (final.content[0].text, final.stop_reason) == ("Hi", "end_turn")

        await in_thread(work)


async def test_openai(form: str, tmp_path: Path) -> None:
    models = {"b": {"wake": "sleep 0.4; exit 1"}}
    async with running_site(tmp_path, form, models, **COMMENTS) as site:

        def work() -> None:
            with openai_client(site) as api:
                site.scripted.play = breaking("text/event-stream", event(CREATED))
                with pytest.raises(openai.APIError) as error:
                    list(api.responses.create(model="scripted", input="x", stream=True))
                assert error.value.code == "backend_error"
                with pytest.raises(openai.APIError) as error:
                    with api.responses.stream(model="scripted", input="x") as events:
                        list(events)
                assert error.value.code == "backend_error"
                for ask in (
                    lambda: api.responses.create(model="b", input="x", stream=True),
                    lambda: api.chat.completions.create(model="b", messages=[], stream=True),
                    lambda: api.completions.create(model="b", prompt="x", stream=True),
                ):
                    with pytest.raises(openai.APIError) as error:
                        list(ask())
                    assert error.value.code == "hook_failed"
                site.scripted.play = breaking("text/event-stream", b'data: {"choices": []}\n\n')
                with pytest.raises(openai.APIError) as error:
                    list(api.chat.completions.create(model="scripted", messages=[], stream=True))
                assert error.value.code == "backend_error"
                site.scripted.play = whole(
                    {"error": {"message": "long", "code": "context_length_exceeded"}}, "400 Bad"
                )
                with pytest.raises(openai.APIError) as error:
                    list(api.chat.completions.create(model="scripted", messages=[], stream=True))
                assert error.value.code == "context_length_exceeded"

        await in_thread(work)


@needs_package("ollama")
async def test_ollama(form: str, tmp_path: Path) -> None:
    ollama = package("ollama")
    models = {"b": {"wake": "sleep 0.4; exit 1"}}
    async with running_site(tmp_path, form, models, **COMMENTS) as site:

        def work() -> None:
            with ollama.Client(host=site.url, timeout=PATIENCE_S) as api:
                line = json.dumps({"message": {"role": "assistant", "content": "H"}, "done": False})
                site.scripted.play = breaking("application/x-ndjson", line.encode() + b"\n")
                with pytest.raises(ollama.ResponseError) as error:
                    list(api.chat(model="scripted", messages=QUESTION, stream=True))
                assert error.value.error.startswith("Backend error: closed the connection")
                for stream in (True, False):
                    with pytest.raises(ollama.ResponseError, match="Hook failed for b") as error:
                        list(api.chat(model="b", messages=QUESTION, stream=stream))
                    assert error.value.status_code == 500
                # It waits for longer than the comments' interval, and gets its lines all the same.
                held = list(api.generate(model="a", prompt="Who?", stream=True))
                assert held[-1].done

        await in_thread(work)
