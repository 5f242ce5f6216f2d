"""What llmux's own paths say of a group whose models share memory."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import msgspec
import pytest
import trio
from prometheus_client.parser import text_string_to_metric_families

from llmux.api.memory_status import MemoryFeed, memory_of
from llmux.config import HookName
from llmux.observe import schemas as shapes
from llmux.observe.journal import SharedMemory, Started, Switch, read_journal
from tests.fakes import FakeHooks
from tests.lanes import Site, running_lane

CHAT = "/v1/chat/completions"
GIB = 1 << 30


@dataclass
class RoomyHooks(FakeHooks):
    """Hooks on a GPU with room for several models, whose hooks run one at a time."""

    async def run(self, model: str, hook: HookName, *, source: str = "", target: str = "") -> None:
        key = (model, hook)
        if hook not in {"wake", "sleep", "stop"}:
            await super().run(model, hook, source=source, target=target)
            return
        self.calls.append(key)
        assert self.running is None, f"{key} overlaps {self.running}"
        self.running = key
        self.awake.discard(model)
        try:
            await self._take(key, model, hook)
            if hook == "wake":
                self.awake.add(model)
        finally:
            self.running = None


@pytest.fixture
def hooks() -> FakeHooks:
    return RoomyHooks()


SHARED: dict[str, Any] = {
    "models": ("a", "b", "c"),
    "model_settings": {"needs": {"gpu": "40GiB"}, "needs_asleep": {"ram": "9GiB"}},
    "resources": {"gpu": "80GiB", "ram": "30GiB"},
}
"""Two of three models fit."""


@pytest.fixture
async def site(tmp_path: Path, hooks: FakeHooks) -> AsyncIterator[Site]:
    async with running_lane("fast", tmp_path, hooks=hooks, **SHARED) as site:
        yield site


@pytest.fixture
async def client(site: Site) -> AsyncIterator[httpx.AsyncClient]:
    async with site.client() as client:
        yield client


async def status_of(client: httpx.AsyncClient) -> shapes.Status:
    answer = await client.get("/control/status")
    return msgspec.json.decode(answer.content, type=shapes.Status)


async def group_of(client: httpx.AsyncClient) -> shapes.GroupStatus:
    return (await status_of(client)).groups["default"]


async def order(client: httpx.AsyncClient, path: str, **body: Any) -> str:
    answer = await client.post(f"/control/{path}", json=body)
    assert answer.status_code == 200, answer.text
    message: str = answer.json()["message"]
    return message


def holds(memory: shapes.ResourceMemory) -> dict[str, tuple[int, str]]:
    return {each.model: (each.bytes // GIB, each.holding) for each in memory.held}


async def test_all_models_that_are_awake_are_named(client: httpx.AsyncClient) -> None:
    for model in ("b", "a"):
        await order(client, "wake", model=model)
    status = await status_of(client)
    group = status.groups["default"]
    assert (group.active_model, group.awake_models) == ("a", ["a", "b"])
    assert status.active_model == "a"
    assert [status.models[each].cost_secs for each in "ab"] == [0, 0]
    running = (await client.get("/running")).json()["running"]
    assert [(each["model"], each["state"]) for each in running] == [("a", "ready"), ("b", "ready")]
    processes = (await client.get("/api/ps")).json()["models"]
    assert [each["name"] for each in processes] == ["a", "b"]
    await order(client, "mode", mode="manual")
    refused = await client.post(CHAT, json={"model": "c"})
    assert "(active: a, b)" in refused.json()["error"]["message"]
    assert (await client.get("/unload")).text == "OK"
    assert (await group_of(client)).awake_models == []


async def test_memory_is_held_and_promised(client: httpx.AsyncClient, hooks: FakeHooks) -> None:
    group = await group_of(client)
    gpu, ram = group.memory
    assert (gpu.resource, gpu.amount, gpu.free, gpu.held) == ("gpu", 80 * GIB, 80 * GIB, [])
    assert (ram.free // GIB, holds(ram)) == (3, dict.fromkeys("abc", (9, "asleep")))
    for model in ("a", "b"):
        await order(client, "wake", model=model)
    hooks.gates["a", "sleep"] = trio.Event()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(lambda: client.post(CHAT, json={"model": "c"}))
        with trio.fail_after(5):
            while ("a", "sleep") not in hooks.calls:
                await trio.sleep(0.005)
        gpu, ram = (group := await group_of(client)).memory
        assert holds(gpu) == {"a": (40, "falling"), "b": (40, "awake")}
        assert gpu.free == 0
        (promised,) = gpu.promised
        assert (promised.model, promised.bytes, promised.evicts) == ("c", 40 * GIB, ["a"])
        assert ram.promised == []  # it takes no more than it holds asleep
        (switch,) = group.switches
        assert group.switch == switch
        assert (switch.source, switch.evicts, switch.target) == ("a", ("a",), "c")
        found = (await client.get("/metrics")).text
        families = {each.name: each for each in text_string_to_metric_families(found)}
        held = {
            (each.labels["model"], each.labels["resource"], each.labels["state"]): each.value
            for each in families["llmux_memory_held_bytes"].samples
        }
        assert held == {
            ("a", "gpu", "falling"): 40 * GIB,
            ("a", "ram", "falling"): 9 * GIB,
            ("b", "gpu", "awake"): 40 * GIB,
            ("c", "ram", "asleep"): 9 * GIB,
        }
        hooks.gates["a", "sleep"].set()
    gpu, _ = (await group_of(client)).memory
    assert holds(gpu) == {"b": (40, "awake"), "c": (40, "awake")}
    assert gpu.promised == []


async def test_models_say_what_they_need(client: httpx.AsyncClient, site: Site) -> None:
    model = (await status_of(client)).models["a"]
    assert model.needs == {"gpu": 40 * GIB}
    assert model.needs_asleep == {"ram": 9 * GIB}
    assert model.needs_waking == {"gpu": 40 * GIB, "ram": 9 * GIB}
    assert (model.kept, model.stopped) == (False, False)


async def test_a_model_that_is_awake_alone_needs_an_unknown_amount(tmp_path: Path) -> None:
    settings = {**SHARED, "model_settings": {"needs": "auto", "keep": True}}
    async with (
        running_lane("fast", tmp_path, hooks=RoomyHooks(), **settings) as site,
        site.client() as client,
    ):
        status = await status_of(client)
        assert [each.resource for each in status.groups["default"].memory] == ["gpu", "ram"]
        model = status.models["a"]
        assert (model.needs, model.needs_waking, model.needs_asleep) == (None, None, {})
        assert model.kept


async def test_pins_are_taken_back_one_by_one(client: httpx.AsyncClient, site: Site) -> None:
    for model in ("a", "b"):
        await order(client, "pin", model=model)
    group = await group_of(client)
    assert [each.model for each in group.pins] == ["b", "a"]
    assert group.pinned == group.pins[0]
    refused = await client.post(CHAT, json={"model": "c"})
    assert refused.json()["error"]["code"] == "pinned"
    assert await order(client, "unpin", model="b") == "Unpinned model: b"
    assert [each.model for each in (await group_of(client)).pins] == ["a"]
    assert (await client.post(CHAT, json={"model": "c"})).status_code == 200
    assert (await group_of(client)).awake_models == ["a", "c"]


@pytest.mark.parametrize(
    ("body", "status", "said"),
    [
        ({"model": "x"}, 404, "x"),
        ({"model": "a", "group": "default"}, 400, "give a model or a group, not both"),
    ],
    ids=["unknown", "both"],
)
async def test_an_order_to_unpin_may_be_wrong(
    client: httpx.AsyncClient, body: dict[str, str], status: int, said: str
) -> None:
    answer = await client.post("/control/unpin", json=body)
    assert answer.status_code == status
    assert said in answer.json()["error"]["message"]


async def test_events_tell_of_pins_and_memory(client: httpx.AsyncClient, site: Site) -> None:
    events: list[tuple[str, Any]] = []
    async with trio.open_nursery() as nursery:

        async def listen() -> None:
            async with client.stream("GET", "/control/events") as answer:
                name = ""
                async for line in answer.aiter_lines():
                    kind, _, value = line.partition(": ")
                    name = value if kind == "event" else name
                    if kind == "data":
                        events.append((name, json.loads(value)))

        nursery.start_soon(listen)
        with trio.fail_after(5):
            while not site.service.feed._readers:
                await trio.sleep(0.005)
            await order(client, "pin", model="a")
            while not any(name == "memory" for name, _ in events):
                await trio.sleep(0.005)
        nursery.cancel_scope.cancel()
    (pin,) = (data for name, data in events if name == "pin")
    assert (pin["group"], pin["pinned"]["model"]) == ("default", "a")
    assert [each["model"] for each in pin["pins"]] == ["a"]
    change = next(data for name, data in events if name == "memory")
    gpu = change["groups"]["default"][0]
    assert (gpu["resource"], gpu["held"]) == (
        "gpu", [{"model": "a", "bytes": 40 * GIB, "as": "awake"}],
    )  # fmt: skip


async def test_a_watch_tells_of_changes_only(site: Site, client: httpx.AsyncClient) -> None:
    board = site.service.board
    watch = MemoryFeed(board, site.service.feed.clock)
    news = watch.news()
    assert news is not None
    assert news[1].groups == {"default": memory_of(board.groups["default"])}
    assert watch.news() is None
    board.groups["default"].use_memory(None)  # a reload: one model is awake at a time
    news = watch.news()
    assert news is not None
    assert news[1].groups == {"default": []}
    assert watch.now() == {}
    assert (await group_of(client)).memory == []


async def test_where_one_is_awake_at_a_time_there_is_no_memory(tmp_path: Path) -> None:
    async with running_lane("fast", tmp_path) as site, site.client() as client:
        await order(client, "pin", model="a")
        status = await status_of(client)
        group, model = status.groups["default"], status.models["a"]
        assert (group.awake_models, group.memory, group.switches) == (["a"], [], [])
        assert group.pins == [group.pinned]
        assert (model.needs, model.needs_asleep, model.needs_waking) == (None, None, None)
        text = (await client.get("/metrics")).text
        assert "llmux_memory_bytes{" not in text


async def test_the_journal_has_what_a_replay_needs(tmp_path: Path) -> None:
    settings = {**SHARED, "overlapping_hooks": True, "busy": 2}
    async with (
        running_lane("fast", tmp_path, hooks=RoomyHooks(), **settings) as site,
        site.client() as client,
    ):
        for model in ("a", "b", "c"):
            assert (await client.post(CHAT, json={"model": model})).status_code == 200
    entries = list(read_journal(tmp_path / "journal.jsonl"))
    (started,) = (each for each in entries if isinstance(each, Started))
    assert started.memory["default"] == SharedMemory(
        resources={"gpu": 80 * GIB, "ram": 30 * GIB},
        awake={each: {"gpu": 40 * GIB} for each in "abc"},
        asleep={each: {"ram": 9 * GIB} for each in "abc"},
        touches={each: ["gpu"] for each in "abc"},
        overlapping_hooks=True,
        keep=[],
        busy=2,
    )
    switches = [each for each in entries if isinstance(each, Switch)]
    assert [(each.source, list(each.evicts), each.target) for each in switches] == [
        (None, [], "a"), (None, [], "b"), ("a", ["a"], "c"),
    ]  # fmt: skip
