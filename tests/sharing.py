"""An in-memory machine whose models share memory, which notices every broken promise.

Its books are its own: they know nothing of llmux's ledger.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

import trio

from llmux.config import HookName
from llmux.errors import HookError
from llmux.policy import AdaptivePolicy
from llmux.policy.room import Amounts, Memory, Needs, total
from llmux.switching.memory import GroupMemory
from llmux.switching.model import Phase, Traits
from tests.fakes import FakeHooks, FakeModelHooks, Rig


@dataclass
class SharedHooks(FakeHooks):
    """Hooks on memory that models share.

    They check invariants 1 to 3 of docs/guarantees.md: no hook takes more than there is, hooks that
    touch the same resource run one at a time, no sleep with a request inside.

    Attributes:
        shared: The memory.
        stoppers: Which models have a `stop` hook.
        stands: For each model, the part of its needs that it holds: an attribute of `Needs`, or
            "stopped" for none; those that are not named sleep.
        leaving: What models need that the memory does not name any more.
        hooks: The hooks that run, and the resources that they touch.
        touched: What the last hook of each model touches, or has.
        last: Which one that was.
        forced: Models that may take what they need asleep in any case, since they are down.
        stopping: Models whose stop hook has run, which is to be verified.
        overlapped: The most hooks that ran at a time.
        faults: Number of hooks that failed, by hook.
    """

    shared: GroupMemory = field(default_factory=lambda: gpu(0))
    stoppers: set[str] = field(default_factory=set)
    stands: dict[str, str] = field(default_factory=dict)
    leaving: dict[str, Needs] = field(default_factory=dict)
    hooks: dict[tuple[str, str], frozenset[str]] = field(default_factory=dict)
    touched: dict[str, frozenset[str]] = field(default_factory=dict)
    last: dict[str, str] = field(default_factory=dict)
    stopping: set[str] = field(default_factory=set)
    forced: set[str] = field(default_factory=set)
    overlapped: int = 0
    faults: Counter[str] = field(default_factory=Counter)

    def of(self, model: str) -> FakeModelHooks:
        hooks = super().of(model)
        if model in self.stoppers:
            return hooks
        return FakeModelHooks(self, model, hooks.missing | {"stop"}, hooks.timeouts)

    # ---- The books ----

    def needs(self, model: str) -> Needs:
        return self.shared.memory.needs.get(model) or self.leaving[model]

    def held(self, model: str) -> Amounts:
        """Return what a model holds."""
        stands = self.stands.get(model, "asleep")
        needs = self.needs(model)
        return (0,) * len(needs.awake) if stands == "stopped" else getattr(needs, stands)

    @property
    def total(self) -> Amounts:
        """What all models hold."""
        memory = self.shared.memory
        names = {**memory.needs, **self.leaving}
        return total(map(self.held, names), (0,) * len(memory.amounts))

    def hold(self, model: str, stands: str) -> None:
        before, memory = self.total, self.shared.memory
        self.stands[model] = stands
        rows = zip(memory.resources, self.total, before, memory.amounts, strict=True)
        for name, amount, had, most in rows:
            # After a reload more may be held than there is, but nothing may be added to it.
            is_allowed = amount <= max(had, most) or model in self.forced
            assert is_allowed, f"{model}: {amount} of {most} {name}: {self.stands}"

    def use(self, memory: GroupMemory, leaving: Iterable[str] = ()) -> None:
        """Use other memory, of which models that are about to be removed need what they did."""
        old = self.shared.memory.resources

        def carry(amounts: Amounts, own: int = 1) -> Amounts:
            by_name = dict(zip(old, amounts, strict=True))
            names = memory.memory.resources
            return tuple(own if name[0] == "#" else by_name.get(name, 0) for name in names)

        known = {name: self.needs(name) for name in leaving}
        # Of what only llmux counts, one for each model that does not sleep.
        self.leaving = {
            name: Needs(
                carry(each.awake), carry(each.asleep, 0), carry(each.moving), carry(each.starting)
            )
            for name, each in known.items()
        }
        self.shared = memory

    def forget(self, model: str) -> None:
        """Forget a model that was removed."""
        self.leaving.pop(model, None)
        self.stands.pop(model, None)

    # ---- Hooks ----

    def touches(self, model: str) -> frozenset[str]:
        if self.shared.overlapping_hooks:
            return frozenset()
        return self.shared.touches.get(model, frozenset(self.shared.memory.resources))

    async def look(self, model: str) -> None:
        await super().look(model)
        if self.stands.get(model) in {"moving", "starting"}:
            self.hold(model, "awake")

    async def run(self, model: str, hook: HookName, *, source: str = "", target: str = "") -> None:
        key = (model, hook)
        if hook in {"alive", "prefetch"}:
            await super().run(model, hook, source=source, target=target)
            return
        self.calls.append(key)
        assert not self._drains(model) or not self.inside.get(model), f"{key} with a request inside"
        touches = self.touches(model)
        is_first = self.last.get(model) == "wake" and self.stands.get(model) == "awake"
        if hook != "wake" and not is_first:
            # It may belong to the hook before it, which a reload does not change.
            touches &= self.touched.get(model, touches)
        self.touched[model], self.last[model] = touches, hook
        for (other, running), theirs in self.hooks.items():
            assert other != model, f"{key} beside {running} of the same model"
            assert not touches & theirs, f"{key} beside {running} of {other}"
        self.hooks[key] = touches
        self.overlapped = max(self.overlapped, len(self.hooks))
        try:
            await self._run(model, hook)
        except HookError:
            self.faults[hook] += 1
            raise
        finally:
            del self.hooks[key]

    async def _run(self, model: str, hook: HookName) -> None:
        stands = self.stands.get(model, "asleep")
        was_awake = model in self.awake
        self.awake.discard(model)
        is_verified = model in self.verifiers
        if hook != "verify_asleep":
            self.stopping.discard(model)
        if hook == "wake":
            assert not was_awake, f"{model} wakes, but is awake"
            self.hold(model, "starting" if stands == "stopped" else "moving")
        elif hook == "sleep" and stands == "awake":
            self.hold(model, "falling")
        elif hook == "sleep" and stands == "starting":
            if model not in self.stoppers:  # a reload has removed its stop hook: no other way
                self.forced.add(model)
            self.hold(model, "moving")  # its wake has failed; it may take what it needs asleep
        try:
            await self._take((model, hook), model, hook)
        except HookError:
            if hook == "sleep" and not is_verified:  # as llmux has to assume
                self.hold(model, "asleep")
            raise
        if hook == "wake":
            self.awake.add(model)
            self.woken_at[model] = trio.current_time()
        elif hook == "stop":
            if is_verified and stands != "asleep":
                self.stopping.add(model)
            else:
                self.hold(model, "stopped")
        elif hook == "verify_asleep" or not is_verified:
            self.hold(model, "stopped" if model in self.stopping else "asleep")
            self.stopping.discard(model)


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
        self.memory = memory
        self.hooks.use(memory)
        self.switcher.use_memory(memory)

    @property
    def awake(self) -> set[str]:
        return {model.name for model in self.switcher.awake}

    def phase(self, model: str) -> Phase:
        return self.switcher.models[model].phase


_OF_HOOKS = {"seconds", "failing", "verifiers", "prefetchers", "gates", "timeouts", "loading_s"}
