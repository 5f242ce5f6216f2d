"""An in-memory machine whose models share memory, which notices every broken promise.

Its books are its own: they know nothing of llmux's ledger.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import trio

from llmux.config import HookName
from llmux.errors import HookError
from llmux.policy import AdaptivePolicy
from llmux.policy.room import Amounts, Memory, Needs
from llmux.switching.memory import GroupMemory
from llmux.switching.model import Phase, Traits
from tests.fakes import FakeHooks, FakeModelHooks, Rig


@dataclass
class SharedHooks(FakeHooks):
    """Hooks on memory that models share.

    They check invariants 1 to 3 of docs/guarantees.md: no more is held than there is, hooks that
    touch the same resource run one at a time, no sleep with a request inside.

    Attributes:
        shared: The memory.
        stoppers: Which models have a `stop` hook.
        held: What each model holds.
        hooks: The hooks that run.
        overlapped: The most hooks that ran at a time.
        checks: False while more is held than there is for a reason outside llmux.
    """

    shared: GroupMemory = field(default_factory=lambda: gpu(0))
    stoppers: set[str] = field(default_factory=set)
    held: dict[str, Amounts] = field(default_factory=dict)
    hooks: list[tuple[str, str]] = field(default_factory=list)
    overlapped: int = 0
    checks: bool = True

    def of(self, model: str) -> FakeModelHooks:
        hooks = super().of(model)
        if model in self.stoppers:
            return hooks
        return FakeModelHooks(self, model, hooks.missing | {"stop"}, hooks.timeouts)

    def needs(self, model: str) -> Needs:
        return self.shared.memory.needs[model]

    def hold(self, model: str, amounts: Amounts) -> None:
        self.held[model] = amounts
        if self.checks:
            self.check()

    def check(self) -> None:
        memory = self.shared.memory
        held = [self.held.get(name, needs.asleep) for name, needs in memory.needs.items()]
        total = tuple(map(sum, zip(*held, strict=True)))
        for name, amount, most in zip(memory.resources, total, memory.amounts, strict=True):
            assert amount <= most, f"{amount} of {most} {name} are held: {self.held}"

    async def run(self, model: str, hook: HookName, *, source: str = "", target: str = "") -> None:
        key = (model, hook)
        if hook in {"alive", "prefetch"}:
            await super().run(model, hook, source=source, target=target)
            return
        self.calls.append(key)
        assert not self._drains(model) or not self.inside.get(model), f"{key} with a request inside"
        mine = self.shared.touches.get(model, frozenset(self.shared.memory.resources))
        for other, running in self.hooks:
            theirs = self.shared.touches.get(other, frozenset(self.shared.memory.resources))
            assert other != model, f"{key} beside {running} of the same model"
            is_apart = self.shared.overlapping_hooks or not mine & theirs
            assert is_apart, f"{key} beside {running} of {other}"
        self.overlapped = max(self.overlapped, len(self.hooks) + 1)
        self.hooks.append(key)
        needs = self.needs(model)
        if hook == "wake":
            is_cold = not any(self.held.get(model, needs.asleep))
            self.hold(model, needs.starting if is_cold else needs.moving)
        elif hook == "sleep" and model in self.awake:
            self.hold(model, needs.falling)
        self.awake.discard(model)
        try:
            await self._take(key, model, hook)
            if hook == "wake":
                self.awake.add(model)
                self.woken_at[model] = trio.current_time()
                self.hold(model, needs.awake)
            elif hook == "verify_asleep" or (hook == "sleep" and model not in self.verifiers):
                self.hold(model, needs.asleep)
            elif hook == "stop":
                self.hold(model, (0,) * len(needs.awake))
        except HookError:
            if hook == "sleep" and model not in self.verifiers:  # as llmux has to assume
                self.hold(model, needs.asleep)
            raise
        finally:
            self.hooks.remove(key)


def gpu(amount: int, **needs: int) -> GroupMemory:
    """Return one resource of which each model needs so much awake, and nothing asleep."""
    memory = Memory(("gpu",), (amount,), {name: Needs.of((need,)) for name, need in needs.items()})
    return GroupMemory(memory, dict.fromkeys(needs, frozenset({"gpu"})), overlapping_hooks=False)


def shared(
    amounts: Mapping[str, int],
    models: Mapping[str, Needs],
    touches: Mapping[str, frozenset[str]] | None = None,
    *,
    overlapping_hooks: bool = False,
) -> GroupMemory:
    """Return memory of several resources; a model's hooks touch what it needs awake."""
    names = tuple(amounts)
    touched = {
        model: frozenset(n for n, amount in zip(names, needs.awake, strict=True) if amount)
        for model, needs in models.items()
    }
    memory = Memory(names, tuple(amounts.values()), models)
    return GroupMemory(memory, touches or touched, overlapping_hooks=overlapping_hooks)


class SharedRig(Rig):
    """A switcher whose models share memory, on a machine that checks it."""

    hooks: SharedHooks

    def __init__(self, memory: GroupMemory, **options: Any) -> None:
        fake = {key: options.pop(key) for key in list(options) if key in _OF_HOOKS}
        traits: dict[str, Traits] = dict(options.pop("traits", None) or {})
        stoppers = {name for name, each in traits.items() if each.stops}
        hooks = SharedHooks(shared=memory, stoppers=stoppers, **fake)
        options.setdefault("policy", AdaptivePolicy)
        super().__init__(memory.memory.needs, hooks=hooks, memory=memory, traits=traits, **options)
        self.memory = memory

    def use(self, memory: GroupMemory) -> None:
        """Change the memory, as a reload does."""
        self.hooks.shared = self.memory = memory
        self.switcher.use_memory(memory)

    @property
    def awake(self) -> set[str]:
        return {model.name for model in self.switcher.awake}

    def phase(self, model: str) -> Phase:
        return self.switcher.models[model].phase


_OF_HOOKS = {"seconds", "failing", "verifiers", "prefetchers", "gates", "timeouts", "loading_s"}
