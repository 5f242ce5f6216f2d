"""Requests that only look at a model: they wake nothing, count as no use, and are not cut."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
import trio
from trio.testing import MockClock

from llmux.config import parse_config
from llmux.errors import ConfigError, ModelAsleep
from llmux.http.paths import PASSIVE_PATHS, PassivePaths
from llmux.observe.journal import Journal
from llmux.switching.hints import PASSIVE
from llmux.switching.idle import IdleRules
from llmux.switching.model import Phase, Traits
from tests.downstream.test_lanes import error_code, post, status
from tests.fakes import FakeHooks, Rig
from tests.lanes import LANES, OK, Site, running_lane
from tests.servers import ALL_FORMS, chat, running_backends, running_llmux

SLEEPY = {"a": Traits(idle_sleep_s=60)}


async def look(rig: Rig, model: str, seconds: float = 0) -> None:
    async with rig.switcher.serving(model, hints=PASSIVE), rig.hooks.request(model):
        await trio.sleep(seconds)


async def in_vain(rig: Rig, model: str) -> str:
    with pytest.raises(ModelAsleep) as caught:
        await look(rig, model)
    return caught.value.message


# ---- The switcher ----


async def test_it_wakes_nothing(autojump_clock: MockClock) -> None:
    rig = Rig()
    async with rig.running():
        assert "(asleep)" in await in_vain(rig, "a")
        await rig.ask("a")
        await look(rig, "a")
        await in_vain(rig, "b")
        assert rig.hooks.calls == [("a", "wake")]


@pytest.mark.parametrize("phase", [phase for phase in Phase if phase is not Phase.AWAKE])
async def test_only_a_model_that_is_awake_is_looked_at(
    phase: Phase, autojump_clock: MockClock
) -> None:
    """Most of all not one that drains: a sleep may be about to begin."""
    rig = Rig()
    rig.switcher.models["a"].phase = phase
    assert f"({phase.value})" in await in_vain(rig, "a")


async def test_a_sleep_waits_for_it(autojump_clock: MockClock) -> None:
    rig = Rig()
    async with rig.running() as requests:
        await rig.ask("a")
        requests.start_soon(look, rig, "a", 100)
        await trio.sleep(1)
        assert await rig.ask("b") == pytest.approx(99, abs=0.1)
        assert rig.hooks.served == {"a": 2, "b": 1}


async def test_it_does_not_put_off_the_idle_sleep(autojump_clock: MockClock) -> None:
    rig = Rig(traits=SLEEPY)
    async with rig.running():
        await rig.ask("a")
        for _ in range(59):
            await look(rig, "a")
            await trio.sleep(1)
        assert rig.hooks.awake == {"a"}
        await trio.sleep(2)
        assert rig.hooks.awake == set()


async def test_a_long_look_does_not_put_off_the_idle_sleep_longer_than_it_lasts(
    autojump_clock: MockClock,
) -> None:
    rig = Rig(traits=SLEEPY)
    async with rig.running() as requests:
        await rig.ask("a")
        requests.start_soon(look, rig, "a", 1000)
        await rig.ask("a", 10)
        await trio.sleep(61)
        assert rig.switcher.models["a"].phase is Phase.DRAINING
        await in_vain(rig, "a")
        await trio.sleep(950)
        assert rig.hooks.awake == set()


async def test_a_standby_comes_though_others_are_looked_at(autojump_clock: MockClock) -> None:
    rig = Rig(idle_rules=IdleRules(standby="b", standby_after_s=10))
    async with rig.running():
        await rig.ask("a")
        for _ in range(9):
            await trio.sleep(1)
            await look(rig, "a")
        await trio.sleep(2)
        assert rig.hooks.awake == {"b"}


async def test_it_takes_no_slot_and_waits_for_none(autojump_clock: MockClock) -> None:
    rig = Rig(traits={"a": Traits(max_in_flight=1)})
    async with rig.running() as requests:
        requests.start_soon(rig.ask, "a", 100)
        await trio.sleep(1)
        began = trio.current_time()
        await look(rig, "a")
        assert trio.current_time() == began
        requests.start_soon(look, rig, "a", 500)
        await trio.sleep(1)
        assert await rig.ask("a") == pytest.approx(98, abs=0.1)
        assert rig.switcher.models["a"].in_flight.count == 1


async def test_a_frozen_one_is_no_reason_to_switch_back(autojump_clock: MockClock) -> None:
    rig = Rig(traits={"a": Traits(preserves_in_flight=True)})
    async with rig.running() as requests:
        await rig.ask("a")
        requests.start_soon(look, rig, "a", 100)
        await trio.sleep(1)
        await rig.ask("b")
        await trio.sleep(1000)
        assert rig.hooks.awake == {"b"}
        assert rig.switcher.models["a"].wanted_by == 0


async def test_policies_and_measures_see_nothing_of_it(autojump_clock: MockClock) -> None:
    rig = Rig()
    async with rig.running() as requests:
        await rig.ask("a")
        requests.start_soon(look, rig, "a", 100)
        await trio.sleep(1)
        model = rig.switcher.models["a"]
        assert (model.in_flight.count, model.view().in_flight) == (1, 0)
        async with rig.switcher.serving("a") as serving:
            assert serving.flight is not None
            assert serving.flight.company == 1
    assert model.in_flight.passive == 0


async def test_pins_and_manual_mode_do_not_keep_it_from_what_is_awake(
    autojump_clock: MockClock,
) -> None:
    rig = Rig()
    async with rig.running():
        await rig.switcher.force_switch("a")
        rig.switcher.set_mode("manual")
        await look(rig, "a")
        await in_vain(rig, "b")


# ---- Which paths ----


@pytest.mark.parametrize(
    ("target", "is_passive"),
    [
        (b"/metrics", True),
        (b"/metrics?x=1", True),
        (b"//metrics/", True),
        (b"/m%65trics", True),
        (b"/metrics/x", False),
        (b"/v1/models/org/name", True),
        (b"/v1/models", True),
        (b"/slots", True),
        (b"/slots/0", False),
        (b"/v1/chat/completions", False),
        (b"/v1/messages", False),
        (b"/v1/messages/count_tokens", True),
        (b"/api/chat", False),
        (b"/api/show", True),
        (b"/", False),
        (b"*", False),
        (b"", False),
    ],
)
def test_the_default_paths(target: bytes, is_passive: bool) -> None:
    assert PassivePaths(PASSIVE_PATHS).has(target) is is_passive


def test_patterns_and_the_word_for_the_default() -> None:
    paths = PassivePaths(["/stats/*", "defaults", "/x/"])
    assert all(map(paths.has, (b"/stats/", b"/stats/a/b", b"/metrics", b"/x", b"/x/")))
    assert not any(map(paths.has, (b"/stats", b"/y", b"")))
    assert not any(map(PassivePaths([]).has, (b"/metrics", b"/")))
    assert PassivePaths(["/"]).has(b"/?x")


@pytest.mark.parametrize("given", ["metrics", "", "/a b", "/a?b", "/a#b", "/\\", "default"])
def test_what_is_no_path_is_a_mistake(given: str, tmp_path: Path) -> None:
    model = {"port": 1, "wake": "w", "sleep": "s", "alive": "a", "passive": [given]}
    with pytest.raises(ConfigError) as caught:
        parse_config({"models": {"a": model}, "passive": [given]}, directory=tmp_path)
    assert [each.partition(":")[0] for each in caught.value.mistakes] == [
        "models.a.passive[0]",
        "passive[0]",
    ]


# ---- On the lanes ----


def get(target: bytes, *headers: bytes) -> bytes:
    lines = [b"GET %b HTTP/1.1" % target, b"Host: h", b"Connection: close", *headers]
    return b"\r\n".join([*lines, b"", b""])


@pytest.fixture(params=LANES)
async def site(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[Site]:
    hooks = FakeHooks()
    async with running_lane(request.param, tmp_path, models=("a", "b"), hooks=hooks) as site:
        yield site


LOOKS = [
    get(b"/upstream/a/metrics"),
    get(b"/upstream/a/v1/models"),
    get(b"/upstream/a//props/"),
    get(b"/props?model=a"),
    get(b"/version", b"model-override: a"),
    post(b'{"model": "a", "content": "x"}').replace(b"/v1/chat/completions", b"/tokenize", 1),
    post(b'{"model": "a"}').replace(b"chat/completions", b"messages/count_tokens", 1),
]


@pytest.mark.parametrize("request_", LOOKS)
async def test_a_look_is_served_if_the_model_is_awake(site: Site, request_: bytes) -> None:
    answer = await site.exchange(request_)
    assert (status(answer), error_code(answer)) == (503, "model_asleep")
    head = answer.partition(b"\r\n\r\n")[0].lower()
    assert b"x-should-retry: false" in head
    assert b"retry-after" not in head
    assert site.service.board.models["a"].phase is Phase.ASLEEP
    assert site.backend.received == []
    metrics = await site.exchange(get(b"/metrics"))
    assert b'llmux_requests_total{model="a"' not in metrics
    assert status(await site.exchange(post(b'{"model": "a"}'))) == 200
    assert status(await site.exchange(request_)) == 200
    assert len(site.backend.received) == 2


async def test_a_refused_look_does_not_wait_for_the_model_to_be_well(site: Site) -> None:
    assert status(await site.exchange(post(b'{"model": "a"}'))) == 200
    proxy = site.service.proxy
    config = site.service.reloader.config.models["a"]
    values = {name: getattr(config, name) for name in config.__struct_fields__}
    proxy.use("a", type(config)(**{**values, "port": 1}))
    answer = await site.exchange(get(b"/upstream/a/metrics"))
    assert (status(answer), error_code(answer)) == (502, "backend_error")
    assert site.service.board.models["a"].phase is Phase.AWAKE


async def test_never_switch_needs_no_setting_and_no_hint_is_forwarded(site: Site) -> None:
    hints = [b"x-llmux-switch: never", b"X-LLMux-Priority: 3", b"x-llmux-max-wait: 1"]
    answer = await site.exchange(post(b'{"model": "a"}', *hints))
    assert (status(answer), error_code(answer)) == (409, "would_switch")
    assert b"x-should-retry: false" in answer.partition(b"\r\n\r\n")[0].lower()
    assert status(await site.exchange(post(b'{"model": "a"}'))) == 200
    assert status(await site.exchange(post(b'{"model": "a"}', *hints))) == 200
    assert b"x-llmux-" not in site.backend.received[-1].lower()


async def test_looks_are_not_in_the_journal(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    journal: Journal = site.service.journal
    added: list[Any] = []
    monkeypatch.setattr(journal, "add", added.append)
    assert status(await site.exchange(post(b'{"model": "a"}'))) == 200
    await site.until_idle()
    before = len(added)
    for request in LOOKS:
        assert status(await site.exchange(request)) == 200
    assert len(added) == before


@pytest.mark.parametrize("lane", LANES)
async def test_the_list_of_a_model_stands_in_place_of_the_files(lane: str, tmp_path: Path) -> None:
    async with running_lane(lane, tmp_path, models=("a", "b"), passive=["/mine"]) as site:
        config = site.service.reloader.config
        data = {
            "models": {
                name: {
                    "port": site.backend.port,
                    "wake": "up",
                    "sleep": "down",
                    "alive": "ping",
                    **({"passive": ["defaults", "/its"]} if name == "b" else {}),
                }
                for name in ("a", "b")
            },
            "passive": ["/mine"],
            "state_dir": str(config.state_dir),
        }
        site.service.reloader.apply(parse_config(data, directory=tmp_path))
        for target in (b"/upstream/a/mine", b"/upstream/b/its", b"/upstream/b/metrics"):
            assert status(await site.exchange(get(target))) == 503
        for target in (b"/upstream/a/metrics", b"/upstream/b/mine"):
            assert status(await site.exchange(get(target))) == 200


async def test_a_look_in_mid_answer_is_not_cut_by_a_switch(site: Site) -> None:
    assert status(await site.exchange(post(b'{"model": "a"}'))) == 200
    go_on = trio.Event()

    async def slow(stream: trio.SocketStream, request: bytes) -> None:
        if b"/metrics" in request:
            await stream.send_all(b"HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\nab")
            await go_on.wait()
            await stream.send_all(b"cd")
        else:
            await stream.send_all(OK)

    site.backend.play = slow
    answers: dict[str, bytes] = {}

    async def ask(name: str, request: bytes) -> None:
        answers[name] = await site.exchange(request)

    async with trio.open_nursery() as nursery:
        nursery.start_soon(ask, "look", get(b"/upstream/a/metrics"))
        while not site.in_flight:
            await trio.sleep(0.001)
        nursery.start_soon(ask, "b", post(b'{"model": "b"}'))
        while site.service.board.models["a"].phase is not Phase.DRAINING:
            await trio.sleep(0.001)
        assert status(await site.exchange(get(b"/upstream/a/metrics"))) == 503
        go_on.set()
    assert answers["look"].endswith(b"abcd")
    assert status(answers["b"]) == 200


@pytest.mark.parametrize("form", ALL_FORMS)
async def test_a_scrape_switches_nothing(form: str, tmp_path: Path) -> None:
    async with (
        running_backends(tmp_path, "a", "b") as rack,
        running_llmux(rack.write_config(), form) as llmux,
        llmux.client() as client,
    ):
        answer = await client.get("/upstream/b/metrics")
        assert (answer.status_code, answer.json()["error"]["code"]) == (503, "model_asleep")
        assert (await client.post("/v1/chat/completions", json=chat("a"))).status_code == 200
        assert (await client.get("/upstream/a/metrics")).status_code == 200
        assert (await client.get("/upstream/b/metrics")).status_code == 503
        assert rack.hook_log == ["a wake"]
