"""What browsers say of the page that asks: not forwarded once llmux has let it in."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import trio

from llmux.config import config_schema
from tests.lanes import LANES, ScriptedBackend, Site, play, running_lane
from tests.servers import ALL_FORMS, running_backends, running_llmux

PAGE = "https://chat.example.org"
CHAT = "/v1/chat/completions"

OF_PAGE = {
    "Origin": PAGE,
    "Referer": f"{PAGE}/chat",
    "Sec-Fetch-Site": "cross-site",
    "Sec-Fetch-Mode": "cors",
    "Sec-Fetch-Dest": "empty",
}

OF_BACKEND = (
    b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\nAccess-Control-Allow-Origin: *\r\n"
    b"Access-Control-Expose-Headers: x-own\r\nVary: Origin\r\n\r\nok"
)

UPGRADE = (
    b"GET /upstream/a/ws HTTP/1.1\r\nHost: localhost\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n"
    b"Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n"
)


def names_of(request: bytes) -> set[str]:
    """The header names of a request, in lower case."""
    lines = request.partition(b"\r\n\r\n")[0].split(b"\r\n")[1:]
    return {line.partition(b":")[0].lower().decode() for line in lines}


def told_of_page(request: bytes) -> set[str]:
    """Those that tell of a page."""
    return {
        name
        for name in names_of(request)
        if name in ("origin", "referer") or name.startswith(("sec-fetch-", "access-control-"))
    }


async def refuse_pages(stream: trio.SocketStream, request: bytes) -> None:
    """Answer as Ollama does: 403 for an `Origin` that it does not know."""
    is_known = b"\r\norigin:" not in request.lower()
    await play(OF_BACKEND if is_known else b"HTTP/1.1 403 x\r\nContent-Length: 0\r\n\r\n")(
        stream, request
    )


@pytest.mark.parametrize("origins", ["*", [PAGE]])
@pytest.mark.parametrize("keys", [[], ["secret"]])
@pytest.mark.parametrize("lane", LANES)
async def test_an_allowed_page_is_not_told_to_the_backend(
    lane: str, keys: list[str], origins: Any, tmp_path: Path
) -> None:
    async with running_lane(lane, tmp_path, cors_origins=origins, api_keys=keys) as site:
        site.backend.play = refuse_pages
        headers = {**OF_PAGE, "Authorization": "Bearer secret", "X-Kept": "1"}
        async with site.client() as client:
            answer = await client.post(CHAT, json={"model": "a"}, headers=headers)
            plain = await client.options("/x?model=a", headers=headers)  # no preflight
        assert (answer.status_code, plain.status_code) == (200, 200)
        for received in site.backend.received:
            assert told_of_page(received) == set()
            assert "x-kept" in names_of(received)
        origin = "*" if origins == "*" else PAGE
        assert answer.headers.get_list("access-control-allow-origin") == [origin]
        assert len(answer.headers.get_list("access-control-expose-headers")) == 1


@pytest.mark.parametrize("keys", [[], ["secret"]])
@pytest.mark.parametrize("lane", LANES)
async def test_a_page_of_llmux_s_own_is_not_told_either(
    lane: str, keys: list[str], tmp_path: Path
) -> None:
    """A model server's own page under /upstream/a/: its origin is llmux's, not the server's."""
    async with running_lane(lane, tmp_path, api_keys=keys) as site:
        site.backend.play = refuse_pages
        own = f"http://127.0.0.1:{site.port}"
        headers = {**OF_PAGE, "Origin": own, "Sec-Fetch-Site": "same-origin", "x-api-key": "secret"}
        async with site.client() as client:
            answer = await client.post("/upstream/a/x", headers=headers)
        assert answer.status_code == 200
        assert told_of_page(site.backend.received[0]) == set()


@pytest.mark.parametrize("lane", LANES)
async def test_a_page_that_llmux_has_not_judged_is_told(lane: str, tmp_path: Path) -> None:
    async with running_lane(lane, tmp_path, cors_origins=[PAGE], api_keys=["secret"]) as site:
        headers = {**OF_PAGE, "Origin": "https://other.example", "x-api-key": "secret"}
        async with site.client() as client:
            await client.post(CHAT, json={"model": "a"}, headers=headers)
        assert told_of_page(site.backend.received[0]) == {name.lower() for name in OF_PAGE}


@pytest.mark.parametrize("lane", LANES)
async def test_forwarding_can_be_had_back(lane: str, tmp_path: Path) -> None:
    async with running_lane(lane, tmp_path, cors_origins=[PAGE], forward_origin=True) as site:
        async with site.client() as client:
            await client.post(CHAT, json={"model": "a"}, headers=OF_PAGE)
        assert told_of_page(site.backend.received[0]) == {name.lower() for name in OF_PAGE}
        assert await handshake(site) == {name.lower() for name in OF_PAGE}


@pytest.mark.parametrize("lane", LANES)
async def test_a_websocket_handshake(lane: str, tmp_path: Path) -> None:
    async with running_lane(lane, tmp_path, cors_origins=[PAGE]) as site:
        assert await handshake(site) == set()


async def handshake(site: Site) -> set[str]:
    """What the backend hears of the page in a handshake."""
    lines = "".join(f"{name}: {value}\r\n" for name, value in OF_PAGE.items()).encode()
    site.backend.received.clear()
    async with await site.connect() as stream:
        await stream.send_all(UPGRADE + lines + b"\r\n")
        with trio.fail_after(20):
            assert b" 200 " in bytes(await stream.receive_some())  # it speaks no WebSocket
    return told_of_page(site.backend.received[0])


@pytest.mark.parametrize("lane", LANES)
async def test_the_fallback_hears_nothing_of_it(lane: str, tmp_path: Path) -> None:
    other = ScriptedBackend()
    async with trio.open_nursery() as nursery:
        await nursery.start(other.serve)
        fallback = f"http://127.0.0.1:{other.port}"
        async with running_lane(
            lane, tmp_path, cors_origins=[PAGE], fallback=fallback, fallback_models=["*"]
        ) as site:
            async with site.client() as client:
                answer = await client.post(CHAT, json={"model": "gpt"}, headers=OF_PAGE)
        assert answer.status_code == 200
        assert told_of_page(other.received[0]) == set()
        nursery.cancel_scope.cancel()


@pytest.mark.parametrize("form", ALL_FORMS)
async def test_under_each_server(form: str, tmp_path: Path) -> None:
    async with running_backends(tmp_path, "a") as rack:
        config = rack.write_config(cors_origins=[PAGE])
        async with running_llmux(config, form) as llmux, llmux.client() as client:
            answer = await client.post(CHAT, json={"model": "a"}, headers=OF_PAGE)
            assert answer.headers["access-control-allow-origin"] == PAGE
    request, _ = rack.backends["a"].received[0]
    assert not {name for name, _ in request.headers} & {name.lower().encode() for name in OF_PAGE}


def test_the_schema() -> None:
    key = config_schema()["$defs"]["Config"]["properties"]["forward_origin"]
    assert key["default"] is False
    assert "Referer" in key["description"]
