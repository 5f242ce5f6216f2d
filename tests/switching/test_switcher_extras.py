"""Slots, switches that nobody wants any more, prefetch, frozen requests, hints."""

from __future__ import annotations

from typing import Any

import pytest
import trio
from trio.testing import MockClock, wait_all_tasks_blocked

from llmux.errors import LlmuxError, ManualMode, QueueFull, SwitchTimeout, WouldSwitch
from llmux.observe.schemas import Pin
from llmux.policy import GroupView, SwitchTo
from llmux.switching.hints import NO_HINTS, Hints
from llmux.switching.model import Phase, Traits
from tests.fakes import FakeHooks, Rig

TWO_SLOTS = {"a": Traits(max_in_flight=2)}


# ---- max_in_flight ----


async def test_a_model_takes_only_as_many_as_it_has_slots(autojump_clock: MockClock) -> None:
    rig = Rig(traits=TWO_SLOTS)
    async with rig.running() as requests:
        most = 0

        async def ask() -> None:
            nonlocal most
            async with rig.switcher.serving("a"), rig.hooks.request("a"):
                most = max(most, rig.switcher.models["a"].in_flight.count)
                await trio.sleep(10)

        for _ in range(7):
            requests.start_soon(ask)
        await wait_all_tasks_blocked(0.01)
        assert rig.switcher.models["a"].in_flight.count == 2
        assert rig.switcher.models["a"].waiters.count == 5
    assert most == 2
    assert trio.current_time() == pytest.approx(40, abs=0.1)  # four rounds of two


async def test_slots_are_given_in_order_also_past_those_who_leave(
    autojump_clock: MockClock,
) -> None:
    rig = Rig(traits={"a": Traits(max_in_flight=1)})
    served: list[int] = []
    async with rig.running() as requests:
        scopes = [trio.CancelScope() for _ in range(5)]

        async def ask(number: int) -> None:
            with scopes[number]:
                async with rig.switcher.serving("a"), rig.hooks.request("a"):
                    served.append(number)
                    await trio.sleep(10)

        for number in range(5):
            requests.start_soon(ask, number)
            await wait_all_tasks_blocked()
        scopes[1].cancel()  # in line
        await trio.sleep(15)
        assert served == [0, 2]
        scopes[2].cancel()  # in flight
        await trio.sleep(1)
        assert served == [0, 2, 3]
    assert served == [0, 2, 3, 4]


async def test_one_that_comes_while_others_wait_for_a_slot_stands_behind_them(
    autojump_clock: MockClock,
) -> None:
    rig = Rig(traits=TWO_SLOTS)
    async with rig.running() as requests:
        for _ in range(3):
            requests.start_soon(rig.ask, "a", 10)
        await trio.sleep(1)
        assert await rig.ask("a", 1) == pytest.approx(9, abs=0.1)


async def test_a_drain_waits_for_those_with_a_grant_that_are_not_in_yet(
    autojump_clock: MockClock,
) -> None:
    rig = Rig(traits={"a": Traits(max_in_flight=1)})
    async with rig.running() as requests:
        for model in ("a", "a", "b", "a", "b"):
            requests.start_soon(rig.ask, model, 5)
            await wait_all_tasks_blocked()
    assert rig.hooks.served == {"a": 3, "b": 2}


# ---- A switch that nobody wants any more ----


async def test_a_drain_ends_when_its_target_is_not_wanted_any_more(
    autojump_clock: MockClock,
) -> None:
    rig = Rig()
    async with rig.running() as requests:
        requests.start_soon(rig.ask, "a", 100)
        await trio.sleep(1)
        with trio.move_on_after(5):
            await rig.ask("b")  # a drains for it
        # Nobody waits at all: the drain may as well go on, until somebody wants the model back.
        await wait_all_tasks_blocked()
        assert rig.switcher.models["a"].phase is Phase.DRAINING
        assert await rig.ask("a", 1) == pytest.approx(0, abs=0.01)
        assert rig.switcher.models["a"].is_awake
    assert ("a", "sleep") not in rig.hooks.calls


async def test_a_switch_is_decided_anew_when_its_target_is_not_wanted_any_more(
    autojump_clock: MockClock,
) -> None:
    rig = Rig(("a", "b", "c"), hooks=FakeHooks(seconds={("a", "sleep"): 10}))
    async with rig.running() as requests:
        await rig.ask("a")
        left = trio.CancelScope()

        async def ask_and_leave() -> None:
            with left:
                await rig.ask("b")

        requests.start_soon(ask_and_leave)
        await trio.sleep(1)
        requests.start_soon(rig.ask, "c")
        await trio.sleep(1)
        left.cancel()
    assert ("b", "wake") not in rig.hooks.calls
    assert rig.hooks.calls[-1] == ("c", "wake")


async def test_a_forced_switch_is_not_abandoned(autojump_clock: MockClock) -> None:
    rig = Rig(hooks=FakeHooks(seconds={("a", "sleep"): 10}))
    async with rig.running() as requests:
        await rig.ask("a")
        requests.start_soon(rig.switcher.force_switch, "b")
        await trio.sleep(1)
        requests.start_soon(rig.ask, "a")
    assert rig.hooks.calls.count(("b", "wake")) == 1


# ---- Prefetch ----


async def test_prefetch_runs_beside_drain_and_sleep_and_the_wake_waits_for_it(
    autojump_clock: MockClock,
) -> None:
    seconds = {("b", "prefetch"): 30.0, ("a", "sleep"): 5.0}
    rig = Rig(hooks=FakeHooks(seconds=seconds, prefetchers={"b"}))
    async with rig.running() as requests:
        requests.start_soon(rig.ask, "a", 10)
        await trio.sleep(1)
        waited_s = await rig.ask("b")
    assert waited_s == pytest.approx(30, abs=0.1)
    order = [
        rig.hooks.calls.index((m, h)) for m, h in (("b", "prefetch"), ("a", "sleep"), ("b", "wake"))
    ]
    assert order == sorted(order)
    # 5 s of sleep, and the 16 s of the prefetch that neither the drain nor the sleep has hidden.
    assert rig.switcher.measures.cost_s("a", "b") == pytest.approx(21, abs=0.1)


async def test_a_prefetch_that_fails_does_no_harm(autojump_clock: MockClock) -> None:
    rig = Rig(hooks=FakeHooks(failing={("b", "prefetch"): -1}, prefetchers={"b"}))
    async with rig.running():
        await rig.ask("a")
        await rig.ask("b")
    assert rig.hooks.served == {"a": 1, "b": 1}


async def test_an_abandoned_switch_ends_its_prefetch(autojump_clock: MockClock) -> None:
    rig = Rig(hooks=FakeHooks(seconds={("b", "prefetch"): 1000.0}, prefetchers={"b"}))
    async with rig.running() as requests:
        requests.start_soon(rig.ask, "a", 100)
        await trio.sleep(1)
        with trio.move_on_after(5):
            await rig.ask("b")
        await rig.ask("a")
        await rig.ask("b")  # and the next one is not held up by it, but by its own
    assert rig.hooks.calls.count(("b", "prefetch")) == 2


# ---- Requests that outlast a sleep ----


async def test_preserved_requests_are_not_waited_for_and_go_on(autojump_clock: MockClock) -> None:
    rig = Rig(traits={"a": Traits(preserves_in_flight=True)})
    async with rig.running() as requests:
        requests.start_soon(rig.ask, "a", 100)
        await trio.sleep(1)
        assert await rig.ask("b") == pytest.approx(0, abs=0.1)  # no drain
        assert rig.switcher.models["a"].in_flight.count == 1
        await trio.sleep(1)
        assert rig.switcher.models["a"].is_awake  # nobody asked for it but the one that is frozen
    assert rig.hooks.served["a"] == 1


async def test_frozen_requests_count_among_those_who_wait(autojump_clock: MockClock) -> None:
    rig = Rig(traits={"a": Traits(preserves_in_flight=True)})
    model = rig.switcher.models["a"]
    async with rig.running() as requests:
        with trio.CancelScope() as leaves:
            requests.start_soon(rig.ask, "a", 100)
            await trio.sleep(1)
            rig.hooks.seconds = {("b", "wake"): 50}
            requests.start_soon(rig.ask, "b")
            await trio.sleep(10)
            view = model.view()
            assert view.queued == 1
            assert view.oldest_arrival == pytest.approx(1, abs=0.1)
            assert view.ages.total(trio.current_time()) == pytest.approx(10, abs=0.1)
            requests.start_soon(rig.ask, "a", 1)  # stands in line behind it
            await trio.sleep(10)
            assert model.view().queued == 2
        assert not leaves.cancelled_caught
    assert (model.view().queued, model.view().ages.count) == (0, 0)


async def test_time_in_which_a_request_was_frozen_is_not_its_latency(
    autojump_clock: MockClock,
) -> None:
    rig = Rig(traits={"a": Traits(preserves_in_flight=True)})
    async with rig.running() as requests:
        requests.start_soon(rig.ask, "a", 100)
        await trio.sleep(1)
        rig.hooks.seconds = {("b", "wake"): 50}
        requests.start_soon(rig.ask, "b")
    assert rig.switcher.measures.latency_s("a", 1) == pytest.approx(50, abs=0.1)


async def test_a_frozen_request_whose_client_leaves_is_forgotten(autojump_clock: MockClock) -> None:
    rig = Rig(traits={"a": Traits(preserves_in_flight=True)})
    model = rig.switcher.models["a"]
    leaves = trio.CancelScope()
    async with rig.running() as requests:

        async def ask() -> None:
            with leaves:
                await rig.ask("a", 100)

        requests.start_soon(ask)
        await trio.sleep(1)
        rig.hooks.seconds = {("b", "wake"): 50}
        requests.start_soon(rig.ask, "b", 5)
        await trio.sleep(10)
        leaves.cancel()
        await wait_all_tasks_blocked()
        assert (model.view().queued, model.view().ages.count) == (0, 0)
    assert rig.hooks.calls.count(("a", "wake")) == 1


async def test_a_model_gets_on_with_frozen_requests_before_it_is_left(
    autojump_clock: MockClock,
) -> None:
    hooks = FakeHooks(seconds={(model, "wake"): 2 for model in "ab"})
    rig = Rig(hooks=hooks, traits={name: Traits(preserves_in_flight=True) for name in "ab"})
    async with rig.running() as requests:
        for _ in range(3):
            requests.start_soon(rig.ask, "a", 60)
            requests.start_soon(rig.ask, "b", 60)
            await trio.sleep(5)
    assert rig.hooks.calls.count(("a", "wake")) <= 4  # not one for each second


# ---- Hints ----


async def test_a_request_may_refuse_to_cause_a_switch(autojump_clock: MockClock) -> None:
    rig = Rig()
    never = Hints(never_switch=True)
    async with rig.running():
        with pytest.raises(WouldSwitch):
            async with rig.switcher.serving("a", hints=never):
                pass
        await rig.ask("a")
        async with rig.switcher.serving("a", hints=never):
            pass
    assert rig.hooks.calls == [("a", "wake")]


async def test_a_request_may_wait_less_than_others(autojump_clock: MockClock) -> None:
    rig = Rig(hooks=FakeHooks(seconds={("a", "wake"): 60}))
    async with rig.running():
        with pytest.raises(SwitchTimeout):
            async with rig.switcher.serving("a", hints=Hints(max_wait_s=3)):
                pass
        assert trio.current_time() == pytest.approx(3, abs=0.1)


async def test_a_weight_counts_in_the_sums_of_its_line(autojump_clock: MockClock) -> None:
    rig = Rig(hooks=FakeHooks(seconds={("a", "wake"): 60}))
    async with rig.running() as requests:

        async def ask(weight: float) -> None:
            async with rig.switcher.serving("a", hints=Hints(weight=weight)):
                pass

        requests.start_soon(ask, 1.0)
        requests.start_soon(ask, 9.0)
        await trio.sleep(10)
        ages = rig.switcher.models["a"].view().ages
        assert ages.total(trio.current_time()) == pytest.approx(100, rel=1e-3)


# ---- What is measured ----


async def test_what_policies_know_is_measured(autojump_clock: MockClock) -> None:
    rig = Rig(hooks=FakeHooks(seconds={("b", "wake"): 4}))
    async with rig.running() as requests:
        requests.start_soon(rig.ask, "a", 10)
        await trio.sleep(1)
        requests.start_soon(rig.ask, "b", 2)  # after a drain of 9 s and a wake of 4
        await trio.sleep(11)
        await rig.ask("a")
    measures = rig.switcher.measures
    assert measures.drain_s("a") == pytest.approx(9)
    assert measures.absence_s("a") == pytest.approx(9 + 4 + 2)
    assert measures.longest_drain_s() == pytest.approx(9)
    assert measures.latency_s("b", 1) == pytest.approx(2)
    assert measures.cost_s("a", "b") == pytest.approx(4)
    assert measures.arrivals_per_s("a", trio.current_time()) > 0


async def test_requests_that_are_refused_are_no_arrivals(autojump_clock: MockClock) -> None:
    rig = Rig(queued_per_model=2, hooks=FakeHooks(seconds={("b", "wake"): 60}))

    def rate(model: str) -> float:
        return rig.switcher.measures.arrivals_per_s(model, trio.current_time())

    async def poll(error: type[LlmuxError], hints: Hints = NO_HINTS) -> None:
        for _ in range(32):
            with pytest.raises(error):
                async with rig.switcher.serving("b", hints=hints):
                    pass

    async with rig.running() as requests:
        await rig.ask("a")
        await trio.sleep(1)
        rig.switcher.set_mode("manual")
        await poll(ManualMode)
        rig.switcher.set_mode("auto")
        await poll(WouldSwitch, Hints(never_switch=True))
        assert rate("b") == 0
        requests.start_soon(rig.ask, "b")
        requests.start_soon(rig.ask, "b")
        await trio.sleep(10)
        accepted = rate("b")
        assert accepted == pytest.approx(0.2, rel=0.01)
        await poll(QueueFull)
        assert rate("b") == accepted


async def test_drains_are_measured_by_how_many_were_in_flight(autojump_clock: MockClock) -> None:
    rig = Rig()
    async with rig.running() as requests:
        for count, seconds in ((1, 10), (4, 100)):
            for _ in range(count):
                requests.start_soon(rig.ask, "a", seconds)
            await trio.sleep(0.001)
            await rig.ask("b")
    measures = rig.switcher.measures
    ahead_s = [measures.drain_ahead_s("a", count) for count in (0, 1, 4)]
    assert ahead_s == [0, pytest.approx(20, rel=0.01), pytest.approx(100, rel=0.01)]


async def test_why_the_model_stays_is_known(autojump_clock: MockClock) -> None:
    rig = Rig("ab", min_active_secs=100)
    async with rig.running() as requests:
        await rig.ask("a")
        assert rig.switcher.why_it_stays == ""
        requests.start_soon(rig.ask, "b")
        await trio.sleep(10)
        assert "min_active_secs" in rig.switcher.why_it_stays
        await rig.switcher.pin(Pin(model="a", wait=True))
        assert rig.switcher.why_it_stays == "a is pinned"
        rig.switcher.unpin()
        await trio.sleep(100)
        assert rig.switcher.why_it_stays == ""


async def test_why_a_decided_switch_waits_is_known(autojump_clock: MockClock) -> None:
    rig = Rig("ab", traits={"a": Traits(max_in_flight=1)})
    async with rig.running() as requests:
        for _ in range(3):
            requests.start_soon(rig.ask, "a", 10)
        await trio.sleep(1)
        requests.start_soon(rig.ask, "b")
        await trio.sleep(1)
        assert rig.switcher.why_it_stays.startswith("the switch is decided")


async def test_a_policy_may_return_nothing_where_it_stays(autojump_clock: MockClock) -> None:
    class Terse:
        def __init__(self, _config: object) -> None: ...

        def decide(self, view: GroupView) -> Any:
            return None if view.active else SwitchTo("a")

    rig = Rig("ab", policy=Terse)
    async with rig.running() as requests:
        with trio.move_on_after(5):
            requests.start_soon(rig.ask, "a", 1)
            await rig.ask("b")
        assert not rig.switcher.has_died
        assert rig.switcher.why_it_stays == ""
