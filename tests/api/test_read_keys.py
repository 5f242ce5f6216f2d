"""Read keys: they show all of the control API, and steer nothing."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import httpx
import pytest

from llmux.api.guard import READS_ONLY
from llmux.api.openapi import OPERATIONS, Operation
from llmux.http.paths import CONTROL_PATHS, is_below
from llmux.switching.model import Phase
from tests.lanes import LANES, Site, running_lane

READER, CONTROL, CLIENT = "rk-1ook", "ck-5teer", "sk-a5k"

FAR = {"X-Forwarded-For": "203.0.113.7"}

KEYS: dict[str, Any] = {"api_keys": [CLIENT], "control_keys": [CONTROL], "read_keys": [READER]}

CONTROLLED = [each for each in OPERATIONS if is_below(each.path.encode(), CONTROL_PATHS)]

READABLE = {
    "/control/config", "/control/events", "/control/history", "/control/journal", "/control/log",
    "/control/logs/{model}", "/control/openapi.json", "/control/requests", "/control/status",
}  # fmt: skip


def bearer(key: str) -> dict[str, str]:
    return {"Authorization": f"Bearer {key}"} if key else {}


def url(site: Site, operation: Operation) -> str:
    query = "?model=a" if operation.path == "/control/alive" else ""
    path = operation.path.replace("{model}", "a").replace("{request_id}", "x")
    return f"{site.url}{path}{query}"


async def answer(
    client: httpx.AsyncClient, operation: Operation, to: str, headers: dict[str, str]
) -> tuple[int, str, str]:
    """Status, error code and what the access header says; of a stream, only the head is read."""
    body = {"model": "a", "mode": "auto"} if operation.request else None
    async with client.stream(operation.method, to, headers=headers, json=body) as got:
        code = "" if got.is_success else (await got.aread(), got.json()["error"]["code"])[1]
        return got.status_code, code, got.headers.get(READS_ONLY, "")


def test_what_reads_and_what_steers() -> None:
    """Each route is in one of them on purpose; a route that reads is named here."""
    assert {each.path for each in CONTROLLED if not each.steers} >= READABLE
    assert all(each.method == "get" for each in CONTROLLED if not each.steers)


@pytest.mark.parametrize("lane", LANES)
async def test_a_read_key_opens_what_reads_and_nothing_that_steers(
    lane: str, tmp_path: Path
) -> None:
    async with running_lane(lane, tmp_path, **KEYS) as site, site.client() as client:
        for operation in CONTROLLED:
            got = await answer(client, operation, url(site, operation), bearer(READER) | FAR)
            if operation.steers:
                is_told = "read" if operation.path.startswith("/control/") else ""
                assert got == (403, "read_key", is_told), operation.path
            else:
                assert got == (200, "", "read"), operation.path
        assert site.service.board.models["a"].phase is Phase.ASLEEP
        assert site.service.board.mode == "auto"


async def test_the_message_says_what_kind_of_key_it_is(tmp_path: Path) -> None:
    async with running_lane("asgi", tmp_path, **KEYS) as site, site.client() as client:
        got = await client.post("/control/switch", json={"model": "a"}, headers=bearer(READER))
        assert got.json()["error"]["message"] == (
            "This is a read key, which shows llmux and steers nothing: orders take one of the "
            "control_keys"
        )


async def test_a_control_key_beside_it_wins(tmp_path: Path) -> None:
    async with running_lane("asgi", tmp_path, **KEYS) as site, site.client() as client:
        both = bearer(READER) | {"x-api-key": CONTROL}
        got = await client.post("/control/mode", json={"mode": "manual"}, headers=both)
        assert (got.status_code, READS_ONLY in got.headers) == (200, False)


@pytest.mark.parametrize("key", ["", CLIENT, "rk-wr0ng"])
async def test_other_keys_open_nothing(key: str, tmp_path: Path) -> None:
    async with running_lane("asgi", tmp_path, **KEYS) as site, site.client() as client:
        for path in ("/control/status", "/control/events", "/control/config"):
            got = await client.get(path, headers=bearer(key))
            assert (got.status_code, got.json()["error"]["code"]) == (401, "invalid_api_key")


async def test_a_read_key_opens_no_model(tmp_path: Path) -> None:
    async with running_lane("fast", tmp_path, **KEYS) as site, site.client() as client:
        got = await client.post("/v1/x", json={"model": "a"}, headers=bearer(READER))
        assert got.status_code == 401
        assert (await client.get("/v1/models", headers=bearer(READER))).status_code == 401


# ---- Without control keys ----


async def test_with_read_keys_alone_this_machine_still_steers(tmp_path: Path) -> None:
    async with running_lane("asgi", tmp_path, read_keys=[READER]) as site, site.client() as client:
        assert (await client.get("/control/status")).status_code == 200
        assert (await client.post("/control/mode", json={"mode": "auto"})).status_code == 200
        # A request with the key reads only: a proxy of this machine may have brought it.
        got = await client.post("/control/mode", json={"mode": "auto"}, headers=bearer(READER))
        assert (got.status_code, got.json()["error"]["code"]) == (403, "read_key")


@pytest.mark.parametrize(
    ("key", "method", "path", "expected"),
    [
        (READER, "GET", "/control/status", (200, "")),
        (READER, "POST", "/control/reload", (403, "read_key")),
        (READER, "GET", "/unload", (403, "read_key")),
        ("", "GET", "/control/status", (401, "invalid_api_key")),
        ("rk-wr0ng", "GET", "/control/status", (401, "invalid_api_key")),
        ("", "POST", "/control/reload", (403, "forbidden")),
        ("", "GET", "/unload", (403, "forbidden")),
        ("", "GET", "/control/alive?model=a", (403, "forbidden")),
    ],
)
async def test_with_read_keys_alone_others_may_only_read(
    key: str, method: str, path: str, expected: tuple[int, str], tmp_path: Path
) -> None:
    async with running_lane("asgi", tmp_path, read_keys=[READER]) as site, site.client() as client:
        got = await client.request(method, path, headers=bearer(key) | FAR)
        code = "" if got.is_success else got.json()["error"]["code"]
        assert (got.status_code, code) == expected


async def test_the_page_is_served_to_all_and_asks_for_a_key(tmp_path: Path) -> None:
    async with running_lane("asgi", tmp_path, read_keys=[READER]) as site, site.client() as client:
        assert (await client.get("/ui/", headers=FAR)).status_code == 200
        assert (await client.get("/control/events", headers=FAR)).status_code == 401


# ---- Metrics ----


@pytest.mark.parametrize("lists", [["control_keys", "read_keys"], ["read_keys"]])
async def test_metrics_for_control_keys_take_read_keys(
    lists: Sequence[str], tmp_path: Path
) -> None:
    settings = {name: KEYS[name] for name in lists} | {"metrics_access": "control_key"}
    async with running_lane("fast", tmp_path, **settings) as site, site.client() as client:
        assert (await client.get("/metrics")).status_code == 401
        assert (await client.get("/metrics", headers=bearer(CLIENT))).status_code == 401
        assert (await client.get("/metrics", headers=bearer(READER))).status_code == 200
        expected = 200 if "control_keys" in lists else 401
        assert (await client.get("/metrics", headers=bearer(CONTROL))).status_code == expected
