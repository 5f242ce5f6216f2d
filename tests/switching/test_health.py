"""A model that does not answer any more is noticed, brought down, and woken again."""

from __future__ import annotations

import json
import os
import signal
import socket
import sys
import time
from collections.abc import AsyncIterator, Callable
from contextlib import suppress
from pathlib import Path

import httpx
import pytest
import trio
from trio.testing import MockClock, wait_all_tasks_blocked

from llmux.errors import HookError, LlmuxError, StreamCut, SwitcherDied
from llmux.observe.schemas import AliveChange, AliveTrouble
from llmux.switching.model import Phase
from tests.fakes import FakeHooks, Rig
from tests.servers import chat, running_backends, running_llmux

CHAT = "/v1/chat/completions"


async def test_the_alive_hook_runs_at_intervals(autojump_clock: MockClock) -> None:
    rig = Rig(alive_interval_secs=30)
    async with trio.open_nursery() as beside, rig.running() as requests:
        beside.start_soon(rig.switcher.health.watch)
        requests.start_soon(rig.ask, "a", 100)
        await trio.sleep(95)
        assert rig.hooks.calls == [("a", "wake")] + [("a", "alive")] * 3
        beside.cancel_scope.cancel()


async def test_zero_turns_it_off(autojump_clock: MockClock) -> None:
    rig = Rig(alive_interval_secs=0)
    async with trio.open_nursery() as beside, rig.running() as requests:
        beside.start_soon(rig.switcher.health.watch)
        requests.start_soon(rig.ask, "a", 100)
        await trio.sleep(95)
        assert rig.hooks.calls == [("a", "wake")]
        beside.cancel_scope.cancel()


async def test_three_failures_in_a_row_bring_a_model_down(autojump_clock: MockClock) -> None:
    rig = Rig()
    outcomes: list[object] = []

    async def ask(seconds: float) -> None:
        try:
            outcomes.append(await rig.ask("a", seconds))
        except Exception as error:
            outcomes.append(type(error).__name__)

    async with trio.open_nursery() as beside, rig.running() as requests:
        beside.start_soon(rig.switcher.health.watch)
        requests.start_soon(ask, 1000)
        await trio.sleep(1)
        rig.hooks.failing[("a", "alive")] = 2
        await trio.sleep(90)
        assert rig.switcher.models["a"].is_awake  # two, then one that went well
        rig.hooks.failing[("a", "alive")] = 3
        await trio.sleep(90)
        assert outcomes == ["StreamCut"]
        assert rig.switcher.models["a"].phase is Phase.ASLEEP
        await ask(1)
        assert rig.hooks.calls[-2:] == [("a", "sleep"), ("a", "wake")]
        beside.cancel_scope.cancel()


async def test_failures_are_told_as_they_happen(autojump_clock: MockClock) -> None:
    rig = Rig()
    health = rig.switcher.health
    told: list[AliveChange] = []
    health._events.alive_changed.listen(told.append)
    model = rig.switcher.models["a"]
    async with trio.open_nursery() as beside, rig.running():
        beside.start_soon(health.watch)
        await rig.ask("a", 1)
        assert health.trouble_of(model) is None
        rig.hooks.failing[("a", "alive")] = 2
        for count in (1, 2):
            await trio.sleep(30)
            trouble = AliveTrouble(failures=count, limit=3, error="exited with 1")
            assert health.trouble_of(model) == trouble
            assert [each.trouble for each in told[-1:]] == [trouble]
        await trio.sleep(30)
        assert health.trouble_of(model) is None
        assert [each.trouble for each in told[-1:]] == [None]
        assert len(told) == 3
        await trio.sleep(60)
        assert len(told) == 3, "success after success is no news"
        rig.hooks.failing[("a", "alive")] = 1
        await trio.sleep(30)
        await rig.switcher.put_model_to_sleep("a")
        assert health.trouble_of(model) is None, "it is asleep"
        await rig.ask("a")
        assert health.trouble_of(model) is None, "it has been woken since"
        rig.hooks.failing[("a", "alive")] = 3
        await trio.sleep(91)
        last = AliveTrouble(failures=3, limit=3, error="exited with 1")
        assert [each.trouble for each in told[-1:]] == [last]
        assert not model.is_awake
        beside.cancel_scope.cancel()


async def test_a_failure_does_not_count_while_bytes_come(autojump_clock: MockClock) -> None:
    rig = Rig(alive_failures=1)
    rig.hooks.failing[("a", "alive")] = -1
    asked = []

    def heard_since(model: str, since: float) -> bool:
        asked.append((model, since))
        return trio.current_time() < 100

    rig.switcher.health.heard_since = heard_since
    async with trio.open_nursery() as beside, rig.running():
        beside.start_soon(rig.switcher.health.watch)
        with pytest.raises(StreamCut):
            await rig.ask("a", 1000)
        assert trio.current_time() == pytest.approx(120, abs=1)
        assert [since for _, since in asked[1:]] == pytest.approx([30, 60, 90], abs=1)
        beside.cancel_scope.cancel()


async def test_who_waits_for_a_model_that_is_down_is_served_when_it_is_up_again(
    autojump_clock: MockClock,
) -> None:
    """Three were refused: one look, one sleep, one wake; nobody is lost."""
    rig = Rig(hooks=FakeHooks(seconds={("a", "wake"): 10, ("a", "alive"): 1}))
    served: list[float] = []

    async def ask() -> None:
        serving = rig.switcher.serving("a")
        try:
            async with serving:
                if "a" in crashed:
                    raise ConnectionRefusedError
                served.append(trio.current_time())
        except ConnectionRefusedError:
            await rig.switcher.health.refused(rig.switcher.models["a"])
            async with serving:
                served.append(trio.current_time())

    crashed = set[str]()
    async with rig.running() as requests:
        await rig.ask("a")
        crashed.add("a")
        rig.hooks.awake.discard("a")
        rig.hooks.calls.clear()
        for _ in range(3):
            requests.start_soon(ask)
        await trio.sleep(0.5)
        crashed.clear()
    assert rig.hooks.calls == [("a", "alive"), ("a", "sleep"), ("a", "wake")]
    assert len(served) == 3


async def test_a_refusal_of_a_model_that_is_well_only_costs_a_look(
    autojump_clock: MockClock,
) -> None:
    rig = Rig()
    async with rig.running():
        await rig.ask("a")
        await rig.switcher.health.refused(rig.switcher.models["a"])
        assert rig.hooks.calls[-1] == ("a", "alive")
        assert rig.switcher.models["a"].is_awake


async def test_a_refusal_while_the_model_drains_cuts_what_the_drain_waits_for(
    autojump_clock: MockClock,
) -> None:
    rig = Rig()
    cut: list[BaseException] = []

    async def hang() -> None:
        try:
            await rig.ask("a", 10_000)
        except Exception as error:
            cut.append(error)

    async with rig.running() as requests:
        requests.start_soon(hang)
        await trio.sleep(1)
        requests.start_soon(rig.ask, "b")
        await trio.sleep(1)
        assert rig.switcher.models["a"].phase is Phase.DRAINING
        rig.hooks.awake.discard("a")
        await rig.switcher.health.refused(rig.switcher.models["a"])
    assert len(cut) == 1
    assert trio.current_time() < 10
    assert rig.switcher.models["b"].is_awake


async def test_in_manual_mode_a_model_that_was_down_is_woken_again(
    autojump_clock: MockClock,
) -> None:
    rig = Rig()
    async with rig.running():
        await rig.switcher.force_switch("a")
        rig.switcher.set_mode("manual")
        rig.hooks.awake.discard("a")
        await rig.switcher.health.refused(rig.switcher.models["a"])
        assert rig.switcher.models["a"].is_awake
        assert rig.hooks.calls[-3:] == [("a", "alive"), ("a", "sleep"), ("a", "wake")]


async def test_a_model_that_cannot_be_put_to_sleep_is_in_the_way(
    autojump_clock: MockClock,
) -> None:
    hooks = FakeHooks(verifiers={"a"})
    rig = Rig(hooks=hooks)
    async with rig.running():
        await rig.ask("a")
        hooks.awake.discard("a")
        hooks.failing[("a", "verify_asleep")] = -1
        await rig.switcher.health.refused(rig.switcher.models["a"])
        with pytest.raises(HookError, match="verify_asleep"):
            await rig.ask("b")
        assert ("b", "wake") not in hooks.calls


async def test_a_hook_that_cannot_be_ended_makes_the_switcher_dead(
    autojump_clock: MockClock,
) -> None:
    hooks = FakeHooks(gates={("a", "wake"): trio.Event()}, timeouts={("a", "wake"): 600})
    rig = Rig(hooks=hooks)
    errors: list[LlmuxError] = []

    async def ask() -> None:
        try:
            await rig.ask("a")
        except LlmuxError as error:
            errors.append(error)

    async with rig.running() as requests:
        requests.start_soon(ask)
        await trio.sleep(650)
        assert not rig.switcher.die_if_stuck()
        await trio.sleep(20)
        assert rig.switcher.die_if_stuck()
        await ask()  # refused at once
        await wait_all_tasks_blocked()
        assert [type(error) for error in errors] == [SwitcherDied] * 2
        hooks.gates[("a", "wake")].set()


async def test_a_refused_request_waits_no_longer_than_any(tmp_path: Path) -> None:
    async with running_backends(tmp_path, "a") as rack:
        with socket.create_server(("127.0.0.1", 0)) as listener:
            port = listener.getsockname()[1]
        slow = {"port": port, "alive": "test ! -e looks || exec sleep 5", "wake": "true"}
        config = rack.write_config(models={"a": slow}, policy={"request_timeout_secs": 0.3})
        async with running_llmux(config) as llmux, llmux.client() as client:
            switched = await client.post("/control/switch", json={"model": "a"})
            assert switched.status_code == 200
            (tmp_path / "looks").touch()
            counts = []

            async def count() -> None:
                await trio.sleep(0.15)
                facts = (await client.get("/v1/models/a")).json()["llmux"]
                counts.append((facts["in_flight"], facts["queued"]))

            async with trio.open_nursery() as nursery:
                nursery.start_soon(count)
                answer = await client.post("/v1/chat/completions", json=chat("a"))
            assert counts == [(0, 1)]
            assert answer.json()["error"]["code"] == "switch_timeout"
            assert 300 <= int(answer.headers["x-llmux-wait-ms"]) < 2000


# ---- Real processes that crash and hang ----

ROOT = Path(__file__).parents[2]


def write_demo(folder: Path, port: int, **policy: object) -> Path:
    (folder / "hooks").symlink_to(ROOT / "hooks")
    hooks = {hook: f"./hooks/demo/{hook}.sh" for hook in ("wake", "alive")}
    sleep = "kill -9 $(cat run/standin-$LLMUX_PORT.pid)"  # which also ends what hangs
    model = {**hooks, "sleep": sleep, "port": port, "hook_timeouts": {"alive": 2}}
    config = {"port": 0, "state_dir": "state", "models": {"a": model}, "policy": policy}
    path = folder / "llmux.json"
    path.write_text(json.dumps(config))
    return path


def accepts(port: int) -> bool:
    with socket.socket() as client:
        return client.connect_ex(("127.0.0.1", port)) == 0


@pytest.fixture
async def crashing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> AsyncIterator[tuple[httpx.AsyncClient, Callable[[signal.Signals], None]]]:
    """A client, and what sends a signal to the model's server."""
    monkeypatch.setenv("PYTHON", sys.executable)
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
    pid_file = tmp_path / "run" / f"standin-{port}.pid"

    def hit(number: signal.Signals) -> None:
        os.kill(int(pid_file.read_text()), number)
        while number == signal.SIGKILL and accepts(port):
            time.sleep(0.01)  # killed is not dead yet; what it still takes, it resets: 502

    config = write_demo(tmp_path, port, alive_interval_secs=0.3, alive_failures=2)
    try:
        async with running_llmux(config) as llmux, llmux.client() as client:
            yield client, hit
    finally:
        with suppress(FileNotFoundError, ProcessLookupError, ValueError):
            hit(signal.SIGKILL)


Crashing = tuple[httpx.AsyncClient, Callable[[signal.Signals], None]]


async def test_requests_to_a_server_that_has_crashed_are_answered(crashing: Crashing) -> None:
    client, hit = crashing
    assert (await client.post(CHAT, json=chat("a"))).status_code == 200
    hit(signal.SIGKILL)
    answers = []

    async def ask() -> None:
        answers.append(await client.post(CHAT, json=chat("a")))

    async with trio.open_nursery() as nursery:
        for _ in range(10):
            nursery.start_soon(ask)
    assert [answer.status_code for answer in answers] == [200] * 10, [a.text for a in answers]
    metrics = (await client.get("/metrics")).text
    assert 'llmux_hook_duration_seconds_count{hook="wake",model="a"} 2.0' in metrics


async def test_a_server_that_hangs_is_cut_and_woken_again(crashing: Crashing) -> None:
    client, hit = crashing
    assert (await client.post(CHAT, json=chat("a"))).status_code == 200
    hit(signal.SIGSTOP)
    # It takes the connection and says nothing: nobody can know whether it has begun to work.
    assert (await client.post(CHAT, json=chat("a"))).json()["error"]["code"] == "not_ready"
    assert (await client.post(CHAT, json=chat("a"))).status_code == 200


# ---- What comes between a refusal and its look ----


async def test_a_look_that_was_given_up_does_not_count(autojump_clock: MockClock) -> None:
    rig = Rig(hooks=FakeHooks(seconds={("a", "alive"): 2}))
    async with rig.running() as requests:
        await rig.ask("a")
        rig.hooks.awake.discard("a")
        model = rig.switcher.models["a"]
        leaving = trio.CancelScope()

        async def leave() -> None:
            with leaving:
                await rig.switcher.health.refused(model)

        async def stay() -> None:
            await rig.switcher.health.refused(model)
            assert not model.is_awake

        requests.start_soon(leave)
        await wait_all_tasks_blocked()
        requests.start_soon(stay)
        await trio.sleep(1)
        leaving.cancel()


async def test_nobody_waits_for_a_model_that_llmux_stops_without(
    autojump_clock: MockClock,
) -> None:
    rig = Rig(hooks=FakeHooks(seconds={("a", "alive"): 2}))
    async with rig.running() as requests:
        await rig.ask("a")
        rig.hooks.awake.discard("a")

        async def stop() -> None:
            await trio.sleep(1)
            rig.switcher.stop()

        requests.start_soon(stop)
        with trio.fail_after(1000):
            await rig.switcher.health.refused(rig.switcher.models["a"])
