"""The outlook: what it says, when it is told, and that it costs nothing while nobody reads."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import httpx
import msgspec
import pytest
import trio
from trio.testing import MockClock, wait_all_tasks_blocked

from llmux.api.forecasts import Forecasts
from llmux.api.outlook import EVERY_S, Outlooks, most_awake
from llmux.config import ModelConfig
from llmux.observe.events import Events
from llmux.observe.feed import GRACE_S, TICK_S, Feed
from llmux.observe.schemas import Message, Outlook, Pin
from llmux.policy.room import Memory, Needs
from llmux.switching.core import Traits
from tests.fakes import FakeHooks, Rig
from tests.lanes import Site, running_lane

CHAT = "/v1/chat/completions"


# ---- Over HTTP ----


@pytest.fixture
async def site(tmp_path: Path) -> AsyncIterator[Site]:
    async with running_lane("fast", tmp_path, models=("a", "b"), hooks=FakeHooks()) as site:
        yield site


@pytest.fixture
async def client(site: Site) -> AsyncIterator[httpx.AsyncClient]:
    async with site.client() as client:
        yield client


async def outlook_of(client: httpx.AsyncClient) -> Outlook:
    answer = await client.get("/control/outlook")
    assert answer.status_code == 200, answer.text
    return msgspec.json.decode(answer.content, type=Outlook)


async def test_what_a_host_says_of_itself(client: httpx.AsyncClient) -> None:
    before = await outlook_of(client)
    assert (before.state, list(before.models)) == ("ready", ["a", "b"])
    assert before.models["b"].wait_secs is None  # never woken
    assert before.models["b"].arrivals_per_sec == 0
    for model in ("b", "a", "a"):
        await client.post(CHAT, json={"model": model})
    after = await outlook_of(client)
    a, b = after.models["a"], after.models["b"]
    assert (a.awake, a.wait_secs, a.cost_secs, a.refused) == (True, 0, 0, None)
    assert a.arrivals_per_sec > 0
    assert a.latency_secs is not None
    assert not b.awake
    assert after.boot == before.boot
    assert after.at >= before.at


async def test_a_reader_is_told_at_once_of_changes_and_of_the_end(
    site: Site, client: httpx.AsyncClient
) -> None:
    told: list[Outlook] = []

    async def listen() -> None:
        async with client.stream("GET", "/control/events") as answer:
            name = ""
            async for line in answer.aiter_lines():
                kind, _, value = line.partition(": ")
                name = value if kind == "event" else name
                if kind == "data" and name == "outlook":
                    told.append(msgspec.json.decode(value, type=Outlook))

    async def until(condition: Any) -> None:
        with trio.fail_after(5):
            while not condition():
                await trio.sleep(0.005)

    async with trio.open_nursery() as nursery:
        nursery.start_soon(listen)
        await until(lambda: told)
        assert not told[0].models["a"].awake
        await client.post(CHAT, json={"model": "a"})
        await until(lambda: told[-1].models["a"].awake)
        site.service.lifecycle.stop_admitting()
        await until(lambda: told[-1].state == "stopping")
        assert told[-1].models["a"].refused == "shutting_down"
        nursery.cancel_scope.cancel()


# ---- On the virtual clock ----


@dataclass
class Place:
    """A group, and the outlooks of it."""

    rig: Rig
    board: Any
    feed: Feed
    forecasts: Forecasts
    outlooks: Outlooks

    def now(self, model: str) -> Any:
        return self.outlooks.now().models[model]


@asynccontextmanager
async def running(**settings: Any) -> AsyncIterator[tuple[Place, trio.Nursery]]:
    seconds = {(name, hook): s for name in "ab" for hook, s in (("wake", 8.0), ("sleep", 2.0))}
    hooks = FakeHooks(seconds=seconds)
    rig = Rig(hooks=hooks, **settings)
    board: Any = SimpleNamespace(
        groups={"default": rig.switcher},
        host_state="ready",
        config_of=lambda name: ModelConfig(name=name, port=1, wake="w", sleep="s", alive="l"),
    )
    feed, forecasts = Feed(), Forecasts(board)
    outlooks = Outlooks(board, feed, forecasts)
    async with rig.running() as requests, trio.open_nursery() as tasks:
        tasks.start_soon(feed.run)
        tasks.start_soon(outlooks.run)
        for model in ("a", "b", "a"):
            await rig.ask(model, 4)
        yield Place(rig, board, feed, forecasts, outlooks), requests
        tasks.cancel_scope.cancel()


def hello() -> Message:
    return Message(message="hello")


async def test_nothing_is_forecast_while_nobody_reads(
    autojump_clock: MockClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    made: list[float] = []
    refresh = Forecasts.refresh

    async def counted(self: Forecasts) -> None:
        made.append(trio.current_time())
        await refresh(self)

    monkeypatch.setattr(Forecasts, "refresh", counted)
    async with running() as (place, _):
        await trio.sleep(100)
        assert not made
        reader = place.feed.reading(hello)
        await anext(reader)
        began_at = trio.current_time()
        await trio.sleep(10.5 * EVERY_S)
        assert [at - began_at for at in made] == pytest.approx(range(11))
        place.outlooks.hurry()
        await trio.lowlevel.checkpoint()
        await wait_all_tasks_blocked()
        assert made[-1] == trio.current_time()
        await reader.aclose()
        await trio.sleep(GRACE_S + EVERY_S)
        told = len(made)
        await trio.sleep(100)
        assert len(made) == told


async def test_changes_hurry(autojump_clock: MockClock) -> None:
    async with running() as (place, _):
        events = Events()
        place.outlooks.watch(events)
        reader = place.feed.reading(hello)
        await anext(reader)
        await anext(reader)
        await trio.sleep(0.3)
        began_at = trio.current_time()
        events.mode_changed.tell(Any)  # type: ignore[arg-type]
        assert b"event: outlook" in await anext(reader)
        assert trio.current_time() == began_at


async def test_a_host_s_state_is_told_within_a_tick(autojump_clock: MockClock) -> None:
    async with running() as (place, _):
        reader = place.feed.reading(hello)
        await anext(reader)
        assert b'"state":"ready"' in await anext(reader)
        await trio.sleep(0.3)
        place.board.host_state = "dead"
        began_at = trio.current_time()
        assert b'"state":"dead"' in await anext(reader)
        assert trio.current_time() - began_at <= TICK_S


async def test_a_line_for_slots_is_part_of_the_wait(autojump_clock: MockClock) -> None:
    async with running(traits={"a": Traits(max_in_flight=1)}) as (place, requests):
        assert place.now("a").wait_secs == 0
        for _ in range(3):
            requests.start_soon(place.rig.ask, "a", 4)
        await wait_all_tasks_blocked()
        assert (place.now("a").running, place.now("a").waiting) == (1, 2)
        await place.forecasts.refresh()
        expected_s = place.now("a").wait_secs
        waited_s = await place.rig.ask("a")
        assert waited_s == 12
        assert expected_s == pytest.approx(waited_s, rel=0.3)


async def test_later_requests_wait_less_for_a_running_switch(autojump_clock: MockClock) -> None:
    async with running() as (place, requests):
        requests.start_soon(place.rig.ask, "b")
        await trio.sleep(3)
        await place.forecasts.refresh()
        assert place.now("b").wait_secs == pytest.approx(7, abs=0.01)
        await trio.sleep(0.5)
        assert place.now("b").wait_secs == pytest.approx(6.5, abs=0.01)
        assert await place.rig.ask("b") == pytest.approx(6.5, abs=0.01)


async def test_why_a_request_would_be_refused(autojump_clock: MockClock) -> None:
    async with running(queued_per_model=1) as (place, requests):
        switcher = place.rig.switcher
        assert place.now("b").refused is None
        requests.start_soon(place.rig.ask, "b")
        await wait_all_tasks_blocked()
        assert place.now("b").refused == "queue_full"
        await place.rig.ask("a")
        await switcher.pin(Pin(model="a", wait=True))
        assert place.now("b").refused is None
        await switcher.pin(Pin(model="a", wait=False))
        assert (place.now("b").refused, place.now("a").refused) == ("pinned", None)
        switcher.unpin()
        switcher.set_mode("manual")
        assert (place.now("b").refused, place.now("a").refused) == ("manual_mode", None)
        switcher.stop()
        assert place.now("a").refused == "shutting_down"


async def test_in_manual_mode_the_switch_is_taken_to_begin_at_once(
    autojump_clock: MockClock,
) -> None:
    async with running() as (place, _):
        place.rig.switcher.set_mode("manual")
        await place.forecasts.refresh()
        assert place.now("b").wait_secs == 10


async def test_a_scrape_gets_the_last_forecasts_and_asks_for_others(
    autojump_clock: MockClock,
) -> None:
    async with running() as (place, requests), trio.open_nursery() as tasks:
        tasks.start_soon(place.forecasts.run)
        first = place.outlooks.gauges()
        assert (first.waits_s, first.awake, first.wanted) == ({"a": 0, "b": 10}, ["a"], [])
        place.rig.switcher.measures.note_switched("a", "b", 20)
        await wait_all_tasks_blocked()
        place.rig.switcher.measures.note_switched("a", "b", 1000)
        await trio.sleep(15)
        assert place.outlooks.gauges().waits_s["b"] == 13  # of the first scrape
        await wait_all_tasks_blocked()
        assert place.outlooks.gauges().waits_s["b"] == pytest.approx(309.1)
        requests.start_soon(place.rig.ask, "b")
        await wait_all_tasks_blocked()
        during = place.outlooks.gauges()
        assert (during.waiting, during.running, during.awake, during.wanted) == (1, 0, [], ["b"])
        tasks.cancel_scope.cancel()


@pytest.mark.parametrize(
    ("sizes", "most"), [((60, 60, 20), 2), ((90, 90, 90), 1), ((10, 10, 10), 3)]
)
def test_how_many_models_may_be_awake(sizes: tuple[int, ...], most: int) -> None:
    needs = {name: Needs.of((size,)) for name, size in zip("abc", sizes, strict=True)}
    room = SimpleNamespace(
        shared=object(), ledger=SimpleNamespace(memory=Memory(("gpu",), (80,), needs))
    )
    switcher: Any = SimpleNamespace(room=room)
    assert most_awake(switcher) == most
