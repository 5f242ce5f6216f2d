"""A whole llmux without its sockets, on the machine of `tests.sharing`, with everything that can go wrong."""

from __future__ import annotations

from collections import Counter
from collections.abc import AsyncIterator, Iterable, Mapping
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import trio

from llmux.config import Config, ModelConfig, parse_config
from llmux.errors import ConfigError, LlmuxError, StreamCut
from llmux.observe.events import Events
from llmux.observe.schemas import Pin
from llmux.policy.room import Memory, Needs, covers, total
from llmux.switching.ledger import Hold
from llmux.switching.memory import GroupMemory, memory_of
from llmux.switching.model import AT_REST, SERVES, Model, Phase
from llmux.switching.reload import Reloader
from llmux.switching.switchboard import Switchboard
from llmux.switching.switcher import Switcher
from tests.sharing import SharedHooks

GROUP = "default"

HOLDS = {
    Phase.ASLEEP: {Hold.ASLEEP, Hold.STOPPED},
    Phase.WAKING: {Hold.WAKING, Hold.STARTING},
    Phase.AWAKE: {Hold.AWAKE},
    Phase.DRAINING: {Hold.AWAKE},
    Phase.SLEEPING: {Hold.FALLING, Hold.AWAKE, Hold.WAKING, Hold.STARTING, Hold.UNSURE},
    Phase.FAILED: set(Hold),
}
"""What a model may hold in each phase."""

REFUSALS = {
    "hook_failed", "switch_timeout", "queue_full", "model_not_found", "manual_mode", "model_failing", "not_ready",
    "pinned", "no_room",
}  # fmt: skip


class Refused(Exception):
    """The model's server takes no connection."""


def config_of(models: Mapping[str, Any], **keys: Any) -> Config:
    """Return a config of these models, with hooks."""
    hooks = {"wake": "w", "sleep": "s", "alive": "a", "verify_asleep": "v"}
    found = {name: {"port": 1, **hooks, **model} for name, model in models.items()}
    return parse_config({"state_dir": "s", "models": found, **keys}, directory=Path())


def memory_in(config: Config) -> GroupMemory:
    """Return the memory of a config; of a group with room for one model, that room."""
    if (shared := memory_of(config, GROUP)) is not None:
        return shared
    one = Needs.of((1,))
    memory = Memory(("#one",), (1,), dict.fromkeys(config.models, one))
    touches = dict.fromkeys(config.models, frozenset({"#one"}))
    return GroupMemory(memory, touches, overlapping_hooks=False)


@dataclass
class StormHooks(SharedHooks):
    """The same, on servers that crash.

    Attributes:
        crashed: Models whose servers have ended although they are awake.
    """

    crashed: set[str] = field(default_factory=set)
    scopes: dict[str, list[trio.CancelScope]] = field(default_factory=dict)

    def crash(self, model: str) -> None:
        """End its server, and with it whatever it was doing."""
        if model in self.awake:
            self.faults["crash"] += 1
            self.awake.discard(model)
            self.crashed.add(model)
            for scope in self.scopes.get(model, []):
                scope.cancel()

    async def run(self, model: str, hook: Any, *, source: str = "", target: str = "") -> None:
        if hook in {"wake", "sleep", "stop"}:
            if model in self.crashed:
                self.forced.add(model)
            self.crashed.discard(model)
        await super().run(model, hook, source=source, target=target)
        if self.stands.get(model) in {"asleep", "stopped"}:
            self.forced.discard(model)

    @asynccontextmanager
    async def request(self, model: str) -> AsyncIterator[None]:
        if model in self.crashed:
            raise Refused
        with trio.CancelScope() as scope:
            mine = self.scopes.setdefault(model, [])
            mine.append(scope)
            assert model in self.awake, f"request on {model}, awake: {self.awake}"
            self.inside[model] = self.inside.get(model, 0) + 1
            try:
                yield
            finally:
                self.inside[model] -= 1
                mine.remove(scope)
            assert scope.cancel_called or model in self.awake, f"{model} slept under a request"
        if scope.cancelled_caught:
            raise Refused


def is_sound(config: Config) -> bool:
    """Return whether each model can be awake while all others sleep."""
    memory = memory_in(config).memory
    zero = (0,) * len(memory.amounts)

    def asleep(name: str) -> tuple[int, ...]:
        return zero if config.models[name].stop is not None else memory.needs[name].asleep

    def held(name: str) -> tuple[int, ...]:
        needs = memory.needs[name]
        return needs.starting if config.models[name].stop is not None else needs.moving

    def need(name: str) -> tuple[int, ...]:
        return total((asleep(each) for each in memory.needs if each != name), held(name))

    return all(covers(memory.amounts, need(name)) for name in memory.needs)


class Storm:
    """One group of models on one machine, with reloads and operators.

    Attributes:
        hooks: The machine.
        events: What it tells.
        board: The switchboard.
        config: The config in use.
        ends: How requests ended, and how often.
        asked: Number of requests so far.
    """

    def __init__(self, config: Config, hooks: StormHooks) -> None:
        self.hooks = hooks
        self.ends: Counter[str] = Counter()
        self.asked = 0
        self.config = config
        hooks.shared = memory_in(config)
        for name, model in config.models.items():
            self._use(name, model)
        self.events = Events()
        self.board = Switchboard(config, hooks, self.events)
        self.reloader = Reloader(config, self.board)
        self.reloader.tell(of_models=self._use)

    def _use(self, name: str, model: ModelConfig | None) -> None:
        if model is None:
            self.hooks.forget(name)
        elif model.stop is None:
            self.hooks.stoppers.discard(name)
            if self.hooks.stands.get(name) == "stopped":  # as llmux counts it from now on
                self.hooks.stands[name] = "asleep"
        else:
            self.hooks.stoppers.add(name)

    @property
    def switcher(self) -> Switcher:
        return self.board.groups[GROUP]

    async def ask(self, name: str, seconds: float) -> None:
        """One request; it is counted however it ends."""
        self.asked += 1
        end = "left"
        try:
            await self._ask(name, seconds)
            end = "served"
        except LlmuxError as error:
            assert error.code in REFUSALS, error
            end = error.code
        except (StreamCut, Refused) as error:
            end = type(error).__name__
        finally:
            self.ends[end] += 1

    async def _ask(self, name: str, seconds: float) -> None:
        serving = self.board.serving(name)
        try:
            async with serving, self.hooks.request(name):
                await trio.sleep(seconds)
        except Refused:
            if name not in self.board.models or name not in self.hooks.crashed:
                raise
            with serving.waiting_beside_line():
                await self.board.refused(name)
            async with serving, self.hooks.request(name):
                await trio.sleep(seconds)

    # ---- Operators and reloads ----

    async def switch(self, name: str) -> None:
        with suppress(LlmuxError):
            await self.board.force_switch(name)

    async def sleep(self, name: str) -> None:
        with suppress(LlmuxError):
            await self.board.put_model_to_sleep(name)

    async def pin(self, name: str, *, wait: bool) -> None:
        with suppress(LlmuxError):
            await self.board.pin(Pin(model=name, wait=wait))

    def reload(self, config: Config) -> None:
        """Use another config, unless it cannot be used now."""
        try:
            self.reloader.apply(config)
        except ConfigError:
            return
        self.config = config
        self.hooks.faults["reload"] += 1
        models = self.switcher.models if GROUP in self.board.groups else ()
        self.hooks.use(memory_in(config), [name for name in models if name not in config.models])

    # ---- What must hold ----

    def check(self) -> None:
        """Check what holds at every instant."""
        if GROUP not in self.board.groups:
            return
        ledger = self.switcher.room.ledger
        held = total(map(ledger.held, self.switcher.models), (0,) * len(ledger.free))
        assert total([held], ledger.free) == ledger.memory.amounts
        for model in self.switcher.models.values():
            assert not (model.in_flight.count and model.phase not in SERVES), model
            assert not (model.is_awake and model.room > 0 and model.waiters.count), model
            view = model.view()
            assert view.ages.count == view.queued == model.waiters.count

    def check_at_rest(self) -> None:
        """Check what holds whenever all tasks wait: llmux and the machine agree."""
        self.check()
        if GROUP not in self.board.groups:
            return
        switcher, ledger = self.switcher, self.switcher.room.ledger
        real = [not name.startswith("#") for name in ledger.memory.resources]
        assert switcher._group.switch_lock.locked() == bool(switcher._group.running)
        for name, model in switcher.models.items():
            hold = ledger.hold(name)
            assert hold in HOLDS[model.phase], (model, hold)
            assert model.holds_gpu is (hold not in {Hold.ASLEEP, Hold.STOPPED}), (model, hold)
            assert model.in_flight.count == self.hooks.inside.get(name, 0), model
            # The ledger may have one resource more, for a model that leaves and is awake alone.
            pairs = zip(ledger.held(name), self.hooks.held(name), real, strict=False)
            is_same = all(a == b for a, b, is_real in pairs if is_real)
            assert is_same, (model, hold, self.hooks.stands)
            if model.is_awake:
                assert name in self.hooks.awake | self.hooks.crashed, model

    @property
    def waiting(self) -> list[Model]:
        """The models that requests wait for although nothing bars them from waking."""
        if GROUP not in self.board.groups:
            return []
        models = self.switcher.models.values()
        return [model for model in models if model.wanted_by and not self.is_barred(model)]

    def is_barred(self, model: Model) -> bool:
        """Return whether pins, models that are kept or the manual mode bar a model from waking."""
        switcher = self.switcher
        spared = {pin.model for pin in switcher.pins}
        spared |= {m.name for m in switcher.models.values() if m.is_kept and m.phase not in AT_REST}
        if model.name in switcher._group.leaving and not self.fit({model.name}, model.name):
            return True
        pinned = {pin.model for pin in switcher.pins}
        if switcher.mode == "manual" or (
            pinned and not self.fit({*pinned, model.name}, model.name)
        ):
            return True
        return not self.fit({*spared, model.name}, model.name)

    def fit(self, awake: Iterable[str], wakes: str) -> bool:
        """Return whether models may be awake while one of them wakes."""
        memory, stoppers = self.hooks.shared.memory, self.hooks.stoppers
        zero = (0,) * len(memory.amounts)

        def held(name: str) -> tuple[int, ...]:
            needs = self.hooks.needs(name)
            if name not in awake:
                return zero if name in stoppers else needs.asleep
            if name != wakes:
                return needs.awake
            return needs.starting if name in stoppers else needs.moving

        return covers(memory.amounts, total(map(held, self.switcher.models), zero))
