"""What clients notice when hosts and the picker fail, are emptied or restarted: with a real Envoy."""

from __future__ import annotations

import signal
from pathlib import Path

import httpx
import pytest
import trio

from tests.pick.stage import Fleet, Host, ask, needs_envoy, running_fleet
from tests.servers import chat

pytestmark = [pytest.mark.slow, needs_envoy]


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


async def test_a_cordoned_host_gets_no_new_requests(tmp_path: Path) -> None:
    async with running_fleet(tmp_path) as fleet, fleet.client() as client:
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


@pytest.mark.parametrize("is_emptied", [True, False], ids=["cordoned", "at once"])
async def test_hosts_are_restarted_one_after_the_other(tmp_path: Path, is_emptied: bool) -> None:
    async with running_fleet(tmp_path, options={"rate": 20, "tokens": 10}) as fleet:
        async with fleet.client() as client, trio.open_nursery() as nursery:
            answers: list[httpx.Response] = []
            is_over = False

            async def send(model: str) -> None:
                answers.append(await ask(client, model))

            async def load() -> None:
                while not is_over:
                    for model in "abc":
                        nursery.start_soon(send, model)
                        await trio.sleep(0.03)

            nursery.start_soon(load)
            for host in fleet.hosts:
                if is_emptied:
                    await host.order("cordon")
                    await until_idle(host)
                await host.restart()
                await until_heard(fleet, host)
            is_over = True
    assert len(answers) > 20
    assert {answer.status_code for answer in answers} == {200}


async def until_idle(host: Host) -> None:
    with trio.fail_after(30):
        while host.in_flight:
            await trio.sleep(0.05)


async def until_heard(fleet: Fleet, host: Host) -> None:
    """Wait until the picker knows that a host takes requests."""
    series = f'llmux_pick_host_ready{{host="{host.endpoint}"}} 1.0'
    async with httpx.AsyncClient() as client:
        with trio.fail_after(30):
            while series not in (await client.get(f"{fleet.web}/metrics")).text:
                await trio.sleep(0.05)


async def test_a_refusal_that_another_host_may_serve_moves_on(tmp_path: Path) -> None:
    """Without a picker, Envoy learns of it by the header only."""
    async with running_fleet(tmp_path, ["a", "a"], homes="a") as fleet:
        async with fleet.client() as client:
            fleet.picker.kill()
            await fleet.hosts[0].order("cordon")
            assert (await ask(client, "a")).status_code == 200
            await fleet.hosts[1].order("cordon")
            refused = await ask(client, "a")
            assert refused.status_code == 503


async def test_streams_that_have_begun_end_with_their_host(tmp_path: Path) -> None:
    async with running_fleet(
        tmp_path, ["a", "a"], options={"rate": 10, "tokens": 50}, ends_with=(-9, 0)
    ) as fleet:
        async with fleet.client() as client:
            first, second = fleet.hosts
            await second.order("cordon")
            url, body = "/v1/chat/completions", chat("a", stream=True)
            async with client.stream("POST", url, json=body) as answer:
                with pytest.raises(httpx.RemoteProtocolError):
                    async for _ in answer.aiter_raw():
                        first.llmux.process.kill()
            await second.order("uncordon")
            assert (await ask(client, "a")).status_code == 200
