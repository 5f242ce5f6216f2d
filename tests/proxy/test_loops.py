"""A request that comes back to the llmux that forwarded it is refused, before it wakes anything."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
from wsproto.events import RejectConnection, TextMessage

from llmux.switching.core import Phase
from tests.downstream.test_lanes import body_of, error_code, post, status
from tests.fakes import FakeHooks
from tests.lanes import LANES, Site, running_lane
from tests.proxy.test_first_message import UPDATE, Client, opened

FAMILIES = {
    "/v1/chat/completions": lambda said: said["error"]["code"],
    "/v1/messages": lambda said: said["error"]["details"]["error_code"],
    "/api/chat": lambda said: said["code"],
    "/completion": lambda said: said["error"]["code"],
}


def lead_to(site: Site, port: int, **settings: Any) -> None:
    """Let the model `a` of a running llmux be served at another port."""
    config = site.service.reloader.config.models["a"]
    values = {name: getattr(config, name) for name in config.__struct_fields__}
    site.service.proxy.use("a", type(config)(**{**values, "port": port, **settings}))


def vias(received: bytes) -> list[bytes]:
    return re.findall(rb"(?mi)^via: (.*)\r$", received)


@pytest.mark.parametrize("lane", LANES)
@pytest.mark.parametrize("path", FAMILIES)
async def test_a_model_on_llmux_own_port(lane: str, path: str, tmp_path: Path) -> None:
    async with running_lane(lane, tmp_path) as site, site.client() as client:
        lead_to(site, site.port)
        answer = await client.post(path, json={"model": "a"})
        assert (answer.status_code, FAMILIES[path](answer.json())) == (508, "loop_detected")
        assert answer.headers["x-should-retry"] == "false"
        assert site.backend.received == []


@pytest.mark.parametrize("lane", LANES)
async def test_a_loop_wakes_no_second_model(lane: str, tmp_path: Path) -> None:
    hooks = FakeHooks()
    async with running_lane(lane, tmp_path, models=("a", "b"), hooks=hooks) as site:
        lead_to(site, site.port, upstream_model="b")
        assert status(await site.exchange(post(b'{"model": "a"}'))) == 508
        assert site.service.board.models["b"].phase is Phase.ASLEEP


@pytest.mark.parametrize("lane", LANES)
async def test_a_fallback_that_is_llmux_itself(lane: str, tmp_path: Path) -> None:
    async with running_lane(lane, tmp_path, fallback="http://127.0.0.1:1") as site:
        fallback = site.service.proxy.upstreams.fallback
        assert fallback is not None
        fallback.backend = type(fallback.backend)(f"http://127.0.0.1:{site.port}", dead_peer_s=9)
        answer = await site.exchange(post(b"{}"))
        assert (status(answer), error_code(answer)) == (508, "loop_detected")


@pytest.mark.parametrize("lane", LANES)
async def test_one_llmux_behind_another(lane: str, tmp_path: Path) -> None:
    async with (
        running_lane(lane, tmp_path / "far") as far,
        running_lane(lane, tmp_path / "near") as near,
    ):
        lead_to(near, far.port)
        assert status(await near.exchange(post(b'{"model": "a"}', b"Via: 1.0 edge"))) == 200
        first, *others = vias(far.backend.received[0])
        assert first == b"1.0 edge"
        assert len(set(others)) == 2
        assert all(re.fullmatch(rb"1\.1 llmux-[0-9a-f]{16}", each) for each in others)
        lead_to(far, near.port)
        answer = await near.exchange(post(b'{"model": "a"}'))
        assert (status(answer), error_code(answer)) == (508, "loop_detected")


@pytest.mark.parametrize("lane", LANES)
async def test_a_via_that_joins_all_proxies_and_one_of_the_config(
    lane: str, tmp_path: Path
) -> None:
    async with running_lane(lane, tmp_path) as site:
        await site.exchange(post(b'{"model": "a"}'))
        (own,) = vias(site.backend.received[0])
        for name in (b"Via", b"via", b"VIA"):
            back = post(
                b'{"model": "a"}', b"model-override: a", name + b": 1.0 x, " + own + b", 2 y"
            )
            answer = await site.exchange(back)
            assert (status(answer), json.loads(body_of(answer))["error"]["code"]) == (
                508,
                "loop_detected",
            )
        assert len(site.backend.received) == 1
    headers = {"headers": {"Via": "1.1 mine"}}
    async with running_lane(lane, tmp_path, model_settings=headers) as site:
        other = b"1.1 llmux-" + 16 * b"0"
        await site.exchange(post(b'{"model": "a"}', b"Via: 1.0 x, " + other + b" (y), 2 z"))
        mine, first, own = vias(site.backend.received[0])
        assert (mine, first) == (b"1.1 mine", other)
        assert re.fullmatch(rb"1\.1 llmux-[0-9a-f]{16}", own)


@pytest.mark.parametrize("lane", LANES)
async def test_a_via_of_the_config_hides_no_loop(lane: str, tmp_path: Path) -> None:
    headers = {"headers": {"vIA": "1.1 mine"}}
    async with (
        running_lane(lane, tmp_path / "far", model_settings=headers) as far,
        running_lane(lane, tmp_path / "near", model_settings=headers) as near,
    ):
        lead_to(near, near.port)
        answer = await near.exchange(post(b'{"model": "a"}'))
        assert (status(answer), error_code(answer)) == (508, "loop_detected")
        lead_to(near, far.port)
        lead_to(far, near.port)
        answer = await near.exchange(post(b'{"model": "a"}'))
        assert (status(answer), error_code(answer)) == (508, "loop_detected")
        assert far.backend.received == near.backend.received == []


@pytest.mark.parametrize("lane", LANES)
async def test_websockets(lane: str, tmp_path: Path) -> None:
    async with running_lane(lane, tmp_path) as site:
        lead_to(site, site.port)
        async with await site.connect() as stream:
            refused = await Client(stream).open("/v1/realtime?model=a", [])
            assert isinstance(refused, RejectConnection)
            assert refused.status_code == 508
        async with opened(site) as client:
            await client.say(TextMessage(data=UPDATE))
            told = json.loads(await client.text())
            assert (told["type"], told["error"]["code"]) == ("error", "loop_detected")
        assert site.backend.received == []
