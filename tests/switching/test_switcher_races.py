"""The orders of events that go wrong in a careless switcher, one deterministic test each."""

from __future__ import annotations

import pytest
import trio
from trio.testing import MockClock, Sequencer, wait_all_tasks_blocked

from llmux.errors import HookError, LlmuxError, SwitchTimeout
from llmux.policy import Decision, FifoPolicy, Snapshot, Stay
from llmux.switching.model import Phase
from tests.fakes import FakeHooks, Rig


async def ask_and_leave(rig: Rig, model: str, scope: trio.CancelScope) -> None:
    with scope:
        await rig.ask(model, 1)


async def test_a_request_is_not_woken_only_to_find_its_model_leaving(
    autojump_clock: MockClock,
) -> None:
    """Planted bugs: settle before the guard is taken; release the lock before the barrier.

    While b wakes for one request, another for a waits: the switch back is decided in the very
    step in which b's request is told to go.
    """
    hooks = FakeHooks(gates={("b", "wake"): trio.Event()})
    rig = Rig(hooks=hooks)
    async with rig.running() as requests:
        await rig.ask("a")
        requests.start_soon(rig.ask, "b", 5)
        await wait_all_tasks_blocked()
        requests.start_soon(rig.ask, "a", 5)
        await wait_all_tasks_blocked()
        hooks.gates[("b", "wake")].set()
        await trio.sleep(1)
        assert hooks.inside == {"a": 0, "b": 1}
        assert rig.switcher.models["b"].phase is Phase.DRAINING
    assert hooks.served == {"a": 2, "b": 1}
    assert hooks.calls.count(("b", "wake")) == 1


async def test_when_the_barrier_is_passed_everyone_is_counted(autojump_clock: MockClock) -> None:
    """Planted bug: settle before the guard is taken.

    Many, because Trio runs the tasks of one step in random order: some would be late.
    """
    rig = Rig()
    model = rig.switcher.models["a"]

    async def stay() -> None:
        with await model.wait_admitted():
            await trio.sleep_forever()

    async with trio.open_nursery() as nursery:
        for _ in range(50):
            nursery.start_soon(stay)
        await wait_all_tasks_blocked()
        await model.waiters.grant()
        assert model.in_flight.count == 50
        nursery.cancel_scope.cancel()


async def test_no_change_is_missed_between_decision_and_wait(autojump_clock: MockClock) -> None:
    """Each time the policy says "stay", a request comes in the very next step."""
    todo = list("abababababababababab")

    class Policy(FifoPolicy):
        def decide(self, snapshot: Snapshot) -> Decision:
            decision = super().decide(snapshot)
            if isinstance(decision, Stay) and todo:
                requests.start_soon(rig.ask, todo.pop())
            return decision

    rig = Rig(policy=Policy)
    async with rig.running() as requests:
        with trio.fail_after(1000):
            while todo:
                await trio.sleep(1)
    assert rig.hooks.served == {"a": 10, "b": 10}


async def test_everyone_who_waited_is_let_in_before_the_next_switch(
    autojump_clock: MockClock,
) -> None:
    rig = Rig(hooks=FakeHooks(seconds={("b", "wake"): 5}))
    async with rig.running() as requests:
        await rig.ask("a")
        for _ in range(50):
            requests.start_soon(rig.ask, "b", 1)
        await wait_all_tasks_blocked()
        requests.start_soon(rig.ask, "a", 1)
        await trio.sleep(5.5)
        assert rig.hooks.inside["b"] == 50
    assert rig.hooks.calls.count(("b", "wake")) == 1


async def test_a_client_that_leaves_the_line_blocks_no_barrier(autojump_clock: MockClock) -> None:
    """Planted bug: forget to settle on cancel."""
    rig = Rig(hooks=FakeHooks(seconds={("a", "wake"): 5}))
    leaving = trio.CancelScope()
    async with rig.running() as requests:
        requests.start_soon(ask_and_leave, rig, "a", leaving)
        requests.start_soon(rig.ask, "a", 1)
        await trio.sleep(1)
        leaving.cancel()
        await wait_all_tasks_blocked()
        assert rig.switcher.models["a"].waiters.count == 1
        with trio.fail_after(10):
            await rig.ask("b")


async def test_a_client_that_leaves_in_the_step_of_its_grant(autojump_clock: MockClock) -> None:
    """Granted and cancelled in one step: whichever wins, the barrier passes and counts hold."""
    rig = Rig(hooks=FakeHooks(gates={("a", "wake"): trio.Event()}))
    model = rig.switcher.models["a"]
    for grant_first in (True, False):
        leaving = trio.CancelScope()
        async with trio.open_nursery() as nursery:

            async def wait(scope: trio.CancelScope) -> None:
                with scope:
                    flight = await model.wait_admitted()
                    with flight:
                        await trio.sleep_forever()

            nursery.start_soon(wait, leaving)
            await wait_all_tasks_blocked()
            if grant_first:
                nursery.start_soon(model.waiters.grant)
                leaving.cancel()
            else:
                leaving.cancel()
                nursery.start_soon(model.waiters.grant)
        rig.assert_empty()


async def test_a_client_that_leaves_while_in_flight_leaks_no_count(
    autojump_clock: MockClock,
) -> None:
    """Planted bug: leak an in-flight count on disconnect. The drain would never end."""
    rig = Rig()
    leaving = trio.CancelScope()
    async with rig.running() as requests:
        await rig.ask("a")

        async def stream() -> None:
            with leaving:
                await rig.ask("a", 1_000_000)

        requests.start_soon(stream)
        await wait_all_tasks_blocked()
        leaving.cancel()
        with trio.fail_after(10):
            await rig.ask("b")


async def test_a_lone_client_that_leaves_starts_no_switch(autojump_clock: MockClock) -> None:
    rig = Rig(min_active_secs=10)
    leaving = trio.CancelScope()
    async with rig.running() as requests:
        await rig.ask("a")
        requests.start_soon(ask_and_leave, rig, "b", leaving)
        await trio.sleep(5)
        leaving.cancel()
        await trio.sleep(20)
    assert rig.hooks.calls == [("a", "wake")]


async def test_a_client_that_leaves_cancels_no_hook(autojump_clock: MockClock) -> None:
    rig = Rig(hooks=FakeHooks(seconds={("a", "wake"): 5}))
    leaving = trio.CancelScope()
    async with rig.running() as requests:
        requests.start_soon(ask_and_leave, rig, "a", leaving)
        await trio.sleep(1)
        leaving.cancel()
        await trio.sleep(10)
        assert rig.switcher.active is rig.switcher.models["a"]


async def test_one_client_that_leaves_fails_no_other(autojump_clock: MockClock) -> None:
    rig = Rig(hooks=FakeHooks(seconds={("a", "wake"): 5}))
    leaving = trio.CancelScope()
    async with rig.running() as requests:
        requests.start_soon(ask_and_leave, rig, "a", leaving)
        await wait_all_tasks_blocked()
        requests.start_soon(rig.ask, "a", 1)
        await trio.sleep(1)
        leaving.cancel()
    assert rig.hooks.served == {"a": 1}


async def test_a_timeout_in_the_step_of_the_wake(autojump_clock: MockClock) -> None:
    """The wait ends when the wake does: a grant or a timeout, never both, never neither."""
    rig = Rig(hooks=FakeHooks(seconds={("a", "wake"): 5}), request_timeout_secs=5)
    ends: list[str] = []

    async def ask() -> None:
        try:
            await rig.ask("a", 1)
        except SwitchTimeout:
            ends.append("timeout")
        else:
            ends.append("served")

    async with rig.running() as requests:
        for _ in range(10):
            requests.start_soon(ask)
    assert len(ends) == 10


async def test_a_request_that_comes_between_failure_and_clean_up_waits_for_the_next_try(
    autojump_clock: MockClock,
) -> None:
    """The failed model's own sleep hook runs while it comes; it must not be lost."""
    hooks = FakeHooks(seconds={("a", "sleep"): 5}, failing={("a", "wake"): 1})
    rig = Rig(hooks=hooks)
    async with rig.running():
        with pytest.raises(HookError):
            await rig.ask("a")
        assert rig.switcher.models["a"].phase is Phase.SLEEPING
        assert isinstance(rig.switcher.models["a"].last_error, HookError)
        assert await rig.ask("a") == pytest.approx(5 + 2)


async def test_two_operators_and_a_request_at_once(autojump_clock: MockClock) -> None:
    rig = Rig("abc", hooks=FakeHooks(seconds={(m, "wake"): 1 for m in "abc"}))
    async with rig.running() as requests:
        requests.start_soon(rig.ask, "a", 1)
        await wait_all_tasks_blocked()
        requests.start_soon(rig.switcher.force_switch, "b")
        await wait_all_tasks_blocked()
        requests.start_soon(rig.switcher.force_switch, "c")
    assert [model for model, hook in rig.hooks.calls if hook == "wake"] == ["a", "b", "c"]


async def test_a_switch_waits_for_the_last_byte(autojump_clock: MockClock) -> None:
    """A stream that began before the switch was wanted is never under a sleep hook."""
    sequencer = Sequencer()
    rig = Rig()

    async def stream() -> None:
        async with rig.switcher.serving("a"), rig.hooks.request("a"):
            async with sequencer(0):
                pass
            async with sequencer(2):
                assert rig.hooks.calls == [("a", "wake")]

    async with rig.running() as requests:
        requests.start_soon(stream)
        async with sequencer(1):
            requests.start_soon(rig.ask, "b")
            await wait_all_tasks_blocked()
            assert rig.switcher.models["a"].phase is Phase.DRAINING
    assert rig.hooks.calls[1:] == [("a", "sleep"), ("b", "wake")]


async def test_an_error_told_to_many_does_not_grow(autojump_clock: MockClock) -> None:
    """Peers leak here: one exception raised by a thousand waiters gains a traceback from each."""
    rig = Rig(hooks=FakeHooks(seconds={("a", "wake"): 1}, failing={("a", "wake"): 1}))
    errors: list[LlmuxError] = []

    async def ask() -> None:
        try:
            await rig.ask("a")
        except LlmuxError as error:
            errors.append(error)

    async with rig.running() as requests:
        for _ in range(1000):
            requests.start_soon(ask)
    depth, traceback = 0, errors[-1].__traceback__
    while traceback is not None:
        depth, traceback = depth + 1, traceback.tb_next
    assert len(errors) == 1000
    assert depth < 20
