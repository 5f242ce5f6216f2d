"""llama-swap's own paths: what runs, and orders to unload."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx
import msgspec
import pytest
import trio

from llmux.observe.schemas import RunningModels
from llmux.switching.core import Phase
from tests.fakes import FakeHooks
from tests.lanes import LANES, OK, Site, running_lane

CHAT = "/v1/chat/completions"
UNLOADS = [("GET", "/unload"), ("POST", "/unload"), ("POST", "/api/models/unload")]
ORDERS = [*UNLOADS, ("POST", "/api/models/unload/a"), ("GET", "//unload/")]


async def running(client: httpx.AsyncClient) -> list[tuple[str, str, int]]:
    answer = await client.get("/running")
    assert answer.status_code == 200
    listed = msgspec.json.decode(answer.content, type=RunningModels).running
    assert all((each.cmd, each.proxy, each.description) == ("", "", "") for each in listed)
    return [(each.model, each.state, each.ttl) for each in listed]


def phases(site: Site) -> list[Phase]:
    return [model.phase for model in site.service.board.models.values()]


async def until(condition: Callable[[], bool]) -> None:
    with trio.fail_after(20):
        while not condition():
            await trio.sleep(0.001)


async def wake(client: httpx.AsyncClient, *models: str) -> None:
    for model in models:
        assert (await client.post(CHAT, json={"model": model})).status_code == 200


@pytest.mark.parametrize("lane", LANES)
async def test_what_runs(lane: str, tmp_path: Path) -> None:
    hooks = FakeHooks()
    more: dict[str, Any] = {"models": ("a", "b"), "model_settings": {"idle_sleep_secs": 90.4}}
    async with running_lane(lane, tmp_path, hooks=hooks, **more) as site, site.client() as client:
        assert await running(client) == []
        await wake(client, "b")
        assert await running(client) == [("b", "ready", 90)]
        goes_on = trio.Event()

        async def answer_late(stream: trio.SocketStream, request: bytes) -> None:
            await goes_on.wait()
            await stream.send_all(OK)

        site.backend.play = answer_late
        async with trio.open_nursery() as nursery:
            nursery.start_soon(wake, client, "b")
            await until(lambda: len(site.backend.received) == 2)
            nursery.start_soon(client.get, "/unload")
            await until(lambda: phases(site)[1] is Phase.DRAINING)
            assert await running(client) == [("b", "stopping", 90)]
            goes_on.set()
        assert phases(site) == [Phase.ASLEEP] * 2


@pytest.mark.parametrize("lane", LANES)
@pytest.mark.parametrize(("method", "path"), UNLOADS)
async def test_unload_all(lane: str, method: str, path: str, tmp_path: Path) -> None:
    async with running_lane(lane, tmp_path, hooks=FakeHooks()) as site, site.client() as client:
        for _ in range(2):
            answer = await client.request(method, path)
            assert answer.status_code == 200
            expected = '{"msg":"ok"}' if path.startswith("/api") else "OK"
            assert answer.text == expected
            assert phases(site) == [Phase.ASLEEP]
            await wake(client, "a")
        assert (await client.head("/unload")).status_code == 200
        assert phases(site) == [Phase.AWAKE], "HEAD only looks"


@pytest.mark.parametrize("lane", LANES)
async def test_unload_one(lane: str, tmp_path: Path) -> None:
    aliased = {"aliases": ["org/a"]}
    async with (
        running_lane(lane, tmp_path, model_settings=aliased) as site,
        site.client() as client,
    ):
        for name in ("a", "org/a", "a"):
            assert (await client.post(f"/api/models/unload/{name}")).text == "OK"
            assert phases(site) == [Phase.ASLEEP]
            await wake(client, "a")
        unknown = await client.post("/api/models/unload/b")
        assert (unknown.status_code, unknown.json()["error"]["code"]) == (404, "model_not_found")
        assert "Known names: a" in unknown.text
        assert (await client.get("/api/models/unload/a")).status_code == 405


async def test_a_failure_is_told(tmp_path: Path) -> None:
    hooks = FakeHooks(verifiers={"a"})
    async with running_lane("fast", tmp_path, hooks=hooks) as site, site.client() as client:
        await wake(client, "a")
        hooks.failing["a", "verify_asleep"] = -1
        for method, path in ORDERS[:4]:
            answer = await client.request(method, path)
            assert (answer.status_code, answer.json()["error"]["code"]) == (500, "hook_failed")
        hooks.failing.clear()
        assert (await client.get("/unload")).text == "OK"
        assert phases(site) == [Phase.ASLEEP]


async def test_manual_mode_and_pins(tmp_path: Path) -> None:
    """As with `POST /control/sleep`: an operator's order works in both."""
    async with running_lane("fast", tmp_path) as site, site.client() as client:
        await client.post("/control/switch", json={"model": "a"})
        await client.post("/control/mode", json={"mode": "manual"})
        assert (await client.get("/unload")).text == "OK"
        assert phases(site) == [Phase.ASLEEP]
        assert (await client.post(CHAT, json={"model": "a"})).status_code == 503
        await client.post("/control/mode", json={"mode": "auto"})
        await client.post("/control/pin", json={"model": "a"})
        assert (await client.post("/api/models/unload/a")).text == "OK"
        assert phases(site) == [Phase.ASLEEP]
        await wake(client, "a")


@pytest.mark.parametrize("lane", LANES)
@pytest.mark.parametrize(("method", "path"), ORDERS)
async def test_orders_need_what_control_needs(
    lane: str, method: str, path: str, tmp_path: Path
) -> None:
    keys: dict[str, Any] = {"api_keys": ["client"], "control_keys": ["operator"]}
    async with running_lane(lane, tmp_path, **keys) as site, site.client() as client:
        base = str(client.base_url).rstrip("/")
        client.headers["authorization"] = "Bearer client"
        await wake(client, "a")
        for key, status in ((None, 401), ("client", 401), ("operator", 200)):
            headers = {"authorization": f"Bearer {key}"}
            assert (
                await client.request(method, base + path, headers=headers)
            ).status_code == status
            assert phases(site) == [Phase.ASLEEP if status == 200 else Phase.AWAKE]
        assert (await client.get("/running")).status_code == 200
        del client.headers["authorization"]
        assert (await client.get("/running")).status_code == 401
    async with running_lane(lane, tmp_path) as site, site.client() as client:
        base = str(client.base_url).rstrip("/")
        await wake(client, "a")
        for headers in (
            {"Via": "1.1 proxy"}, {"X-Forwarded-For": "10.0.0.1"}, {"Host": "evil.example"},
            {"Origin": "http://evil.example"}, {"Sec-Fetch-Site": "cross-site"},
        ):  # fmt: skip
            refused = await client.request(method, base + path, headers=headers)
            assert (refused.status_code, refused.json()["error"]["code"]) == (403, "forbidden")
        if method == "GET":
            old = {"User-Agent": "Mozilla/5.0 (X11)"}
            assert (await client.request(method, base + path, headers=old)).status_code == 403
            typed = {**old, "Sec-Fetch-Site": "none"}
            assert (await client.request("HEAD", base + path, headers=typed)).status_code == 200
        assert phases(site) == [Phase.AWAKE]


@pytest.mark.parametrize(("method", "path"), UNLOADS)
async def test_where_control_has_its_own_listener(method: str, path: str, tmp_path: Path) -> None:
    async with running_lane("asgi", tmp_path, control={"port": 0}) as site, site.client() as client:
        await wake(client, "a")
        answer = await client.request(method, path)
        assert (answer.status_code, answer.json()["error"]["code"]) == (404, "not_found")
        assert phases(site) == [Phase.AWAKE]
        assert await running(client) == [("a", "ready", 0)]


@pytest.mark.parametrize("lane", LANES)
async def test_the_same_paths_of_a_server(lane: str, tmp_path: Path) -> None:
    async with running_lane(lane, tmp_path) as site, site.client() as client:
        assert (await client.get("/upstream/a/running")).text == "ok"
        assert site.backend.received[0].startswith(b"GET /running HTTP/1.1")
