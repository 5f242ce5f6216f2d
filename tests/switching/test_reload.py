"""Another config while serving: what is at once, what waits, what is refused; nothing is lost."""

from __future__ import annotations

import json
import os
import signal
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path
from typing import Any

import httpx
import pytest
import trio
from trio.testing import MockClock, wait_all_tasks_blocked

from llmux.config import Config, ModelConfig, parse_config
from llmux.errors import ConfigError, HookError, LlmuxError, ModelFailing
from llmux.observe.events import Events
from llmux.switching.awake import AwakeRecord
from llmux.switching.reload import Reloader
from llmux.switching.switchboard import Switchboard
from tests.fakes import FakeHooks, Rig
from tests.servers import Rack, chat, running_backends, running_llmux

CHAT = "/v1/chat/completions"


def model(port: int = 1, **more: Any) -> dict[str, Any]:
    return {"port": port, "wake": "up", "sleep": "down", "alive": "ping", **more}


def config_of(models: dict[str, Any], **more: Any) -> Config:
    data = {
        "state_dir": "s",
        "policy": {"name": "fifo", "alive_interval_secs": 0},
        **more,
        "models": models,
    }
    return parse_config(data, directory=Path())


class Site:
    """Switchers on a fake GPU, and what they were told."""

    def __init__(self, models: dict[str, Any], **more: Any) -> None:
        config = config_of(models, **more)
        self.hooks = FakeHooks()
        self.board = Switchboard(config, self.hooks, Events())
        self.reloader = Reloader(config, self.board)
        self.told: list[tuple[str, int | None]] = []
        self.reloader.tell(of_models=self._note)

    def _note(self, name: str, config: ModelConfig | None) -> None:
        self.told.append((name, config.port if config else None))

    async def ask(self, name: str, seconds: float = 0) -> None:
        async with self.board.serving(name), self.hooks.request(name):
            await trio.sleep(seconds)

    def apply(self, models: dict[str, Any], **more: Any) -> None:
        self.reloader.apply(config_of(models, **more))

    @asynccontextmanager
    async def running(self) -> AsyncIterator[trio.Nursery]:
        with trio.fail_after(100_000):
            async with trio.open_nursery() as beside:
                beside.start_soon(self.board.run)
                async with trio.open_nursery() as requests:
                    yield requests
                for each in self.board.models.values():
                    assert (each.in_flight.count, each.waiters.count) == (0, 0)
                beside.cancel_scope.cancel()


async def test_a_model_that_did_not_change_is_not_touched(autojump_clock: MockClock) -> None:
    site = Site({"a": model(), "b": model(2)})
    async with site.running() as requests:
        requests.start_soon(site.ask, "a", 100)
        await trio.sleep(1)
        site.apply({"a": model(), "b": model(3), "c": model(4)})
        await trio.sleep(1)
        assert site.hooks.calls == [("a", "wake")]
        assert site.told == [("b", 3), ("c", 4)]
        assert site.board.active_model == "a"
        await site.ask("c")
        assert site.board.model_port("b") == 3


async def test_a_model_that_is_awake_changes_once_it_is_drained(autojump_clock: MockClock) -> None:
    site = Site({"a": model()})
    async with site.running() as requests:
        requests.start_soon(site.ask, "a", 100)
        await trio.sleep(1)
        site.apply({"a": model(2)})
        await trio.sleep(1)
        requests.start_soon(site.ask, "a", 1)  # waits, and is served by the new one
        await trio.sleep(1)
        assert site.told == []
        assert site.board.model_port("a") == 1
        await trio.sleep(100)
        assert site.told == [("a", 2)]
        assert site.hooks.calls == [("a", "wake"), ("a", "sleep"), ("a", "wake")]


async def test_what_needs_no_sleep_changes_at_once(autojump_clock: MockClock) -> None:
    site = Site({"a": model(max_in_flight=1)})
    async with site.running() as requests:
        for _ in range(3):
            requests.start_soon(site.ask, "a", 10)
        await trio.sleep(1)
        assert site.board.in_flight_count("a") == 1
        site.apply({"a": model(max_in_flight=3, aliases=["x"], hook_timeouts={"wake": 9})})
        await wait_all_tasks_blocked()
        assert site.told == [("a", 1)]
        assert site.board.in_flight_count("a") == 3
        assert site.hooks.calls == [("a", "wake")]


async def test_a_model_that_is_gone_serves_who_waits_for_it(autojump_clock: MockClock) -> None:
    site = Site({"a": model(), "b": model(2)})
    async with site.running() as requests:
        requests.start_soon(site.ask, "b", 10)
        await trio.sleep(1)
        requests.start_soon(site.ask, "a", 5)
        await trio.sleep(1)
        site.apply({"b": model(2)})
        await trio.sleep(1)
        assert site.told == []
        await trio.sleep(30)
        assert site.told == [("a", None)]
        assert site.hooks.calls[-1] == ("a", "sleep")
        assert site.hooks.served == {"a": 1, "b": 1}
        with pytest.raises(LlmuxError, match="Model not found: a"):
            await site.ask("a")
        assert list(site.board.models) == ["b"]


async def test_a_model_that_is_gone_leaves_no_measures(autojump_clock: MockClock) -> None:
    site = Site({"b": model(2)})
    measures = site.board.groups["default"].measures
    async with site.running() as requests:
        for goes in ("asleep", "awake", "with a switch"):
            site.apply({"a": model(), "b": model(2)})
            for name in ("b", "a", "b", "a"):
                requests.start_soon(site.ask, name, 5)
                await trio.sleep(2)
            await trio.sleep(20)
            assert "'a'" in repr(vars(measures))
            if goes == "asleep":
                await site.ask("b")
                await wait_all_tasks_blocked()  # the switch is over
            elif goes == "with a switch":
                requests.start_soon(site.ask, "a", 5)
                await trio.sleep(1)
                requests.start_soon(site.ask, "b", 5)
                await trio.sleep(1)
            site.apply({"b": model(2)})
            await trio.sleep(20)
            assert site.told[-1] == ("a", None)
            assert "'a'" not in repr(vars(measures)), goes


async def test_a_model_that_is_gone_and_comes_back_stays(autojump_clock: MockClock) -> None:
    site = Site({"a": model(), "b": model(2)})
    async with site.running() as requests:
        requests.start_soon(site.ask, "a", 10)
        await trio.sleep(1)
        site.apply({"b": model(2)})
        await trio.sleep(1)
        site.apply({"a": model(5), "b": model(2)})
        await trio.sleep(20)
        assert site.told == [("a", 5)]
        await site.ask("a")
        assert list(site.board.models) == ["a", "b"]


async def test_a_target_that_is_removed_while_its_switch_runs(autojump_clock: MockClock) -> None:
    """Its waiter leaves, too; what the switch has woken is put to sleep again."""
    site = Site({"a": model(), "b": model(2)})
    async with site.running() as requests:
        requests.start_soon(site.ask, "a", 10)
        await trio.sleep(1)
        with trio.move_on_after(2):
            async with trio.open_nursery() as leaving:
                leaving.start_soon(site.ask, "b")
                await trio.sleep(1)
                site.apply({"a": model()})
        await trio.sleep(60)
        assert site.told == [("b", None)]
        await site.ask("a")
        assert site.hooks.awake == {"a"}


async def test_a_new_group_gets_its_own_switcher(autojump_clock: MockClock) -> None:
    site = Site({"a": model()})
    async with site.running() as requests:
        requests.start_soon(site.ask, "a", 10)
        await trio.sleep(1)
        site.hooks.awake.clear()  # the fake has one GPU
        site.apply({"a": model(), "g": model(2, group="second")})
        with trio.fail_after(5):
            await site.ask("g")
        site.hooks.awake.add("a")


async def test_a_group_whose_last_model_has_gone_goes_too(autojump_clock: MockClock) -> None:
    site = Site({"a": model(), "b": model(2, group="second"), "c": model(3, group="third")})
    second = site.board.groups["second"]
    async with site.running() as requests:
        requests.start_soon(site.ask, "b", 50)
        await trio.sleep(1)
        late = site.board.serving("b")
        site.apply({"a": model(), "d": model(4, group="third")})
        assert list(site.board.groups) == ["default", "second", "third"]
        await trio.sleep(100)
        assert list(site.board.groups) == ["default", "third"]
        assert site.board.is_healthy
        assert not second.has_died
        with pytest.raises(LlmuxError, match="Model not found: b"):
            await late.__aenter__()
        site.apply({"a": model(), "b": model(2, group="second")})
        await site.ask("b")
        assert site.board.state == "active"


async def test_a_model_in_use_cannot_change_its_group(autojump_clock: MockClock) -> None:
    site = Site({"a": model(), "b": model(2)})
    async with site.running():
        await site.ask("a")
        await wait_all_tasks_blocked()  # the switch is over
        with pytest.raises(ConfigError, match=r"models\.a\.group: cannot change while"):
            site.apply({"a": model(group="x"), "b": model(9)})
        assert site.told == [], "a config that is refused changes nothing"
        site.apply({"a": model(), "b": model(2, group="x")})
        assert site.told == [("b", None), ("b", 2)]


async def test_what_the_start_of_llmux_forbids_is_refused(autojump_clock: MockClock) -> None:
    site = Site({"a": model()})
    async with site.running():
        site.reloader.vet = lambda config: [
            (("models", name, "port"), "is llmux's own port")
            for name in config.models
            if name != "a"
        ]
        with pytest.raises(ConfigError, match=r"models\.b\.port: is llmux's own port"):
            site.apply({"a": model(9), "b": model(2)})
        assert site.told == [], "a config that is refused changes nothing"
        site.apply({"a": model(9)})


async def test_another_policy_decides_at_once(autojump_clock: MockClock) -> None:
    models = {"a": model(), "b": model(2)}
    site = Site(models, policy={"name": "fifo", "min_active_secs": 1000})
    async with site.running() as requests:
        await site.ask("a")
        requests.start_soon(site.ask, "b")
        await trio.sleep(10)
        assert site.board.active_model == "a"
        site.apply(models, policy={"name": "adaptive"})
        await trio.sleep(1)
        assert site.board.active_model == "b"


def test_a_restart_is_asked_for_until_the_config_is_again_what_llmux_was_started_with() -> None:
    site = Site({"a": model()}, port=3000)
    asked = [
        site.reloader.apply(config_of({"a": model()}, port=port))
        for port in (3001, 3001, 3002, 3000, 3000)
    ]
    assert asked == [["port"], ["port"], ["port"], [], []]


# ---- A real llmux ----


async def until(found: Callable[[], bool]) -> None:
    with trio.fail_after(10):
        while not found():
            await trio.sleep(0.02)


@pytest.fixture
async def rack(tmp_path: Path) -> AsyncIterator[Rack]:
    async with running_backends(tmp_path, "a", "b") as rack:
        yield rack


def write(rack: Rack, *names: str, **settings: Any) -> None:
    models = {name: rack.model(name) for name in names}
    config = {"port": 0, "state_dir": "state", "models": models, **settings}
    new = rack.folder / "new.json"
    new.write_text(json.dumps(config))
    new.replace(rack.folder / "llmux.json")


@pytest.mark.parametrize("how", ["SIGHUP", "--watch"])
async def test_models_come_and_go(rack: Rack, how: str) -> None:
    write(rack, "a")
    config = rack.folder / "llmux.json"
    arguments = ["--watch"] if how == "--watch" else []
    async with running_llmux(config, "llmux", *arguments) as llmux, llmux.client() as client:

        async def reload(*names: str) -> None:
            count = sum("reloaded" in line for line in llmux.lines)
            write(rack, *names)
            if how == "SIGHUP":
                os.kill(llmux.process.pid, signal.SIGHUP)
            await until(lambda: sum("reloaded" in line for line in llmux.lines) > count)

        assert (await client.post(CHAT, json=chat("a"))).status_code == 200
        assert (await client.post(CHAT, json=chat("b"))).status_code == 404
        await reload("a", "b")
        assert rack.hook_log == ["a wake"]
        assert (await client.post(CHAT, json=chat("b"))).json()["served_by"] == "b"
        async with trio.open_nursery() as nursery:
            answers: list[httpx.Response] = []

            async def ask() -> None:
                answers.append(await client.post(CHAT, json=chat("b", seconds=0.5)))

            nursery.start_soon(ask)
            await trio.sleep(0.2)
            await reload("a")
            assert (await client.post(CHAT, json=chat("b"))).status_code == 404
        assert [answer.status_code for answer in answers] == [200]
        assert [m["id"] for m in (await client.get("/v1/models")).json()["data"]] == ["a"]
        assert (await client.post(CHAT, json=chat("a"))).status_code == 200


async def test_a_bad_file_changes_nothing_and_says_why(rack: Rack) -> None:
    write(rack, "a", "b")
    config = rack.folder / "llmux.json"
    async with running_llmux(config) as llmux, llmux.client() as client:
        assert (await client.post(CHAT, json=chat("a"))).status_code == 200

        async def reload_in_vain(text: str, *, says: str) -> None:
            config.write_text(text)
            os.kill(llmux.process.pid, signal.SIGHUP)
            await until(
                lambda: any("reload_failed" in each and says in each for each in llmux.lines)
            )

        await reload_in_vain("{", says="llmux.json")
        await reload_in_vain(json.dumps({"models": {}}), says="needs at least one model")
        odd = {"models": {"a": rack.model("a")}, "policy": {"name": "fifoo"}}
        await reload_in_vain(json.dumps(odd), says="did you mean 'fifo'")
        assert (await client.post(CHAT, json=chat("b"))).status_code == 200
        assert not any("Traceback" in line for line in llmux.lines)


async def test_keys_and_aliases_change_at_once_and_ports_need_a_restart(rack: Rack) -> None:
    write(rack, "a")
    config = rack.folder / "llmux.json"
    async with running_llmux(config) as llmux, llmux.client() as client:
        write(rack, "a", api_keys=["secret"], host="0.0.0.0", fallback=None)
        os.kill(llmux.process.pid, signal.SIGHUP)
        await until(lambda: any("reloaded" in line for line in llmux.lines))
        assert any("needs_restart" in line and "host" in line for line in llmux.lines)
        assert (await client.post(CHAT, json=chat("a"))).status_code == 401
        key = {"authorization": "Bearer secret"}
        assert (await client.post(CHAT, json=chat("a"), headers=key)).status_code == 200
        assert not any("secret" in line for line in llmux.lines)


@pytest.mark.parametrize("becomes", ["org/new", None])
async def test_a_request_that_waits_is_sent_with_the_name_of_the_last_config(
    rack: Rack, becomes: str | None
) -> None:
    def write_with(name: str | None) -> None:
        write(rack, models={"a": rack.model("a"), "b": rack.model("b", upstream_model=name)})

    write_with("org/old")
    async with running_llmux(rack.folder / "llmux.json") as llmux, llmux.client() as client:
        answers: dict[str, httpx.Response] = {}
        lines = llmux.lines

        async def ask(name: str, seconds: float = 0) -> None:
            answers[name] = await client.post(CHAT, json=chat(name, seconds=seconds))

        async with trio.open_nursery() as nursery:
            nursery.start_soon(ask, "a", 1)
            await until(lambda: rack.backends["a"].in_flight == 1)
            nursery.start_soon(ask, "b")
            await until(lambda: any("switch_started" in line and "to=b" in line for line in lines))
            write_with(becomes)
            os.kill(llmux.process.pid, signal.SIGHUP)
            await until(lambda: any("reloaded" in line for line in lines))
            assert rack.backends["a"].in_flight == 1, "b does not wait any more"
        assert answers["b"].json()["asked"]["model"] == (becomes or "b")


async def test_requests_do_not_notice_reloads(rack: Rack) -> None:
    write(rack, "a", "b")
    config = rack.folder / "llmux.json"
    async with running_llmux(config) as llmux, llmux.client() as client:
        answers: list[int] = []

        async def ask(name: str) -> None:
            for _ in range(10):
                answer = await client.post(CHAT, json=chat(name, seconds=0.01))
                answers.append(answer.status_code)

        async with trio.open_nursery() as nursery:
            for name in "ab" * 4:
                nursery.start_soon(partial(ask, name))
            for round_ in range(8):
                await trio.sleep(0.1)
                # Another wake hook each time: whoever is awake is drained and slept for it.
                models = {
                    name: rack.model(name, wake=f"{rack.model(name)['wake']} # {round_}")
                    for name in "ab"
                }
                write(rack, models=models)
                os.kill(llmux.process.pid, signal.SIGHUP)
        assert answers == [200] * 80
        assert not any("switch_failed" in line for line in llmux.lines)


async def test_a_model_is_removed_while_its_alive_hook_runs(tmp_path: Path) -> None:
    async with running_backends(tmp_path, "a", "b") as rack:
        slow = {"alive": "echo >> looked; sleep 1; test -e a.awake"}
        config = rack.write_config(models={"a": slow}, policy={"alive_interval_secs": 0.1})
        async with running_llmux(config) as llmux, llmux.client() as client:
            assert (await client.post(CHAT, json=chat("a"))).status_code == 200
            with trio.fail_after(5):
                while not (tmp_path / "looked").exists():
                    await trio.sleep(0.01)
            data = json.loads(config.read_text())
            del data["models"]["a"]
            config.write_text(json.dumps(data))
            os.kill(llmux.process.pid, signal.SIGHUP)
            await trio.sleep(1.5)
            assert not any("switcher_died" in line for line in llmux.lines)
            assert (await client.post(CHAT, json=chat("b"))).status_code == 200


# ---- Reloads at awkward moments ----


@pytest.mark.parametrize(
    ("change", "repairs"),
    [
        ({"wake": "up --again"}, True),
        ({"alive": "ping -c 3"}, True),
        ({"sleep": "down -f"}, True),
        ({"prefetch": "fetch"}, True),
        ({"port": 2}, True),
        ({"hook_timeouts": {"wake": 1200}}, True),
        ({"max_in_flight": 3}, False),
        ({"aliases": ["other"]}, False),
        ({}, False),
    ],
)
async def test_new_hooks_end_the_failing(
    autojump_clock: MockClock, change: dict[str, Any], *, repairs: bool
) -> None:
    site = Site({"a": model(), "b": model()})
    site.hooks.failing["b", "wake"] = 3
    async with site.running():
        for _ in range(3):
            with pytest.raises(LlmuxError):
                await site.ask("b")
        await site.ask("a")
        with pytest.raises(ModelFailing):
            await site.ask("b")
        site.apply({"a": model(), "b": model(**change)})
        await wait_all_tasks_blocked()
        assert site.board.models["b"].is_failing is not repairs
        if repairs:
            await site.ask("b")


async def test_another_limit_counts_at_once(autojump_clock: MockClock) -> None:
    site = Site({"a": model(), "b": model()})
    site.hooks.failing["b", "wake"] = 3
    models = {"a": model(), "b": model()}
    async with site.running():
        for _ in range(2):
            with pytest.raises(LlmuxError):
                await site.ask("b")
        await site.ask("a")
        policy: dict[str, Any] = {"name": "fifo", "alive_interval_secs": 0}
        site.apply(models, policy={**policy, "wake_failures": 2})
        with pytest.raises(ModelFailing):
            await site.ask("b")
        site.apply(models, policy={**policy, "wake_failures": None})
        with pytest.raises(HookError):
            await site.ask("b")


async def test_a_second_reload_does_not_bring_the_first_forward(autojump_clock: MockClock) -> None:
    site = Site({"a": model()})
    async with site.running() as requests:
        requests.start_soon(site.ask, "a", 100)
        await trio.sleep(1)
        site.apply({"a": model(2, sleep="other")})
        await trio.sleep(1)
        site.apply({"a": model(2, sleep="other", aliases=["x"])})
        await trio.sleep(1)
        assert site.told == [], "new hooks while the old server is awake"
        await trio.sleep(200)
        assert set(site.told) == {("a", 2)}


@pytest.mark.parametrize("more", [{}, {"aliases": ["x"]}])
async def test_a_change_that_is_taken_back_is_not_made(
    autojump_clock: MockClock, more: dict[str, Any]
) -> None:
    site = Site({"a": model()})
    async with site.running() as requests:
        requests.start_soon(site.ask, "a", 100)
        await trio.sleep(1)
        site.apply({"a": model(2, wake="other")})
        await trio.sleep(1)
        site.apply({"a": model(**more)})
        await trio.sleep(1)
        with trio.fail_after(1):
            await site.ask("a")  # it is not drained any more
        await trio.sleep(200)
        assert set(site.told) == {("a", 1)}
        assert site.board.config_of("a").wake == "up"
        assert site.hooks.calls == [("a", "wake")]


async def test_of_two_changes_that_wait_only_the_later_is_made(autojump_clock: MockClock) -> None:
    site = Site({"a": model()})
    async with site.running() as requests:
        requests.start_soon(site.ask, "a", 100)
        await trio.sleep(1)
        for port in (2, 3):
            site.apply({"a": model(port)})
            await trio.sleep(1)
        await trio.sleep(200)
        assert site.told == [("a", 3)]
        assert site.hooks.calls == [("a", "wake"), ("a", "sleep")]


@pytest.mark.parametrize("last", [{"max_in_flight": 1}, {"wake": "later"}])
async def test_a_model_that_is_gone_is_not_changed_before(
    autojump_clock: MockClock, last: dict[str, Any]
) -> None:
    """Not to what it was to be, before it went; and back again, it is what the last config says."""
    site = Site({"a": model(), "b": model(2)})
    async with site.running() as requests:
        requests.start_soon(site.ask, "a", 100)
        await trio.sleep(1)
        for a in ({"a": model(9)}, {}, {"a": model(**last)}):
            site.apply({**a, "b": model(2)})
            await trio.sleep(1)
        await trio.sleep(200)
        assert site.told == [("a", 1)]
        assert site.board.config_of("a") == config_of({"a": model(**last)}).models["a"]


@pytest.mark.parametrize("stays", [True, False])
async def test_a_sleep_that_fails_first_loses_no_change(
    autojump_clock: MockClock, stays: bool
) -> None:
    site = Site({"a": model(verify_asleep="v"), "b": model(2)})
    site.hooks.verifiers = {"a"}
    async with site.running():
        await site.ask("a")
        site.hooks.failing["a", "verify_asleep"] = 2
        changed = {"a": model(9, verify_asleep="v")} if stays else {}
        site.apply({**changed, "b": model(2)})
        await trio.sleep(10)
        assert site.told == []
        await site.ask("b")  # a is put to sleep for it
        await trio.sleep(100)
        assert site.told == [("a", 9 if stays else None)]


async def test_in_manual_mode_a_model_that_has_changed_is_woken_again(
    autojump_clock: MockClock,
) -> None:
    site = Site({"a": model()})
    async with site.running():
        await site.board.force_switch("a")
        site.board.set_mode("manual")
        site.apply({"a": model(2), "b": model(3, group="second")})
        await trio.sleep(5)
        await site.ask("a")
        with pytest.raises(LlmuxError, match="Manual mode"):
            await site.ask("b")


@pytest.mark.parametrize("at", [2, 102])
async def test_in_manual_mode_a_model_that_has_changed_twice_is_woken_again(
    autojump_clock: MockClock, at: float
) -> None:
    """The second change comes while it is drained, or woken again, for the first."""
    site = Site({"a": model()})
    site.hooks.seconds = {("a", "wake"): 5}
    async with site.running() as requests:
        await site.board.force_switch("a")
        site.board.set_mode("manual")
        requests.start_soon(site.ask, "a", 100)
        await trio.sleep(1)
        site.apply({"a": model(wake="second")})
        await trio.sleep(at - 1)
        site.apply({"a": model(wake="third")})
        await trio.sleep(200)
        assert site.board.active_model == "a"
        assert site.board.config_of("a").wake == "third"
        await site.ask("a")


async def test_a_group_that_comes_while_llmux_stops_holds_nothing_up(
    autojump_clock: MockClock,
) -> None:
    site = Site({"a": model()})
    async with site.running() as requests:
        requests.start_soon(site.ask, "a", 50)
        await trio.sleep(1)
        site.board.stop()
        site.apply({"a": model(), "b": model(2, group="second")})
        with trio.fail_after(1000):
            await site.board.wait_ended()


@pytest.mark.parametrize("comes", [True, False])
async def test_a_reload_while_llmux_takes_over(
    autojump_clock: MockClock, tmp_path: Path, comes: bool
) -> None:
    path = tmp_path / "awake.json"
    path.write_text('{"models": {"a": {"state": "awake"}}}')
    record = AwakeRecord(path)
    record.load(["a", "b"])
    hooks = FakeHooks(seconds={("a", "alive"): 5}, awake={"a"})
    rig = Rig(hooks=hooks, record=record)
    async with rig.running():
        await trio.sleep(1)
        assert not rig.switcher.is_unused("a"), "it may be awake"
        if comes:
            rig.switcher.add("c")
        else:
            rig.switcher.remove("b", lambda: None)
        await trio.sleep(10)
        assert rig.switcher.active is rig.switcher.models["a"]


COMES = {"while it drains": [5], "while it sleeps": [12], "while the hook prefetches": [20]}


@pytest.mark.parametrize("moments", [*COMES.values(), [20, 33]], ids=[*COMES, "one after another"])
async def test_a_model_that_was_left_awake_and_comes_in_mid_switch_sleeps_first(
    autojump_clock: MockClock, tmp_path: Path, moments: list[float]
) -> None:
    """The fake GPU checks, as a wake hook starts, that nothing else is awake."""
    path = tmp_path / "awake.json"
    path.write_text('{"models": {"c": {"state": "awake"}, "d": {"state": "awake"}}}')
    record = AwakeRecord(path)
    record.load(["a", "b"])
    seconds = {("a", "sleep"): 5.0, ("b", "prefetch"): 30.0, ("c", "sleep"): 5.0}
    rig = Rig(hooks=FakeHooks(seconds=seconds, prefetchers={"b"}), record=record)
    began_at = trio.current_time()
    late = "cd"[: len(moments)]
    async with rig.running() as requests:
        requests.start_soon(rig.ask, "a", 10)
        await trio.sleep(1)
        requests.start_soon(rig.ask, "b")
        for name, at in zip(late, moments, strict=True):
            await trio.sleep_until(began_at + at)
            rig.hooks.awake.add(name)  # it was all along, which no fake GPU would have borne
            rig.switcher.add(name)
    slept = [("a", "sleep"), *((name, "sleep") for name in late)]
    assert rig.hooks.calls == [("a", "wake"), ("b", "prefetch"), *slept, ("b", "wake")]
