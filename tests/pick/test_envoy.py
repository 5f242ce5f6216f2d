"""`llmux pick` and its config of Envoy, with a real Envoy in front of three hosts."""

from __future__ import annotations

import signal
from collections.abc import AsyncIterator
from pathlib import Path

import httpx
import pytest
import trio

from tests.pick.stage import Fleet, needs_envoy, running_fleet
from tests.servers import chat

pytestmark = [pytest.mark.slow, needs_envoy]


@pytest.fixture
async def fleet(tmp_path: Path) -> AsyncIterator[Fleet]:
    async with running_fleet(tmp_path) as fleet:
        yield fleet


async def ask(client: httpx.AsyncClient, model: str, **options: object) -> httpx.Response:
    return await client.post("/v1/chat/completions", json=chat(model), **options)  # type: ignore[arg-type]


async def test_models_stay_on_hosts_of_their_own(fleet: Fleet) -> None:
    async with fleet.client() as client:
        for _ in range(4):
            for model in "abc":
                answer = await ask(client, model)
                assert answer.status_code == 200, answer.text
    assert [
        sorted(each.engine.served for each in host.standins.values()) for host in fleet.hosts
    ] == [[0, 0, 4]] * 3
    assert len({fleet.host_of(model).endpoint for model in "abc"}) == 3


async def test_any_content_type_will_do(fleet: Fleet) -> None:
    async with fleet.client() as client:
        for kind in ("application/x-www-form-urlencoded", "application/json", "text/plain"):
            body = b'{"model": "b", "messages": [{"role": "user", "content": "Hi"}]}'
            answer = await client.post(
                "/v1/chat/completions", content=body, headers={"Content-Type": kind}
            )
            assert answer.status_code == 200, answer.text
    assert fleet.host_of("b").standins["b"].engine.served == 3


async def test_clients_cannot_choose_a_host(fleet: Fleet) -> None:
    async with fleet.client() as client:
        await ask(client, "a")
        other = next(host for host in fleet.hosts if host is not fleet.host_of("a"))
        forged = {
            "x-gateway-destination-endpoint": other.endpoint,
            "x-gateway-destination-endpoint-subset": other.endpoint,
            "x-llmux-model": "b",
            "x-gateway-model-name": "b",
            "x-llmux-client": "somebody",
            "x-envoy-upstream-rq-timeout-ms": "1",
        }
        for _ in range(3):
            assert (await ask(client, "a", headers=forged)).status_code == 200
    assert not other.served
    assert fleet.host_of("a").standins["a"].engine.served == 4


async def test_models_are_listed_and_unknown_ones_refused(fleet: Fleet) -> None:
    async with fleet.client() as client:
        listed = (await client.get("/v1/models")).json()["data"]
        assert [each["id"] for each in listed] == ["a", "b", "c"]
        assert listed[0]["llmux"]["hosts"] == 3
        unknown = await ask(client, "nobody")
        assert unknown.status_code == 404
        assert unknown.json()["error"]["code"] == "model_not_found"
        for path in ("/control/status", "/ui/", "/metrics"):
            assert (await client.get(path)).status_code == 404


async def test_bodies_pass_up_to_the_limit(fleet: Fleet) -> None:
    async with fleet.client() as client:
        fitting = await client.post(
            "/v1/chat/completions", json=chat("a", user="x" * (20 << 20)), timeout=60
        )
        assert fitting.status_code == 200, fitting.text
        too_large = await client.post(
            "/v1/chat/completions", json=chat("a", user="x" * (70 << 20)), timeout=60
        )
        assert too_large.status_code == 413


async def test_keys_of_clients_are_checked_and_hidden(tmp_path: Path) -> None:
    async with running_fleet(tmp_path, envoy={"api_keys": ["right"]}) as fleet:
        async with fleet.client() as client:
            assert (await ask(client, "a")).status_code == 401
            for headers in ({"Authorization": "Bearer wrong"}, {"x-llmux-client": "client-1"}):
                assert (await ask(client, "a", headers=headers)).status_code == 401
            for headers in ({"Authorization": "Bearer right"}, {"x-api-key": "right"}):
                assert (await ask(client, "a", headers=headers)).status_code == 200


async def test_a_host_that_is_killed_loses_no_request_without_an_answer(tmp_path: Path) -> None:
    async with running_fleet(
        tmp_path, options={"rate": 20, "tokens": 10}, ends_with=(-9, 0, 0)
    ) as fleet:
        async with fleet.client() as client:
            dead = fleet.hosts[0]
            answers: list[httpx.Response] = []

            async def send(model: str) -> None:
                answers.append(await ask(client, model))

            async with trio.open_nursery() as nursery:
                for number in range(60):
                    nursery.start_soon(send, "abc"[number % 3])
                    await trio.sleep(0.05)
                    if number == 20:
                        dead.llmux.process.kill()
    assert [answer.status_code for answer in answers] == [200] * 60


async def test_a_cordoned_host_gets_no_new_requests(fleet: Fleet) -> None:
    async with fleet.client() as client:
        await ask(client, "a")
        host = fleet.host_of("a")
        await host.order("cordon")
        served = host.served
        for _ in range(5):
            assert (await ask(client, "a")).status_code == 200
        assert host.served == served
        await host.order("uncordon")


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGSTOP], ids=["killed", "frozen"])
async def test_without_a_picker_requests_go_on(tmp_path: Path, number: signal.Signals) -> None:
    async with running_fleet(tmp_path, ["a", "b", "c"], homes="abc") as fleet:
        async with fleet.client() as client:
            for model in "abc":
                await ask(client, model)
            fleet.picker.send_signal(number)
            for count in range(30):
                answer = await ask(client, "abc"[count % 3])
                assert answer.status_code == 200, answer.text
                await trio.sleep(0.05)
            assert (await client.get("/v1/models")).status_code == 200
        fleet.picker.send_signal(signal.SIGKILL)


async def test_streams_are_not_buffered(tmp_path: Path) -> None:
    async with running_fleet(tmp_path, options={"rate": 20, "tokens": 10}) as fleet:
        async with fleet.client() as client:
            async with client.stream(
                "POST", "/v1/chat/completions", json=chat("a", stream=True)
            ) as answer:
                pieces = [piece async for piece in answer.aiter_raw()]
    assert len(pieces) >= 10
