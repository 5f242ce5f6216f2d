"""LiteLLM's proxy in front of llmux, with the config of `docs/clients.md`, in a process of its own."""

from __future__ import annotations

import os
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path
from typing import Any

import httpx
import openai
import pytest
import trio

from bench.processes import free_port
from tests.clients.install import LITELLM
from tests.clients.page import ALIASES, aimed_at, config_of
from tests.clients.site import PATIENCE_S, QUESTION, WORDS, Site, in_thread, running_site

PROGRAM = LITELLM / "bin" / "litellm"
KEY = "sk-" + "0123456789abcdef" * 4
START_S = 300
ASK: dict[str, Any] = {"messages": QUESTION}

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not PROGRAM.exists(), reason="no LiteLLM proxy: make test-slow installs it"),
]


@asynccontextmanager
async def running_proxy(site: Site) -> AsyncIterator[str]:
    """Start the proxy; yields its address for clients."""
    port = free_port()
    config = site.folder / "litellm.yaml"
    config.write_text(aimed_at(site, config_of("LiteLLM").code))
    command = [PROGRAM, "--config", config, "--host", "127.0.0.1", "--port", str(port)]
    told = {
        "LITELLM_MASTER_KEY": KEY,
        "LITELLM_LOCAL_MODEL_COST_MAP": "True",  # else it would fetch its list of prices
        "LITELLM_TELEMETRY": "False",
        "HOME": str(site.folder),
    }
    with (site.folder / "litellm.log").open("wb") as log:
        process = await trio.lowlevel.open_process(
            list(map(str, command)), cwd=site.folder, env=os.environ | told, stdout=log, stderr=log
        )
    try:
        with trio.fail_after(START_S):
            await _until_alive(f"http://127.0.0.1:{port}", process)
        yield f"http://127.0.0.1:{port}/v1"
    finally:
        with trio.CancelScope(shield=True):
            process.kill()
            await process.wait()


async def _until_alive(url: str, process: trio.Process) -> None:
    # Its first answer takes long on a busy machine.
    async with httpx.AsyncClient(verify=False, timeout=PATIENCE_S) as client:
        while True:
            assert process.returncode is None, "the proxy has ended"
            try:
                if (await client.get(f"{url}/health/liveliness")).status_code == 200:
                    return
            except httpx.TransportError:
                pass
            await trio.sleep(0.2)


async def test_the_proxy_in_front(tmp_path: Path) -> None:
    """One start, which takes long, for all of them."""
    limits = {"queued_per_model": 1}
    models = {"a": ALIASES["a"], "b": ALIASES["b"] | {"held": True}}
    async with running_site(tmp_path, "llmux", models, limits=limits) as site:
        site.go()
        async with running_proxy(site) as url:

            def client() -> openai.OpenAI:
                return openai.OpenAI(base_url=url, api_key=KEY, max_retries=0, timeout=PATIENCE_S)

            await _answers_of_both(client)
            await _errors_keep_their_codes(site, client)
            await _a_stream_that_is_closed(site, client())


async def _answers_of_both(client: Callable[[], openai.OpenAI]) -> None:
    def listed() -> set[str]:
        with client() as api:
            return {model.id for model in api.models.list()}

    def whole(model: str) -> str:
        with client() as api:
            answer: Any = api.chat.completions.create(model=model, **ASK)
            return str(answer.choices[0].message.content)

    def streamed(model: str) -> list[str]:
        with client() as api:
            stream: Any = api.chat.completions.create(model=model, stream=True, **ASK)
            parts = [chunk.choices[0].delta.content for chunk in stream if chunk.choices]
            return [part for part in parts if part]

    assert await in_thread(listed) == {"llama", "mistral"}
    for model, name in (("llama", "a"), ("mistral", "b"), ("llama", "a")):
        assert await in_thread(partial(whole, model)) == f"{name} {WORDS}"
        parts = await in_thread(partial(streamed, model))
        assert ("".join(parts), len(parts)) == (f"{name} {WORDS}", 9)


async def _errors_keep_their_codes(site: Site, client: Callable[[], openai.OpenAI]) -> None:
    """Their status and text, and each is one request to llmux: the proxy does not repeat it."""

    async def refused(model: str, **headers: str) -> openai.APIStatusError:
        def work() -> openai.APIStatusError:
            with client() as api, pytest.raises(openai.APIStatusError) as error:
                api.chat.completions.create(model=model, extra_headers=headers, **ASK)
            return error.value

        return await in_thread(work)

    async def counted(status: int) -> int:
        count = 0
        with trio.move_on_after(PATIENCE_S):  # llmux counts a response once it has been sent
            while not count:
                async with site.llmux.client() as api:
                    lines = (await api.get("/metrics")).text.splitlines()
                count = round(sum(float(e.split()[-1]) for e in lines if _is_count(e, status)))
        return count

    error = await refused("mistral", **{"x-llmux-switch": "never"})
    assert (error.status_code, await counted(409)) == (409, 1)
    assert "and the request asks for no switch" in str(error)
    assert (await site.post("/control/mode", json={"mode": "manual"})).status_code == 200
    error = await refused("mistral")
    assert (error.status_code, await counted(503)) == (503, 1)
    assert "manual" in str(error).lower()
    assert (await site.post("/control/mode", json={"mode": "auto"})).status_code == 200

    (site.folder / "go").unlink()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(_ask_once, site)
        await site.until_queued("b", 1)
        error = await refused("mistral")
        assert (error.status_code, await counted(429)) == (429, 1)
        assert "retry-after" not in error.response.headers
        site.go()


def _is_count(line: str, status: int) -> bool:
    return line.startswith("llmux_requests_total{") and f'status="{status}"' in line


async def _ask_once(site: Site) -> None:
    assert (await site.post("/v1/embeddings", json={"model": "b", "input": "x"})).status_code == 200


async def _a_stream_that_is_closed(site: Site, api: openai.OpenAI) -> None:
    def work() -> None:
        with api:
            slow: Any = {"max_tokens": 10_000, "extra_body": {"rate": 20}}
            stream: Any = api.chat.completions.create(model="llama", stream=True, **ASK, **slow)
            next(iter(stream))
            assert site.standins["a"].engine.in_flight == 1
            stream.close()

    await in_thread(work)
    await site.until(lambda: site.standins["a"].engine.in_flight == 0)
