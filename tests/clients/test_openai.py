"""The `openai` package, sync and async: what it gets, and which of its errors llmux's become."""

from __future__ import annotations

import asyncio
import time
from pathlib import Path
from typing import Any

import httpx
import openai
import pytest
import trio

from tests.clients.site import QUESTION, WORDS, Site, in_thread, openai_client, running_site

pytestmark = pytest.mark.slow

ASK: dict[str, Any] = {"messages": QUESTION}


async def test_sync(site: Site) -> None:
    def work() -> None:
        with openai_client(site) as api:
            for model in "aba":
                answer = api.chat.completions.create(model=model, **ASK)
                assert answer.model == model
                assert answer.choices[0].message.content == f"{model} {WORDS}"
                assert answer.usage is not None
                assert answer.usage.completion_tokens == 9
            raw = api.chat.completions.with_raw_response.create(model="a", **ASK)
            assert raw.headers["x-llmux-model"] == "a"
            assert raw.headers["x-llmux-wait-ms"] == "0"
            words = api.completions.create(model="b", prompt="Who?", max_tokens=2)
            assert words.choices[0].text == "b is"
            assert words.choices[0].finish_reason == "length"

    await in_thread(work)
    assert (site.standins["a"].engine.served, site.standins["b"].engine.served) == (3, 2)


async def test_streaming(site: Site) -> None:
    def work() -> None:
        with openai_client(site) as api:
            for model in "ab":
                usage: Any = {"include_usage": True}
                chunks: list[Any] = list(
                    api.chat.completions.create(
                        model=model, stream=True, stream_options=usage, **ASK
                    )
                )
                # The role, nine tokens, the reason for the end, the usage.
                assert len(chunks) == 12
                text = [c.choices[0].delta.content or "" for c in chunks if c.choices]
                assert "".join(text) == f"{model} {WORDS}"
                assert chunks[-1].usage.completion_tokens == 9

    await in_thread(work)


async def test_async_many_at_once(site: Site) -> None:
    """As programs do it: one asyncio loop, one client, both models at once."""

    async def main() -> list[str]:
        options: Any = {"base_url": site.api, "api_key": "unused", "max_retries": 0}
        async with openai.AsyncOpenAI(**options) as api:

            async def whole(model: str) -> str:
                answer = await api.chat.completions.create(model=model, **ASK)
                return answer.choices[0].message.content or ""

            async def streamed(model: str) -> str:
                stream = await api.chat.completions.create(model=model, stream=True, **ASK)
                return "".join([chunk.choices[0].delta.content or "" async for chunk in stream])

            wanted = [ask(model) for _ in range(5) for model in "ab" for ask in (whole, streamed)]
            return await asyncio.gather(*wanted)

    assert await in_thread(lambda: asyncio.run(main())) == [
        f"{model} {WORDS}" for _ in range(5) for model in "aabb"
    ]


async def test_embeddings_and_models(site: Site) -> None:
    def work() -> None:
        with openai_client(site) as api:
            made = api.embeddings.create(model="b", input=["one", "two", "one"])
            vectors = [item.embedding for item in made.data]
            assert [len(vector) for vector in vectors] == [8, 8, 8]
            assert vectors[0] == vectors[2] != vectors[1]
            models = api.models.list()
            assert [model.id for model in models] == ["a", "b", "scripted"]
            one = api.models.retrieve("b")
            assert (one.id, one.object, one.owned_by) == ("b", "model", "llmux")
            with pytest.raises(openai.NotFoundError) as missing:
                api.models.retrieve("none")
            assert missing.value.code == "model_not_found"

    await in_thread(work)


# ---- Errors ----


async def caught(site: Site, model: str = "a", **options: Any) -> openai.APIStatusError:
    """The error that asking ends with."""

    def work() -> openai.APIStatusError:
        with openai_client(site, **options) as api, pytest.raises(openai.APIStatusError) as error:
            api.chat.completions.create(model=model, **ASK)
        return error.value

    return await in_thread(work)


async def test_an_unknown_model(site: Site) -> None:
    error = await caught(site, "none")
    assert type(error) is openai.NotFoundError
    assert (error.status_code, error.code, error.type) == (404, "model_not_found", "llmux_error")
    assert "Model not found: none" in str(error)


async def test_a_missing_key(form: str, tmp_path: Path) -> None:
    async with running_site(tmp_path, form, api_keys=["secret"]) as site:
        error = await caught(site, api_key="guessed")
        assert type(error) is openai.AuthenticationError
        assert (error.status_code, error.code) == (401, "invalid_api_key")

        def work() -> None:
            with openai_client(site, api_key="secret") as api:
                assert api.models.retrieve("a").id == "a"
                assert api.chat.completions.create(model="a", **ASK).model == "a"

        await in_thread(work)


async def test_too_long_a_wait(form: str, tmp_path: Path) -> None:
    policy = {"request_timeout_secs": 0.2}
    async with running_site(tmp_path, form, {"a": {"held": True}}, policy=policy) as site:
        error = await caught(site)
        assert type(error) is openai.InternalServerError
        assert (error.status_code, error.code) == (504, "switch_timeout")


async def test_a_model_that_is_not_to_be_had(site: Site) -> None:
    assert (await site.post("/control/switch", json={"model": "b"})).status_code == 200
    assert (await site.post("/control/mode", json={"mode": "manual"})).status_code == 200
    error = await caught(site)
    assert type(error) is openai.InternalServerError
    assert (error.status_code, error.code) == (503, "manual_mode")


async def test_a_full_line_and_a_retry_as_told(form: str, tmp_path: Path) -> None:
    limits = {"queued_per_model": 1}
    model = {"held": True, "alive": "true"}  # there is room within the second of Retry-After
    async with running_site(tmp_path, form, {"a": model}, limits=limits) as site:
        answers: list[tuple[float, int, str | None]] = []

        def note(answer: httpx.Response) -> None:
            answers.append(
                (time.monotonic(), answer.status_code, answer.headers.get("retry-after"))
            )
            site.go()  # so that the next try finds room

        def work() -> None:
            with httpx.Client(event_hooks={"response": [note]}) as http:
                answer = openai_client(
                    site, http_client=http, max_retries=4
                ).chat.completions.create(model="a", **ASK)
                assert answer.choices[0].message.content == f"a {WORDS}"

        async with trio.open_nursery() as nursery:
            nursery.start_soon(
                in_thread, lambda: openai_client(site).embeddings.create(model="a", input="x")
            )
            await site.until_queued("a", 1)
            error = await caught(site)
            assert type(error) is openai.RateLimitError
            assert (error.status_code, error.code) == (429, "queue_full")
            await in_thread(work)
        # A machine that stalls may take longer than that second to make room.
        (first, refused, told), (second, _, _), *_ = answers
        assert (refused, answers[-1][1], told) == (429, 200, "1")
        # Left to itself, the client would come back after half a second.
        assert second - first >= 1


# ---- Clients that leave ----


async def test_a_stream_that_is_closed_early(site: Site) -> None:
    def work() -> None:
        with openai_client(site) as api:
            stream = api.chat.completions.create(
                model="a", stream=True, max_tokens=10_000, extra_body={"rate": 20}, **ASK
            )
            next(stream)
            assert site.standins["a"].engine.in_flight == 1
            stream.close()

    await in_thread(work)
    await site.until(lambda: site.standins["a"].engine.in_flight == 0)
    assert site.standins["a"].engine.served == 0


async def test_a_task_that_is_cancelled(site: Site) -> None:
    async def main() -> None:
        options: Any = {"base_url": site.api, "api_key": "unused"}
        async with openai.AsyncOpenAI(**options) as api:
            slow = {"rate": 0.01}
            asking = asyncio.create_task(
                api.chat.completions.create(model="a", extra_body=slow, **ASK)
            )
            while not site.standins["a"].engine.in_flight:
                await asyncio.sleep(0.01)
            asking.cancel()
            with pytest.raises(asyncio.CancelledError):
                await asking

    await in_thread(lambda: asyncio.run(main()))
    await site.until(lambda: site.standins["a"].engine.in_flight == 0)
    assert site.standins["a"].engine.served == 0
