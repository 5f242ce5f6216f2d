"""Hypothesis plays client, operator, reload and broken hook, where models share memory.

Each rule runs in the Trio thread until every task is blocked; the clock moves only when a rule
says so.
"""

from __future__ import annotations

import threading
from collections.abc import Awaitable, Callable
from typing import Any

import pytest
import trio
from hypothesis import assume, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule
from trio.testing import MockClock, wait_all_tasks_blocked

from llmux.errors import ConfigError
from tests.storm import GROUP, Storm, StormHooks, config_of, is_sound

MODELS = ("a", "b", "c", "d", "e")
names = st.sampled_from(MODELS)
hooks = st.sampled_from(["wake", "sleep", "verify_asleep", "stop"])

BOUND_S = 60.0
"""`max_wait_secs`."""

LONGEST_S = 1800.0
"""Upper bound of a wait when nothing fails any more: the bound, and five turns, each of at most
eight hooks and one drain, after a retry 60 s later."""

model_configs = st.fixed_dictionaries(
    {
        "needs": st.sampled_from(
            [
                {"gpu0": 20},
                {"gpu0": 40},
                {"gpu0": 40, "ram": 10},
                {"gpu0": 80},
                {"gpu1": 40},
                {"gpu1": 60, "ram": 30},
                {"gpu0": 80, "gpu1": 80},
                {"ram": 20},
            ]
        )
    },
    optional={
        "needs_asleep": st.sampled_from([{"ram": 10}, {"ram": 40}]),
        "needs_waking": st.sampled_from([{"gpu0": 50}, {"ram": 30}]),
        "stop": st.just("x"),
        "keep": st.sampled_from([False, False, True]),
        "max_in_flight": st.sampled_from([1, 2]),
        "idle_sleep_secs": st.sampled_from([5, 30]),
        "port": st.sampled_from([2, 3]),
        "abandon_wakes": st.just(True),
    },
)
group_configs = st.fixed_dictionaries(
    {
        "models": st.dictionaries(names, model_configs, min_size=3),
        "ram": st.sampled_from([60, 100, 200]),
        "gpu0": st.sampled_from([80, 80, 100]),
        "overlapping_hooks": st.booleans(),
        "kind": st.sampled_from(["needs"] * 4 + ["sets", "one", "alone"]),
    }
)


def parsed(drawn: dict[str, Any], policy: dict[str, Any]) -> Any:
    """Return the config that was drawn; raises ConfigError if it has a mistake."""
    models = {name: dict(model) for name, model in drawn["models"].items()}
    first = sorted(models)
    keys: dict[str, Any] = {}
    if drawn["kind"] in {"sets", "one"}:
        for model in models.values():
            for key in ("needs", "needs_asleep", "needs_waking"):
                model.pop(key, None)
    if drawn["kind"] == "sets":
        keys["sets"] = [first[:2], first[1:3]]
    if drawn["kind"] == "alone":
        for key in ("needs", "needs_asleep", "needs_waking"):
            models[first[0]].pop(key, None)
    if drawn["kind"] in {"needs", "alone"}:
        keys["resources"] = {"gpu0": drawn["gpu0"], "gpu1": 80, "ram": drawn["ram"]}
        keys["overlapping_hooks"] = drawn["overlapping_hooks"]
    config = config_of(models, policy={"max_wait_secs": BOUND_S, **policy}, **keys)
    if not is_sound(config):
        raise ConfigError(["a model can never be awake"])
    return config


class SharingMachine(RuleBasedStateMachine):
    def __init__(self) -> None:
        super().__init__()
        self.clock = MockClock()
        self.clients: list[trio.CancelScope] = []
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
        self.storm = Storm(self.config, self.fake)
        self.token = trio.lowlevel.current_trio_token()
        async with trio.open_nursery() as self.life:
            self.life.start_soon(self.storm.board.run)
            self._ready.set()

    def step(self, action: Callable[[], Awaitable[Any] | object]) -> None:
        async def act() -> None:
            action()
            await wait_all_tasks_blocked()
            self.storm.check_at_rest()

        try:
            trio.from_thread.run(act, trio_token=self.token)
        except (trio.RunFinishedError, trio.Cancelled):
            self._thread.join()
            raise AssertionError("the switcher died") from self.error

    @initialize(
        drawn=group_configs,
        seconds=st.dictionaries(st.tuples(names, hooks), st.sampled_from([1.0, 3.0])),
        verifiers=st.sets(names),
        timeout=st.sampled_from([None, None, 20.0]),
        min_active=st.sampled_from([0.0, 4.0]),
    )
    def start(
        self,
        drawn: dict[str, Any],
        seconds: dict[tuple[str, str], float],
        verifiers: set[str],
        timeout: float | None,
        min_active: float,
    ) -> None:
        self.fake = StormHooks(seconds=seconds, verifiers=verifiers)
        self.policy: dict[str, Any] = {
            "request_timeout_secs": timeout,
            "min_active_secs": min_active,
        }
        try:
            self.config = parsed(drawn, self.policy)
        except ConfigError:
            assume(False)
        self._thread.start()
        self._ready.wait()

    def teardown(self) -> None:
        if not self._thread.is_alive():
            return
        try:
            self.nobody_is_forgotten()
        finally:
            self.token.run_sync_soon(self.life.cancel_scope.cancel)
            self._thread.join()
        if self.error is not None:
            raise self.error
        assert self.storm.ends.total() == self.storm.asked

    def nobody_is_forgotten(self) -> None:
        """After everything that can go wrong, each request is served within a bound."""
        self.fake.failing.clear()
        passed_s = 0.0
        while passed_s < LONGEST_S:
            passed_s += 5.0
            self.step(lambda: self.clock.jump(5.0))
            if not self.storm.waiting:
                return
        waiting = self.storm.waiting
        assert not waiting, (waiting, self.storm.switcher, self.storm.switcher._group.running)

    # ---- What happens ----

    @rule(model=names, seconds=st.sampled_from([0.0, 1.0, 10.0, 100.0]))
    def a_client_comes(self, model: str, seconds: float) -> None:
        if model not in self.storm.board.models:
            return
        scope = trio.CancelScope()
        self.clients.append(scope)

        async def ask() -> None:
            with scope:
                await self.storm.ask(model, seconds)

        self.step(lambda: self.life.start_soon(ask))

    @precondition(lambda self: self.clients)
    @rule(which=st.integers(min_value=0))
    def a_client_leaves(self, which: int) -> None:
        scope = self.clients.pop(which % len(self.clients))
        self.step(scope.cancel)

    @rule(seconds=st.sampled_from([0.5, 1.0, 5.0, 61.0]))
    def time_passes(self, seconds: float) -> None:
        self.step(lambda: self.clock.jump(seconds))

    @rule(model=names, what=st.sampled_from(["switch", "sleep", "pin", "pin_and_wait"]))
    def an_operator_acts(self, model: str, what: str) -> None:
        storm = self.storm
        acts: dict[str, Callable[[], Awaitable[None]]] = {
            "switch": lambda: storm.switch(model),
            "sleep": lambda: storm.sleep(model),
            "pin": lambda: storm.pin(model, wait=False),
            "pin_and_wait": lambda: storm.pin(model, wait=True),
        }
        self.step(lambda: self.life.start_soon(acts[what]))

    @rule(model=st.one_of(st.none(), names))
    def an_operator_unpins(self, model: str | None) -> None:
        if GROUP in self.storm.board.groups:
            self.step(lambda: self.storm.switcher.unpin(model))

    @rule(mode=st.sampled_from(["auto", "manual"]))
    def an_operator_sets_the_mode(self, mode: Any) -> None:
        self.step(lambda: self.storm.board.set_mode(mode))

    @rule(model=names, hook=hooks, times=st.integers(1, 5))
    def a_hook_will_fail(self, model: str, hook: str, times: int) -> None:
        self.fake.failing[model, hook] = times

    @rule(drawn=group_configs)
    def the_config_changes(self, drawn: dict[str, Any]) -> None:
        try:
            config = parsed(drawn, self.policy)
        except ConfigError:
            return
        self.step(lambda: self.storm.reload(config))

    @rule(model=names)
    def a_server_crashes(self, model: str) -> None:
        self.step(lambda: self.storm.hooks.crash(model))

    # ---- What must hold ----

    @invariant()
    def the_switcher_lives(self) -> None:
        if self._thread.is_alive():
            assert all(not each.has_died for each in self.storm.board.groups.values())


TestSharing = SharingMachine.TestCase
TestSharing.settings = settings(max_examples=60, stateful_step_count=30)


@pytest.mark.slow
class TestSharingForLonger(SharingMachine.TestCase):  # type: ignore[valid-type, misc]
    """The same, with more steps and many more examples."""

    settings = settings(max_examples=400, stateful_step_count=50)
