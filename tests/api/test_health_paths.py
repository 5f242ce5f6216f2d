"""What balancers and their probes are told: of this host, and of each model."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import httpx
import pytest
import trio

from llmux.errors import SwitcherDied
from llmux.observe.schemas import Pin
from tests.fakes import FakeHooks
from tests.lanes import LANES, Site, running_lane

KEYS: dict[str, Any] = {"api_keys": ["talk"], "control_keys": ["steer"]}


@pytest.fixture
def hooks() -> FakeHooks:
    return FakeHooks()


@pytest.fixture(params=LANES)
async def site(
    request: pytest.FixtureRequest, tmp_path: Path, hooks: FakeHooks
) -> AsyncIterator[Site]:
    names = ("a", "org/b", "/data/c")
    async with running_lane(request.param, tmp_path, models=names, hooks=hooks) as site:
        yield site


async def ask(site: Site, path: str, key: str = "") -> tuple[int, Any]:
    headers = {"authorization": f"Bearer {key}"} if key else {}
    async with site.client() as client:
        answer = await client.get(f"/health/{path}", headers=headers)
    return answer.status_code, answer.json()


async def test_a_host_is_ready_unless_it_is_cordoned_stopping_or_dead(site: Site) -> None:
    board = site.service.board
    assert await ask(site, "ready") == (200, {"status": "ready"})
    board.set_cordoned(True)
    assert await ask(site, "ready") == (503, {"status": "cordoned"})
    board.set_cordoned(False)
    assert await ask(site, "ready") == (200, {"status": "ready"})
    board.stop()
    assert await ask(site, "ready") == (503, {"status": "stopping"})
    board.groups["default"]._group.closed_with = SwitcherDied()
    assert await ask(site, "ready") == (503, {"status": "dead"})


async def test_a_cordon_changes_nothing_about_the_old_health(site: Site) -> None:
    site.service.board.set_cordoned(True)
    async with site.client() as client:
        assert (await client.get("/health")).json() == {"status": "ok"}


async def test_a_model_is_healthy_if_it_would_be_served(site: Site, hooks: FakeHooks) -> None:
    board = site.service.board
    asleep = {"awake": False, "code": "model_asleep"}
    assert await ask(site, "models/a") == (200, {"awake": False})
    assert await ask(site, "models/a?awake") == (503, asleep)
    assert await ask(site, "models/a?awake=true") == (503, asleep)
    assert await ask(site, "models/a?awake=false") == (200, {"awake": False})
    await board.pin(Pin(model="org/b", wait=False))
    assert await ask(site, "models/org/b?awake") == (200, {"awake": True})
    refused = (503, {"awake": False, "code": "pinned"})
    assert await ask(site, "models/a") == await ask(site, "models/a?awake") == refused
    assert await ask(site, "models//data/c") == refused
    board.set_cordoned(True)
    refused = (503, {"awake": True, "code": "cordoned"})
    assert await ask(site, "models/org/b") == await ask(site, "models/org/b?awake") == refused
    board.stop()
    assert await ask(site, "models/a") == (503, {"awake": False, "code": "shutting_down"})
    assert hooks.calls == [("org/b", "wake")]


@pytest.mark.parametrize(
    ("path", "status", "code"),
    [("x", 404, "model_not_found"), ("a?awake=maybe", 400, "bad_request")],
)
async def test_mistakes(site: Site, path: str, status: int, code: str) -> None:
    got, said = await ask(site, f"models/{path}")
    assert (got, said["error"]["code"]) == (status, code)


@pytest.mark.parametrize("lane", LANES)
async def test_aliases_count(lane: str, tmp_path: Path) -> None:
    named = {"aliases": ["gpt-*", "also"]}
    async with running_lane(lane, tmp_path, model_settings=named) as site:
        for name in ("also", "gpt-5", "a:latest"):
            assert await ask(site, f"models/{name}") == (200, {"awake": False})


@pytest.mark.parametrize("lane", LANES)
async def test_names_are_for_those_with_a_key(lane: str, tmp_path: Path) -> None:
    async with running_lane(lane, tmp_path, **KEYS) as site:
        assert await ask(site, "ready") == (200, {"status": "ready"})
        known, unknown = await ask(site, "models/a"), await ask(site, "models/x")
        assert known == unknown  # which there are cannot be told from the answers
        assert known[0] == 401
        for key in ("talk", "steer"):
            assert await ask(site, "models/a", key) == (200, {"awake": False})
            assert (await ask(site, "models/x", key))[0] == 404
        assert (await ask(site, "models/a", "wrong"))[0] == 401


async def test_probes_leave_no_trace(site: Site, hooks: FakeHooks) -> None:
    for path in ("ready", "models/a", "models/a?awake"):
        await ask(site, path)
    async with site.client() as client:
        assert (await client.head("/health/models/a")).status_code == 200
        assert (await client.get("/control/requests")).json()["requests"] == []
        entries = (await client.get("/control/journal")).json()["entries"]
    assert {each["event"] for each in entries} <= {"started"}
    assert not hooks.calls
    assert not hooks.looks
    assert site.backend.received == []


@pytest.mark.parametrize("lane", LANES)
async def test_the_cordon_by_the_control_api(lane: str, tmp_path: Path) -> None:
    async with running_lane(lane, tmp_path) as site, site.client() as client:
        async with trio.open_nursery() as nursery:
            told: list[bytes] = []

            async def listen() -> None:
                async with client.stream("GET", "/control/events") as events:
                    async for line in events.aiter_lines():
                        told.append(line.encode())
                        if told[-2:-1] == [b"event: cordon"] and b"false" in told[-1]:
                            return

            nursery.start_soon(listen)
            while not told:
                await trio.sleep(0.005)
            for verb, is_cordoned in (("cordon", True), ("cordon", True), ("uncordon", False)):
                answer = await client.post(f"/control/{verb}")
                assert answer.status_code == 200
                assert answer.json()["message"].lower().startswith(verb)
                assert (await client.get("/control/status")).json()["cordoned"] is is_cordoned
                metrics: httpx.Response = await client.get("/metrics")
                assert f"llmux_cordoned {float(is_cordoned)}" in metrics.text
                site.service.metrics._rendered_at = -1e9  # the next scrape is not the same text
        assert told.count(b"event: cordon") == 2
