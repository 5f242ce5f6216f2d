"""A request for a path that no server has wakes nothing, and is told the right path."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from llmux.switching.core import Phase
from tests.fakes import FakeHooks
from tests.lanes import LANES, running_lane

Body = dict[str, Any]


def openai(said: Body) -> tuple[str, str]:
    assert said["error"]["type"] == "llmux_error"
    return said["error"]["code"], said["error"]["message"]


def anthropic(said: Body) -> tuple[str, str]:
    assert (said["type"], said["error"]["type"]) == ("error", "not_found_error")
    return said["error"]["code"], said["error"]["message"]


def ollama(said: Body) -> tuple[str, str]:
    return said["code"], said["error"]


UNVERSIONED: dict[str, tuple[Callable[[Body], tuple[str, str]], str, str]] = {
    "/chat/completions": (openai, "/v1/chat/completions", "OpenAI client ends in /v1"),
    "/completions": (openai, "/v1/completions", "OpenAI client ends in /v1"),
    "/responses": (openai, "/v1/responses", "OpenAI client ends in /v1"),
    "/messages": (anthropic, "/v1/messages", "Anthropic client has no path"),
}

TWICE: dict[str, tuple[Callable[[Body], tuple[str, str]], str, str]] = {
    "/v1/v1/chat/completions": (openai, "/v1/chat/completions", "OpenAI client ends in /v1"),
    "/v1/v1/messages": (anthropic, "/v1/messages", "Anthropic client has no path"),
    "/v1/api/chat": (ollama, "/api/chat", "Ollama client has no path"),
}


@pytest.mark.parametrize("lane", LANES)
@pytest.mark.parametrize("path", [*UNVERSIONED, *TWICE])
async def test_a_wrong_path_wakes_nothing(lane: str, path: str, tmp_path: Path) -> None:
    read, right, base = {**UNVERSIONED, **TWICE}[path]
    hooks = FakeHooks()
    more: dict[str, Any] = {"hooks": hooks, "default_model": "a"}
    async with running_lane(lane, tmp_path, **more) as site, site.client() as client:
        for body in ({"model": "a"}, {}):
            answer = await client.post(path + "?x=1", json=body)
            assert answer.status_code == 404
            code, message = read(answer.json())
            assert code == "wrong_path"
            assert message.startswith(f"No such path: {path}. Use {right}; the base URL of an ")
            assert base in message
            assert ("unversioned_paths" in message) is (path in UNVERSIONED)
            assert "x-llmux-model" not in answer.headers
        assert site.service.board.models["a"].phase is Phase.ASLEEP
        assert (await client.post(right, json={"model": "a"})).status_code == 200
        assert (await client.post(path, json={"model": "a"})).status_code == 404, "awake or not"
        assert len(site.backend.received) == 1


@pytest.mark.parametrize("lane", LANES)
@pytest.mark.parametrize(
    "settings", [{"unversioned_paths": True}, {"url": "http://127.0.0.1:{}/openai/v1"}, {}]
)
async def test_servers_that_have_the_paths(lane: str, settings: Body, tmp_path: Path) -> None:
    async with running_lane(lane, tmp_path) as site, site.client() as client:
        config = site.service.reloader.config.models["a"]
        values = {name: getattr(config, name) for name in config.__struct_fields__}
        values |= settings
        if url := settings.get("url"):
            values |= {"url": url.format(site.backend.port), "port": None}
        site.service.proxy.use("a", type(config)(**values))
        prefix = "" if settings else "/upstream/a"  # where the path is the server's own
        for count, path in enumerate(UNVERSIONED, 1):
            assert (await client.post(prefix + path, json={"model": "a"})).status_code == 200
            assert len(site.backend.received) == count
            assert f"{path} HTTP/1.1" in site.backend.received[-1].decode()
        for path in TWICE:
            answer = await client.post(prefix + path, json={"model": "a"})
            assert (answer.status_code, "unversioned" in answer.text) == (404, False)


@pytest.mark.parametrize("lane", LANES)
async def test_a_path_that_is_wrong_without_a_model(lane: str, tmp_path: Path) -> None:
    async with running_lane(lane, tmp_path) as site, site.client() as client:
        listing = await client.get("/v1/v1/models")
        assert openai(listing.json())[0] == "wrong_path"
        assert "Use /v1/models;" in listing.text
        assert openai((await client.post("/chat/completions", json={})).json())[0] == "no_model"


@pytest.mark.parametrize("lane", LANES)
async def test_the_fallback_has_paths_of_its_own(lane: str, tmp_path: Path) -> None:
    async with running_lane("fast", tmp_path / "far") as far:
        url = f"http://127.0.0.1:{far.backend.port}"
        async with running_lane(lane, tmp_path, fallback=url) as site, site.client() as client:
            for path in ("/chat/completions", "/v1/v1/models"):
                assert (await client.post(path, json={})).status_code == 200
            assert len(far.backend.received) == 2
