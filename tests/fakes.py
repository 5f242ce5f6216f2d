"""An in-memory GPU that notices every broken invariant, and a switcher around it."""

from __future__ import annotations

import math
from collections.abc import AsyncIterator, Callable, Iterable, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any, Protocol

import trio

from llmux.config import HookName, PolicyConfig
from llmux.errors import HookError
from llmux.hooks.orphans import end_marked
from llmux.observe.journal import NO_JOURNAL, Journal, Request
from llmux.observe.listeners import observed, request_entry
from llmux.observe.metrics import Metrics
from llmux.observe.summary import RequestSummary
from llmux.policy import FifoPolicy, Policy
from llmux.switching.admission import Serving
from llmux.switching.awake import AwakeRecord
from llmux.switching.idle import NO_IDLE_RULES, IdleRules
from llmux.switching.memory import GroupMemory
from llmux.switching.model import Traits
from llmux.switching.switcher import Switcher

HookKey = tuple[str, str]
"""A model and a hook: `("a", "wake")`."""


@dataclass
class FakeHooks:
    """Hooks that run on an in-memory GPU with room for one model.

    The GPU checks the invariants of docs/guarantees.md where they could break: at most one model awake, hooks
    never overlap, no sleep with a request inside, requests only on an awake model.

    Attributes:
        seconds: How long each hook takes (default: no time, but one checkpoint).
        failing: Which hooks fail, and how often (-1: always).
        verifiers: Which models have a `verify_asleep` hook.
        prefetchers: Which models have a `prefetch` hook; it may overlap others.
        gates: Events that a hook waits for before it ends.
        timeouts: What the switcher is told of a hook's time-out; nothing ends it.
        calls: Every hook that was started, in order, but for the looks.
        looks: The looks at models that were just woken: the alive hook, whose key in the mappings
            above is ("a", "look") here.
        loading_s: How long a model is not alive after its wake hook has succeeded.
    """

    seconds: Mapping[HookKey, float] = field(default_factory=dict)
    failing: dict[HookKey, int] = field(default_factory=dict)
    verifiers: set[str] = field(default_factory=set)
    prefetchers: set[str] = field(default_factory=set)
    gates: dict[HookKey, trio.Event] = field(default_factory=dict)
    timeouts: dict[HookKey, float] = field(default_factory=dict)
    drains: bool = True
    freezing: set[str] = field(default_factory=set)
    calls: list[HookKey] = field(default_factory=list)
    looks: list[tuple[str, float]] = field(default_factory=list)
    loading_s: dict[str, float] = field(default_factory=dict)
    woken_at: dict[str, float] = field(default_factory=dict)
    awake: set[str] = field(default_factory=set)
    running: HookKey | None = None
    inside: dict[str, int] = field(default_factory=dict)
    served: dict[str, int] = field(default_factory=dict)

    def of(self, model: str) -> FakeModelHooks:
        optional = {"verify_asleep": self.verifiers, "prefetch": self.prefetchers}
        missing = {hook for hook, models in optional.items() if model not in models}
        timeouts = {hook: s for (name, hook), s in self.timeouts.items() if name == model}
        return FakeModelHooks(self, model, frozenset(missing), timeouts)

    async def end_marked(self, mark: str) -> None:
        await end_marked(mark)

    async def look(self, model: str) -> None:
        self.looks.append((model, trio.current_time()))
        await self._take((model, "look"), model, "alive")
        if trio.current_time() < self.woken_at.get(model, 0) + self.loading_s.get(model, 0):
            raise HookError(model, "alive", "exited with 22", exit_code=22, output="loading")

    async def run(self, model: str, hook: HookName, *, source: str = "", target: str = "") -> None:
        key = (model, hook)
        self.calls.append(key)
        if hook == "alive":
            await self._take(key, model, hook)
            if model not in self.awake:
                raise HookError(model, hook, "exited with 7", exit_code=7)
            return
        if hook == "prefetch":
            await self._take(key, model, hook)
            return
        assert self.running is None, f"{key} overlaps {self.running}"
        assert hook != "wake" or self.awake <= {model}, f"{key} while {self.awake} awake"
        assert not self._drains(model) or not self.inside.get(model), f"{key} with a request inside"
        self.running = key
        if hook == "sleep":
            self.awake.discard(model)
        try:
            await self._take(key, model, hook)
            if hook == "wake":
                self.awake.add(model)
                self.woken_at[model] = trio.current_time()
        finally:
            self.running = None

    def _drains(self, model: str) -> bool:
        return self.drains and model not in self.freezing

    async def _take(self, key: HookKey, model: str, hook: HookName) -> None:
        await trio.lowlevel.checkpoint()
        if key in self.gates:
            await self.gates[key].wait()
        await trio.sleep(self.seconds.get(key, 0))
        if self.failing.get(key, 0):
            self.failing[key] -= 1
            raise HookError(model, hook, "exited with 1", exit_code=1, output="no such GPU")

    @asynccontextmanager
    async def request(self, model: str) -> AsyncIterator[None]:
        """What a backend does with a request that reaches it."""
        assert model in self.awake, f"request on {model}, awake: {self.awake}"
        self.inside[model] = self.inside.get(model, 0) + 1
        try:
            yield
        finally:
            self.inside[model] -= 1
            self.served[model] = self.served.get(model, 0) + 1
            assert not self._drains(model) or model in self.awake, f"{model} slept under a request"


class RunsHooks(Protocol):
    """What fake hooks run on."""

    async def run(self, model: str, hook: HookName, *, source: str, target: str) -> None: ...


@dataclass(frozen=True)
class FakeModelHooks:
    """A model's hooks as they were at one instant."""

    gpu: RunsHooks
    model: str
    missing: frozenset[str]
    timeouts: Mapping[str, float]

    def has(self, hook: HookName) -> bool:
        return hook not in self.missing

    def timeout_s(self, hook: HookName) -> float:
        return self.timeouts.get(hook, math.inf)

    async def run(
        self, hook: HookName, *, source: str = "", target: str = "", expects_failure: bool = False
    ) -> None:
        assert self.has(hook), f"{self.model} has no {hook} hook"
        if expects_failure and isinstance(self.gpu, FakeHooks):
            await self.gpu.look(self.model)
            return
        await self.gpu.run(self.model, hook, source=source, target=target)


def journal_entry(model: str, serving: Serving) -> Callable[[float], Request]:
    """The journal's entry of a request that has just ended well."""
    flight, now = serving.flight, trio.current_time()
    assert flight is not None
    return request_entry(
        RequestSummary(
            id="",
            method=b"POST",
            path=b"/",
            model=model,
            client=None,
            status=200,
            outcome="done",
            arrived_at=now,
            ended_at=now,
            wait_s=serving.waited_s,
            first_byte_s=None,
            bytes_in=0,
            bytes_out=0,
            admitted_at=flight.entered_at,
            company=flight.company,
        )
    )


class Rig:
    """A switcher on a fake GPU, its `run` in the given nursery."""

    def __init__(
        self,
        models: Iterable[str] = ("a", "b"),
        *,
        hooks: FakeHooks | None = None,
        policy: Callable[[PolicyConfig], Policy] = FifoPolicy,
        queued_per_model: int = 1000,
        traits: Mapping[str, Traits] | None = None,
        journal: Journal = NO_JOURNAL,
        record: AwakeRecord | None = None,
        idle_rules: IdleRules = NO_IDLE_RULES,
        memory: GroupMemory | None = None,
        **settings: Any,
    ) -> None:
        self.hooks = hooks or FakeHooks()
        self.metrics = Metrics()
        self.journal = journal
        config = PolicyConfig(**settings)
        self.hooks.drains = config.drain_before_switch
        self.hooks.freezing = {n for n, t in (traits or {}).items() if t.preserves_in_flight}
        self.switcher = Switcher(
            tuple(models),
            self.hooks,
            policy(config),
            observed(self.metrics, journal),
            settings=config,
            queued_per_model=queued_per_model,
            traits=traits,
            record=record,
            idle_rules=idle_rules,
            memory=memory,
        )

    async def ask(self, model: str, seconds: float = 0) -> float:
        """One request that the backend answers after `seconds`; returns how long it waited."""
        async with self.switcher.serving(model) as serving, self.hooks.request(model):
            await trio.sleep(seconds)
        self.journal.add(journal_entry(model, serving))
        return serving.waited_s

    @asynccontextmanager
    async def running(self) -> AsyncIterator[trio.Nursery]:
        """Run the switcher; at the end every count must be zero.

        On the autojump clock a hang ends at once, at the deadline.
        """
        with trio.fail_after(1_000_000):
            async with trio.open_nursery() as nursery:
                nursery.start_soon(self.switcher.run)
                async with trio.open_nursery() as requests:
                    yield requests
                self.assert_empty()
                nursery.cancel_scope.cancel()

    def assert_empty(self) -> None:
        for model in self.switcher.models.values():
            assert model.in_flight.count == 0, model
            assert model.waiters.count == 0, model

    def counter(self, name: str, **labels: str) -> float:
        """A metric's value, 0 if it was never touched."""
        return self.metrics.registry.get_sample_value(name, labels) or 0.0
