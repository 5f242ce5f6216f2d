"""CORS on both lanes: what pages of other origins are told, and what they are not."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from llmux.config import config_schema, parse_config
from llmux.errors import ConfigError
from tests.fakes import FakeHooks
from tests.lanes import LANES, Site, play, running_lane

CHAT = "/v1/chat/completions"
PAGE = "https://chat.example.org"
MODEL = {"port": 1, "wake": "up", "sleep": "down", "alive": "ping"}
KEY = {"Authorization": "Bearer secret"}
SHARED = ["/v1/models", "/v1/models/a", "/v1/models/none", "/health"]

DEMANDING = play(
    b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\naccess-control-allow-origin: https://b.example\r\n"
    b"Access-Control-Allow-Credentials: true\r\nVary: Accept\r\n\r\nok"
)
"""A backend with a CORS policy of its own."""


def asking(origin: str = PAGE, method: str = "POST", **more: str) -> dict[str, str]:
    """The headers of a preflight."""
    return {"Origin": origin, "Access-Control-Request-Method": method, **more}


def cors_of(answer: httpx.Response) -> dict[str, str]:
    """The CORS headers of an answer; two of one name would be joined by a comma."""
    return {k: v for k, v in answer.headers.items() if k.startswith("access-control-")}


@pytest.fixture(params=LANES)
async def site(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[Site]:
    async with running_lane(request.param, tmp_path, cors_origins=[PAGE]) as site:
        site.backend.play = DEMANDING
        yield site


@pytest.fixture
async def client(site: Site) -> AsyncIterator[httpx.AsyncClient]:
    async with site.client() as client:
        yield client


@pytest.mark.parametrize("path", [CHAT, "/upstream/a/x", "/anything", *SHARED])
@pytest.mark.parametrize("lane", LANES)
async def test_a_preflight_needs_no_key_and_wakes_nobody(
    lane: str, path: str, tmp_path: Path
) -> None:
    hooks = FakeHooks()
    async with running_lane(
        lane, tmp_path, hooks=hooks, cors_origins=[PAGE], api_keys=["secret"]
    ) as site:
        async with site.client() as client:
            wanted = {"Access-Control-Request-Headers": "authorization,content-type"}
            answer = await client.options(path, headers=asking(**wanted))
        assert (answer.status_code, answer.content) == (204, b"")
        assert cors_of(answer) == {
            "access-control-allow-origin": PAGE,
            "access-control-allow-methods": "POST",
            "access-control-allow-headers": "authorization,content-type",
            "access-control-max-age": "600",
            "access-control-expose-headers": "x-llmux-model, x-llmux-wait-ms, x-llmux-request-id, *",
        }
        assert answer.headers["vary"] == "Origin"
        assert "content-length" not in answer.headers  # RFC 9110, section 8.6
        assert site.backend.received == []
        assert hooks.calls == []


@pytest.mark.parametrize(
    "headers",
    [
        asking("https://evil.example"),
        asking("https://chat.example.org.evil.example"),
        asking("null"),
        {"Access-Control-Request-Method": "POST"},
        {"Origin": PAGE},
    ],
)
@pytest.mark.parametrize("lane", LANES)
async def test_any_other_options_is_forwarded(
    lane: str, headers: dict[str, str], tmp_path: Path
) -> None:
    async with running_lane(lane, tmp_path, cors_origins=[PAGE], api_keys=["secret"]) as site:
        async with site.client() as client:
            answer = await client.options("/x?model=a", headers=headers | KEY)
        assert (answer.status_code, answer.text) == (200, "ok")
        [received] = site.backend.received
        assert received.startswith(b"OPTIONS /x?model=a ")


@pytest.mark.parametrize("lane", LANES)
async def test_a_foreign_preflight_needs_a_key(lane: str, tmp_path: Path) -> None:
    async with running_lane(lane, tmp_path, cors_origins=[PAGE], api_keys=["secret"]) as site:
        async with site.client() as client:
            answer = await client.options("/x?model=a", headers=asking("https://evil.example"))
    assert answer.status_code == 401
    assert cors_of(answer) == {}


async def test_llmux_speaks_for_the_backend(client: httpx.AsyncClient) -> None:
    for _ in range(2):  # the connection goes on
        answer = await client.post(CHAT, json={"model": "a"}, headers={"Origin": PAGE})
        assert answer.text == "ok"
        assert cors_of(answer) == {
            "access-control-allow-origin": PAGE,
            "access-control-expose-headers": "x-llmux-model, x-llmux-wait-ms, x-llmux-request-id, *",
        }
        assert answer.headers.get_list("vary") == ["Accept", "Origin"]


@pytest.mark.parametrize("headers", [{}, {"Origin": "https://evil.example"}])
@pytest.mark.parametrize("lane", LANES)
async def test_to_others_the_backend_speaks(
    lane: str, headers: dict[str, str], tmp_path: Path
) -> None:
    async with running_lane(lane, tmp_path, cors_origins=[PAGE], api_keys=["secret"]) as site:
        site.backend.play = DEMANDING
        async with site.client() as client:
            answer = await client.post(CHAT, json={"model": "a"}, headers=headers | KEY)
    assert cors_of(answer) == {
        "access-control-allow-origin": "https://b.example",
        "access-control-allow-credentials": "true",
    }
    assert "Origin" in answer.headers.get_list("vary")  # a cache must not mix them up


async def test_errors_can_be_read_by_the_page(client: httpx.AsyncClient) -> None:
    answer = await client.post(CHAT, json={"model": "none"}, headers={"Origin": PAGE})
    assert answer.status_code == 404
    assert answer.json()["error"]["code"] == "model_not_found"
    assert answer.headers["access-control-allow-origin"] == PAGE


@pytest.mark.parametrize("lane", LANES)
async def test_a_missing_key_can_be_told_by_the_page(lane: str, tmp_path: Path) -> None:
    async with running_lane(lane, tmp_path, cors_origins=[PAGE], api_keys=["secret"]) as site:
        async with site.client() as client:
            for path in (CHAT, "/v1/models"):
                answer = await client.get(path, headers={"Origin": PAGE})
                assert answer.status_code == 401
                assert answer.headers["access-control-allow-origin"] == PAGE


@pytest.mark.parametrize("path", SHARED)
async def test_own_paths_are_shared(client: httpx.AsyncClient, path: str) -> None:
    plain = await client.get(path)
    answer = await client.get(path, headers={"Origin": PAGE})
    foreign = await client.get(path, headers={"Origin": "https://evil.example"})
    assert plain.content == answer.content
    assert foreign.status_code == (200 if path == "/health" else 403)
    assert answer.headers["access-control-allow-origin"] == PAGE
    assert cors_of(plain) == cors_of(foreign) == {}
    assert plain.headers["vary"] == answer.headers["vary"] == foreign.headers["vary"] == "Origin"


@pytest.mark.parametrize("path", ["/control/status", "/control/switch", "/control", "/metrics"])
@pytest.mark.parametrize("settings", [{}, {"control_keys": ["boss"]}])
@pytest.mark.parametrize("lane", LANES)
async def test_control_is_never_shared(
    lane: str, path: str, settings: dict[str, Any], tmp_path: Path
) -> None:
    async with running_lane(lane, tmp_path, cors_origins="*", **settings) as site:
        async with site.client() as client:
            key = {"Authorization": "Bearer boss"}
            for answer in (
                await client.options(path, headers=asking()),
                await client.get(path, headers={"Origin": PAGE, **key}),
                await client.post(path, headers={"Origin": PAGE, **key}),
            ):
                assert answer.status_code != 204
                assert cors_of(answer) == {}
                assert "vary" not in answer.headers


@pytest.mark.parametrize("lane", LANES)
async def test_all_origins(lane: str, tmp_path: Path) -> None:
    async with running_lane(lane, tmp_path, cors_origins="*") as site:
        site.backend.play = DEMANDING
        async with site.client() as client:
            for origin in (PAGE, "null", "http://localhost:5173"):
                asked = await client.options(CHAT, headers=asking(origin))
                answer = await client.post(CHAT, json={"model": "a"}, headers={"Origin": origin})
                for each in (asked, answer):
                    assert each.headers["access-control-allow-origin"] == "*"
                    assert "access-control-allow-credentials" not in each.headers


@pytest.mark.parametrize("lane", LANES)
async def test_without_origins_nothing_is_added(lane: str, tmp_path: Path) -> None:
    async with running_lane(lane, tmp_path, api_keys=["secret"]) as site, site.client() as client:
        origin = {"Origin": PAGE, **KEY}
        asked = await client.options("/x?model=a", headers=asking() | KEY)
        answer = await client.post(CHAT, json={"model": "a"}, headers=origin)
        own = await client.get("/v1/models", headers=origin)
        for each in (asked, answer, own):
            assert (each.status_code, cors_of(each)) == (200, {})
            assert "vary" not in each.headers
        assert len(site.backend.received) == 2


@pytest.mark.parametrize("lane", LANES)
async def test_a_stream_that_llmux_begins(lane: str, tmp_path: Path) -> None:
    slow = FakeHooks(seconds={("a", "wake"): 0.1})
    settings: dict[str, Any] = {"policy": {"waiting_keepalive_secs": 0.01}}
    async with running_lane(lane, tmp_path, hooks=slow, cors_origins=[PAGE], **settings) as site:
        site.backend.play = play(
            b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nContent-Length: 9\r\n\r\n"
            b"data: 1\n\n"
        )
        async with site.client() as client:
            body = {"model": "a", "stream": True}
            answer = await client.post(CHAT, json=body, headers={"Origin": PAGE})
    assert answer.text.startswith(":")
    assert answer.headers["access-control-allow-origin"] == PAGE


async def test_a_new_config_counts_at_once(client: httpx.AsyncClient, site: Site) -> None:
    data = {"models": {"a": {**MODEL, "port": site.backend.port}}, "state_dir": "/unused"}
    other = "http://localhost:5173"
    for origins in ([other], [], [PAGE, other]):
        site.service.proxy.apply(parse_config(data | {"cors_origins": origins}))
        for path in (CHAT, "/v1/models"):
            for origin in (PAGE, other):
                answer = await client.options(path, headers=asking(origin))
                told = answer.headers.get("access-control-allow-origin")
                assert told == (origin if origin in origins else None)


# ---- The config ----


def parse(origins: object) -> Any:
    return parse_config({"models": {"a": MODEL}, "cors_origins": origins}).cors_origins


def test_origins_of_the_config() -> None:
    origins = (
        PAGE, "http://localhost:5173", "http://127.0.0.1:8080", "http://[::1]:3000",
        "https://example.org:8443", "app://obsidian.md", "chrome-extension://abcdef",
        "moz-extension://0c9d3b7e-1f1a-4e7e-9d5b-1a2b3c4d5e6f", "tauri://localhost",
    )  # fmt: skip
    assert parse(list(origins)) == origins
    assert parse("*") == "*"
    assert parse([]) == ()
    assert parse_config({"models": {"a": MODEL}}).cors_origins == ()


@pytest.mark.parametrize(
    ("origins", "mistake"),
    [
        (["example.org"], "[0]: expected an origin such as https://example.org, got 'example.org'"),
        (
            [PAGE, f"{PAGE}/"],
            f"[1]: expected an origin such as https://example.org, got '{PAGE}/'",
        ),
        (
            ["https://Example.org"],
            "[0]: expected an origin such as https://example.org, got 'https://Example.org'",
        ),
        (
            ["https://example.org:443"],
            "[0]: expected an origin such as https://example.org, got 'https://example.org:443'",
        ),
        (["null"], "[0]: expected an origin such as https://example.org, got 'null'"),
        (
            ["*"],
            "[0]: expected an origin such as https://example.org, got '*'"
            " (for all origins: cors_origins: '*')",
        ),
        ([7], "[0]: expected str, got int"),
        (PAGE, ": expected array, got str"),
        (None, ": expected array, got null"),
    ],
)
def test_mistakes_in_the_config(origins: object, mistake: str) -> None:
    with pytest.raises(ConfigError) as caught:
        parse(origins)
    assert caught.value.mistakes == [f"cors_origins{mistake}"]


def test_the_schema_has_both_forms() -> None:
    shape = config_schema()["$defs"]["Config"]["properties"]["cors_origins"]
    array, everything = shape["anyOf"]
    assert (array["type"], array["items"]["type"], everything["enum"]) == ("array", "string", ["*"])
    assert list(shape["default"]) == []
    assert "* for all" in shape["description"]
