"""Open WebUI in front of llmux, where $LLMUX_OPEN_WEBUI names its program (`…/bin/open-webui`).

It takes 7 GB and a quarter of an hour to install, and a minute to start: `python3 -m venv DIR`,
`DIR/bin/pip install open-webui==0.12.4` (Python 3.11 or 3.12).
"""

from __future__ import annotations

import json
import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest
import trio

from bench.processes import free_port
from tests.clients.site import QUESTION, WORDS, Site, running_site

PROGRAM = os.environ.get("LLMUX_OPEN_WEBUI", "")
START_S = 600

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not PROGRAM, reason="$LLMUX_OPEN_WEBUI does not name an open-webui"),
]


@asynccontextmanager
async def running_webui(site: Site) -> AsyncIterator[httpx.AsyncClient]:
    """Start it with both APIs of the site, and sign up its first user, the administrator."""
    port = free_port()
    told = {
        "OPENAI_API_BASE_URL": site.api,
        "OPENAI_API_KEY": "none",
        "ENABLE_OLLAMA_API": "true",
        "OLLAMA_BASE_URL": site.url,
        "DATA_DIR": str(site.folder / "webui"),
        "HOME": str(site.folder),
        "WEBUI_SECRET_KEY": "secret",
        # Nothing is fetched: no model for embeddings, no news of versions.
        "RAG_EMBEDDING_ENGINE": "openai",
        "OFFLINE_MODE": "true",
        "HF_HUB_OFFLINE": "1",
        "ANONYMIZED_TELEMETRY": "False",
    }
    (site.folder / "webui").mkdir()
    command = [PROGRAM, "serve", "--host", "127.0.0.1", "--port", str(port)]
    with (site.folder / "webui.log").open("wb") as log:
        process = await trio.lowlevel.open_process(
            command, cwd=site.folder, env=os.environ | told, stdout=log, stderr=log
        )
    try:
        async with httpx.AsyncClient(
            base_url=f"http://127.0.0.1:{port}", timeout=120, verify=False
        ) as client:
            with trio.fail_after(START_S):
                await _until_healthy(client, process)
            person = {"name": "A", "email": "a@example.org", "password": "Pass-word-1"}
            signed = (await client.post("/api/v1/auths/signup", json=person)).raise_for_status()
            client.headers["Authorization"] = f"Bearer {signed.json()['token']}"
            yield client
    finally:
        with trio.CancelScope(shield=True):
            process.kill()
            await process.wait()


async def _until_healthy(client: httpx.AsyncClient, process: trio.Process) -> None:
    while True:
        assert process.poll() is None, "Open WebUI has ended"
        try:
            if (await client.get("/health")).status_code == 200:
                return
        except httpx.TransportError:
            pass
        await trio.sleep(0.5)


async def test_both_of_its_sides(tmp_path: Path) -> None:
    """One start, which takes long, for all of them."""
    async with running_site(tmp_path, models={"b": {"held": True}}) as site:
        site.go()
        async with running_webui(site) as client:
            await _chats_with_switches(client)
            await _asks_in_ollamas_form(site, client)
            await _lists_during_a_switch(site, client)
            await _stop(site, client)
            await _shows_errors(site, client)


async def _models(client: httpx.AsyncClient) -> set[str]:
    listed = (await client.get("/api/models")).raise_for_status().json()["data"]
    return {model["id"] for model in listed}


def ask(model: str, **more: Any) -> dict[str, Any]:
    return {"model": model, "messages": QUESTION, **more}


async def _chats_with_switches(client: httpx.AsyncClient) -> None:
    assert {"a", "b"} <= await _models(client)
    for name in "aba":
        answer = await client.post("/api/chat/completions", json=ask(name, stream=False))
        message = answer.raise_for_status().json()["choices"][0]["message"]
        assert message["content"] == f"{name} {WORDS}"
        answer = await client.post("/openai/chat/completions", json=ask(name, stream=True))
        lines = answer.raise_for_status().text.splitlines()
        chunks = [json.loads(line[6:]) for line in lines if line.startswith("data: {")]
        parts = [
            chunk["choices"][0]["delta"].get("content") or ""
            for chunk in chunks
            if chunk["choices"]
        ]
        assert "".join(parts) == f"{name} {WORDS}"


async def _asks_in_ollamas_form(site: Site, client: httpx.AsyncClient) -> None:
    """Nothing but the last is a reason to wake a model."""
    served = site.standins["b"].engine.served
    assert (await client.get("/ollama/api/version")).json()["version"]
    tags = (await client.get("/ollama/api/tags")).raise_for_status().json()["models"]
    assert {"a", "b"} <= {model["model"] for model in tags}
    (await client.get("/ollama/api/ps")).raise_for_status()
    shown = await client.post("/ollama/api/show", json={"model": "b"})
    assert shown.raise_for_status().json()["capabilities"] == ["completion"]
    assert site.standins["b"].engine.served == served
    answer = await client.post("/ollama/api/chat", json=ask("b", stream=False))
    assert answer.raise_for_status().json()["message"]["content"] == f"b {WORDS}"


async def _lists_during_a_switch(site: Site, client: httpx.AsyncClient) -> None:
    (await client.post("/api/chat/completions", json=ask("a", stream=False))).raise_for_status()
    (site.folder / "go").unlink()
    async with trio.open_nursery() as nursery:
        answers: list[httpx.Response] = []

        async def chat() -> None:
            answers.append(await client.post("/api/chat/completions", json=ask("b", stream=False)))

        nursery.start_soon(chat)
        await site.until_queued("b", 1)
        assert {"a", "b"} <= await _models(client)
        assert not answers
        site.go()
    assert answers[0].json()["choices"][0]["message"]["content"] == f"b {WORDS}"


async def _stop(site: Site, client: httpx.AsyncClient) -> None:
    endless = ask("b", stream=True, max_tokens=100_000)
    async with client.stream("POST", "/openai/chat/completions", json=endless) as answer:
        await anext(answer.aiter_bytes())
        assert site.standins["b"].engine.in_flight == 1
    await site.until(lambda: site.standins["b"].engine.in_flight == 0)


async def _shows_errors(site: Site, client: httpx.AsyncClient) -> None:
    assert (await site.post("/control/mode", json={"mode": "manual"})).status_code == 200
    answer = await client.post("/api/chat/completions", json=ask("a", stream=False))
    assert answer.status_code >= 400
    assert "manual" in answer.text.lower()
