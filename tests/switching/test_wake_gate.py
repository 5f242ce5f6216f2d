"""After its wake hook, a model is awake once its alive hook says so."""

from __future__ import annotations

import re
from contextlib import suppress
from pathlib import Path

import httpx
import pytest
import trio
from trio.testing import MockClock, wait_all_tasks_blocked

from llmux.errors import HookError, NotAlive, ShuttingDown
from llmux.switching.model import Phase
from llmux.switching.switcher import Switcher
from tests.fakes import FakeHooks, Rig
from tests.servers import ALL_FORMS, chat, running_backends, running_llmux

CHAT = "/v1/chat/completions"


def cost_s(switcher: Switcher, model: str) -> float | None:
    return switcher.measures.costs.estimate(None, model)


async def test_a_model_that_is_alive_at_once_costs_no_time(autojump_clock: MockClock) -> None:
    rig = Rig(hooks=FakeHooks(seconds={("a", "wake"): 10}))
    async with rig.running():
        assert await rig.ask("a") == 10
    assert len(rig.hooks.looks) == 1
    assert cost_s(rig.switcher, "a") == 10


async def test_a_model_is_looked_at_often_then_every_second(autojump_clock: MockClock) -> None:
    rig = Rig(hooks=FakeHooks(seconds={("a", "wake"): 10}, loading_s={"a": 5}))
    async with rig.running():
        assert await rig.ask("a") == pytest.approx(15, abs=1)
    times = [at - rig.hooks.woken_at["a"] for _, at in rig.hooks.looks]
    assert times == pytest.approx([0, 0.05, 0.15, 0.35, 0.75, 1.55, 2.55, 3.55, 4.55, 5.55])
    assert rig.hooks.calls == [("a", "wake")]
    assert cost_s(rig.switcher, "a") == pytest.approx(15, abs=1), "the estimates know of it"


async def test_hook_and_looks_have_one_time_limit(autojump_clock: MockClock) -> None:
    hooks = FakeHooks(
        seconds={("a", "wake"): 100}, loading_s={"a": 10_000}, timeouts={("a", "wake"): 600}
    )
    rig = Rig(hooks=hooks)
    async with rig.running():
        began_at = trio.current_time()
        with pytest.raises(HookError) as raised:
            await rig.ask("a")
        assert trio.current_time() - began_at == pytest.approx(600, abs=0.1)
    assert isinstance(raised.value, NotAlive)
    assert raised.value.code == "hook_failed"
    assert str(raised.value) == (
        "Hook failed for a: wake returned 0 but alive failed for 500 s: exited with 22: loading"
    )
    assert rig.hooks.calls == [("a", "wake"), ("a", "sleep")]


async def test_a_model_that_is_never_alive_is_not_woken_in_a_circle(
    autojump_clock: MockClock,
) -> None:
    hooks = FakeHooks(loading_s={"a": 10_000}, timeouts={("a", "wake"): 3})
    rig = Rig(hooks=hooks, wake_failures=None)
    async with rig.running():
        with pytest.raises(NotAlive):
            await rig.ask("a")
        model = rig.switcher.models["a"]
        await wait_all_tasks_blocked()
        assert model.retry_at - trio.current_time() == pytest.approx(2)
        assert model.phase is Phase.FAILED
        for delay_s in (4, 8, 16, 32, 60, 60):
            with pytest.raises(NotAlive):
                await rig.ask("a")
            await wait_all_tasks_blocked()
            assert model.retry_at - trio.current_time() == pytest.approx(delay_s)


async def order(switcher: Switcher) -> None:
    with suppress(ShuttingDown):
        await switcher.force_switch("a")


@pytest.mark.parametrize("stops_at", [5, 12])
async def test_stopping_waits_for_no_look(autojump_clock: MockClock, stops_at: float) -> None:
    """The hook may use the grace; what it has woken, the next llmux looks at."""
    rig = Rig(hooks=FakeHooks(seconds={("a", "wake"): 10}, loading_s={"a": 10_000}))
    async with trio.open_nursery() as nursery:
        nursery.start_soon(rig.switcher.run)
        nursery.start_soon(order, rig.switcher)
        await trio.sleep(stops_at)
        rig.switcher.stop()
    assert trio.current_time() == max(10, stops_at)
    assert rig.switcher.active is not None


async def test_an_alive_hook_that_hangs_is_given_up_on(autojump_clock: MockClock) -> None:
    hooks = FakeHooks(seconds={("a", "look"): 1e5}, timeouts={("a", "wake"): 30})
    rig = Rig(hooks=hooks)
    async with rig.running():
        began_at = trio.current_time()
        with pytest.raises(NotAlive, match="alive failed for 30 s: it did not return"):
            await rig.ask("a")
        assert trio.current_time() - began_at == pytest.approx(30)


async def test_a_hook_that_uses_up_its_time_gets_one_look(autojump_clock: MockClock) -> None:
    hooks = FakeHooks(seconds={("a", "wake"): 30, ("a", "look"): 0.5}, timeouts={("a", "wake"): 30})
    rig = Rig(hooks=hooks)
    async with rig.running():
        assert await rig.ask("a") == 30.5


async def test_a_model_that_falls_again_and_again_is_woken_less_often(
    autojump_clock: MockClock,
) -> None:
    """It is alive after each wake, and refuses whoever comes."""
    rig = Rig(wake_failures=None)
    waits: list[float] = []
    async with rig.running():
        model = rig.switcher.models["a"]
        for _ in range(8):
            waits.append(round(await rig.ask("a", 0.1)))
            rig.hooks.failing[("a", "alive")] = 1
            await rig.switcher.health.refused(model)
        assert waits == [0, 0, 2, 4, 8, 16, 32, 60]
        await rig.ask("a", 0.1)
        model.note_warm()
        rig.hooks.failing[("a", "alive")] = 1
        await rig.switcher.health.refused(model)
        assert await rig.ask("a") == 0, "once it has answered, it is forgiven"


async def test_a_pinned_model_that_falls_again_and_again_is_not_woken_for_nobody(
    autojump_clock: MockClock,
) -> None:
    rig = Rig()
    async with rig.running():
        await rig.switcher.force_switch("a")
        rig.switcher.set_mode("manual")
        for _ in range(3):
            await trio.sleep(0.1)
            rig.hooks.failing[("a", "alive")] = 1
            await rig.switcher.health.refused(rig.switcher.models["a"])
        assert rig.hooks.calls.count(("a", "wake")) == 2


@pytest.mark.parametrize("form", ALL_FORMS)
async def test_a_wake_hook_that_returns_too_early(form: str, tmp_path: Path) -> None:
    async with running_backends(tmp_path, "a") as rack:
        late = "(sleep 1; : > a.awake) > /dev/null 2>&1 & echo started"
        config = rack.write_config(models={"a": rack.model("a", wake=late)})
        async with running_llmux(config, form) as llmux, llmux.client() as client:
            answer = await client.post(CHAT, json=chat("a"))
            assert answer.status_code == 200, answer.text
            assert not any("hook_failed" in line for line in llmux.lines)
            metrics = (await client.get("/metrics")).text
            (failed,) = (
                line
                for line in metrics.splitlines()
                if line.startswith("llmux_hook_failures_total") and 'hook="alive"' in line
            )
            assert failed.endswith(" 0.0")
    assert rack.hook_log == []


@pytest.mark.parametrize("form", ALL_FORMS)
async def test_a_wake_hook_that_wakes_nothing(form: str, tmp_path: Path) -> None:
    async with running_backends(tmp_path, "a") as rack:
        alive = "echo no such container; exit 3"
        model = rack.model("a", wake="true", alive=alive, hook_timeouts={"wake": 1})
        config = rack.write_config(models={"a": model})
        async with running_llmux(config, form) as llmux, llmux.client() as client:
            answer: httpx.Response = await client.post(CHAT, json=chat("a"))
            assert answer.status_code == 500
            error = answer.json()["error"]
            assert error["code"] == "hook_failed"
            assert re.search(
                r"wake returned 0 but alive failed for [\d.]+ s: exited with 3", error["message"]
            )
            with trio.fail_after(30):  # the clean-up comes after the answer
                while not rack.hook_log:
                    await trio.sleep(0.05)
    assert rack.hook_log == ["a sleep"]
