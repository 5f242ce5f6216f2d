"""`GET /`: it leads browsers to the live page, and gives other clients a sign of life."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.api.test_page import get
from tests.lanes import LANES, running_lane
from tests.server.test_control_listener import by_socket, control_url
from tests.servers import ALL_FORMS, running_backends, running_llmux

BROWSER = b"Accept: text/html,application/xhtml+xml,application/xml;q=0.9,*/*;q=0.8"
PROXIED = b"X-Forwarded-For: 203.0.113.7"


@pytest.mark.parametrize("lane", LANES)
@pytest.mark.parametrize("path", ["/", "//", "/?from=bookmark"])
async def test_a_browser_is_led_to_the_page(path: str, lane: str, tmp_path: Path) -> None:
    async with running_lane(lane, tmp_path) as site:
        status, headers, body = await get(site, path, BROWSER)
        assert (status, headers["location"], headers["vary"]) == (302, "ui/", "Accept")
        assert b'href="ui/"' in body
        assert headers["content-security-policy"].startswith("default-src 'none'")
        assert (await get(site, f"/{headers['location']}", BROWSER))[0] == 200


@pytest.mark.parametrize("lane", LANES)
@pytest.mark.parametrize("accept", [b"Accept: */*", b"Accept: application/json", b"X-None: 1"])
async def test_other_clients_get_a_line_of_text(accept: bytes, lane: str, tmp_path: Path) -> None:
    async with running_lane(lane, tmp_path) as site:
        status, headers, body = await get(site, "/", accept)
        assert (status, body) == (200, b"llmux is running; its page is at /ui\n")
        assert headers["content-type"] == "text/plain; charset=utf-8"
        head = await site.exchange(b"HEAD / HTTP/1.1\r\nHost: h\r\nConnection: close\r\n\r\n")
        assert head.startswith(b"HTTP/1.1 200 ")


@pytest.mark.parametrize("lane", LANES)
async def test_a_browser_that_may_not_see_the_page_is_told_why(lane: str, tmp_path: Path) -> None:
    async with running_lane(lane, tmp_path) as site:
        status, headers, body = await get(site, "/", BROWSER, PROXIED)
        assert status == 200
        assert b"answers this machine only, until there are control_keys" in body
        assert "location" not in headers


async def test_with_control_keys_everybody_is_led_to_the_page(tmp_path: Path) -> None:
    async with running_lane(LANES[0], tmp_path, control_keys=["ck-5teering"]) as site:
        assert (await get(site, "/", BROWSER, PROXIED))[1]["location"] == "ui/"


@pytest.mark.parametrize("lane", LANES)
async def test_a_post_to_the_root_is_model_traffic(lane: str, tmp_path: Path) -> None:
    async with running_lane(lane, tmp_path) as site, site.client() as client:
        answer = await client.post("/", json={"model": "a"}, headers={"Accept": "text/html"})
        assert answer.text == "ok"


async def led(client: httpx.AsyncClient) -> str | None:
    answer = await client.get("/", headers={"Accept": "text/html"})
    location: str | None = answer.headers.get("location")
    return location


@pytest.mark.parametrize("form", ALL_FORMS)
@pytest.mark.parametrize(
    "control", [{"port": 0}, {"socket": "control.sock"}], ids=["port", "socket"]
)
async def test_with_a_control_listener_its_root_leads_to_the_page(
    control: dict[str, Any], form: str, tmp_path: Path
) -> None:
    async with running_backends(tmp_path, "a") as rack:
        config = rack.write_config(control=control)
        async with running_llmux(config, form) as llmux, llmux.client() as main:
            assert await led(main) is None
            assert (await main.get("/")).text == "llmux is running\n"
            if "port" in control:
                apart = httpx.AsyncClient(base_url=await control_url(llmux), verify=False)
            else:
                apart = by_socket(tmp_path / "control.sock")
            async with apart:
                assert await led(apart) == "ui/"
                assert (await apart.get("/")).text == "llmux is running; its page is at /ui\n"
                # No model is reached from there.
                assert (await apart.post("/", json={"model": "a"})).status_code == 404
            assert rack.hook_log == []
