"""Hypothesis plays client, operator and broken hook, one step at a time.

Each rule runs in the Trio thread until every task is blocked; the clock moves only when a rule
says so. So a failing example shrinks to the few steps that matter.
"""

from __future__ import annotations

import threading
from collections.abc import Awaitable, Callable
from typing import Any

import pytest
import trio
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule
from trio.testing import MockClock, wait_all_tasks_blocked

from llmux.errors import LlmuxError
from llmux.switching.breaker import refusal
from llmux.switching.model import Model, Phase
from tests.fakes import FakeHooks, Rig

MODELS = ("a", "b", "c")
models = st.sampled_from(MODELS)
hooks = st.sampled_from(["wake", "sleep", "verify_asleep"])


class SwitcherMachine(RuleBasedStateMachine):
    def __init__(self) -> None:
        super().__init__()
        self.clock = MockClock()
        self.clients: list[trio.CancelScope] = []
        self.accepted = 0
        self.ended = 0
        self.error: BaseException | None = None
        self._ready = threading.Event()
        self._thread = threading.Thread(target=self._run_trio)

    # ---- The Trio thread ----

    def _run_trio(self) -> None:
        try:
            trio.run(self._main, clock=self.clock)
        except BaseException as error:
            self.error = error
        finally:
            self._ready.set()

    async def _main(self) -> None:
        self.rig = Rig(MODELS, hooks=self.fake, **self.policy)
        self.token = trio.lowlevel.current_trio_token()
        async with trio.open_nursery() as self.life:
            self.life.start_soon(self.rig.switcher.run)
            self._ready.set()

    def step(self, action: Callable[[], Awaitable[Any] | None]) -> None:
        async def act() -> None:
            action()
            await wait_all_tasks_blocked()

        try:
            trio.from_thread.run(act, trio_token=self.token)
        except (trio.RunFinishedError, trio.Cancelled):
            self._thread.join()
            raise AssertionError("the switcher died") from self.error

    def _waiting_in_vain(self) -> list[Model]:
        """Models that are failing, with requests in line although no trial is due."""
        group = self.rig.switcher._group
        models = [] if group.switch_lock.locked() else group.models.values()
        return [each for each in models if each.waiters.count and refusal(group, each)]

    @initialize(
        seconds=st.dictionaries(st.tuples(models, hooks), st.sampled_from([0.0, 1.0, 3.0])),
        verifiers=st.sets(models),
        timeout=st.sampled_from([None, 5.0]),
        min_active=st.sampled_from([0.0, 4.0]),
    )
    def start(
        self,
        seconds: dict[tuple[str, str], float],
        verifiers: set[str],
        timeout: float | None,
        min_active: float,
    ) -> None:
        self.fake = FakeHooks(seconds=seconds, verifiers=verifiers)
        self.policy: dict[str, Any] = {
            "request_timeout_secs": timeout,
            "min_active_secs": min_active,
        }
        self._thread.start()
        self._ready.wait()

    def teardown(self) -> None:
        if not self._thread.is_alive():
            return
        self.token.run_sync_soon(self.life.cancel_scope.cancel)
        self._thread.join()
        if self.error is not None:
            raise self.error
        assert self.ended == self.accepted
        self.rig.assert_empty()

    # ---- What happens ----

    @rule(model=models, seconds=st.sampled_from([0.0, 1.0, 10.0]))
    def a_client_comes(self, model: str, seconds: float) -> None:
        scope = trio.CancelScope()
        self.clients.append(scope)
        self.accepted += 1

        async def ask() -> None:
            try:
                with scope:
                    await self.rig.ask(model, seconds)
            except LlmuxError:
                pass
            finally:
                self.ended += 1

        self.step(lambda: self.life.start_soon(ask))

    @precondition(lambda self: self.clients)
    @rule(which=st.integers(min_value=0))
    def a_client_leaves(self, which: int) -> None:
        scope = self.clients.pop(which % len(self.clients))
        self.step(scope.cancel)

    @rule(seconds=st.sampled_from([0.5, 1.0, 5.0, 61.0]))
    def time_passes(self, seconds: float) -> None:
        self.step(lambda: self.clock.jump(seconds))

    @rule(model=models)
    def an_operator_switches(self, model: str) -> None:
        async def switch() -> None:
            try:
                await self.rig.switcher.force_switch(model)
            except LlmuxError:
                pass

        self.step(lambda: self.life.start_soon(switch))

    @rule(mode=st.sampled_from(["auto", "manual"]))
    def an_operator_sets_the_mode(self, mode: Any) -> None:
        self.step(lambda: self.rig.switcher.set_mode(mode))

    @rule(model=models, hook=hooks, times=st.integers(1, 5))
    def a_hook_will_fail(self, model: str, hook: str, times: int) -> None:
        self.fake.failing[model, hook] = times

    # ---- What must hold ----

    @invariant()
    def the_switcher_lives(self) -> None:
        if self._thread.is_alive():
            assert not self.rig.switcher.has_died

    @invariant()
    def nobody_waits_for_a_model_that_is_awake(self) -> None:
        if self._thread.is_alive():
            for model in self.rig.switcher.models.values():
                assert not (model.is_awake and model.waiters.count)

    @invariant()
    def nobody_waits_for_a_failing_model_in_vain(self) -> None:
        if self._thread.is_alive():
            # In the Trio thread, since the answer depends on its clock.
            assert not trio.from_thread.run_sync(self._waiting_in_vain, trio_token=self.token)

    @invariant()
    def requests_are_only_in_models_that_serve(self) -> None:
        if self._thread.is_alive():
            for model in self.rig.switcher.models.values():
                serving = model.phase in (Phase.AWAKE, Phase.DRAINING)
                assert model.in_flight.count == self.fake.inside.get(model.name, 0)
                assert serving or not model.in_flight.count

    @invariant()
    def at_most_one_model_is_awake(self) -> None:
        if self._thread.is_alive():
            assert len(self.fake.awake) <= 1


TestSwitcher = SwitcherMachine.TestCase
TestSwitcher.settings = settings(max_examples=75, stateful_step_count=30)


@pytest.mark.slow
class TestSwitcherForLonger(SwitcherMachine.TestCase):  # type: ignore[valid-type, misc]
    """The same, with more steps and many more examples."""

    settings = settings(max_examples=300, stateful_step_count=50)
