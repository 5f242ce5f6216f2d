"""A command that runs: what it has been promised, and the models that it puts to sleep."""

from __future__ import annotations

from collections.abc import Callable
from itertools import count

from llmux.switching.commands import Command
from llmux.switching.hooks import ModelHooks
from llmux.switching.ledger import Plan
from llmux.switching.model import Model

NUMBERS = count(1)


class Eviction:
    """One model that a command puts to sleep.

    Attributes:
        model: The model.
        hooks: Its hooks when the command began.
        is_called_off: True if it stays after all.
        may_stay: True until its sleep hook starts.
        is_over: True once it sleeps, stays after all, or its sleep has failed.
        drain_s: Duration of its drain, in seconds.
        sleep_s: Time of its sleep hook, in seconds; None while it has not slept.
    """

    def __init__(self, model: Model, hooks: ModelHooks) -> None:
        self.model, self.hooks = model, hooks
        self.is_called_off = False
        self.may_stay = True
        self.is_over = False
        self.drain_s = 0.0
        self.sleep_s: float | None = None


class Running:
    """A command that is being carried out.

    Attributes:
        command: The command.
        plan: Its place in the ledger.
        number: Its place in the order of all commands: earlier ones go first.
        evictions: The models that it puts to sleep, by name.
        is_waking: True from its start until the wake of its target has ended.
        is_fixed: True if other evictions were asked for, and there is no room for that.
        failure: Why it has failed or was abandoned, while models of its own still move.
        begin: Begins a further eviction, or to stop a further model, while others go on; None
            before and after.
    """

    def __init__(self, command: Command, plan: Plan) -> None:
        self.command = command
        self.plan = plan
        self.number = next(NUMBERS)
        self.evictions: dict[str, Eviction] = {}
        self.is_waking = False
        self.is_fixed = False
        self.failure: Exception | None = None
        self.begin: Callable[[Eviction | Model], object] | None = None

    def __repr__(self) -> str:
        return f"<Running {type(self.command).__name__} {self.command.target.name!r} {self.plan}>"

    @property
    def target(self) -> Model:
        return self.command.target

    @property
    def draining(self) -> tuple[str, ...]:
        """The models that it evicts and that could still stay."""
        return tuple(
            name
            for name, each in self.evictions.items()
            if each.may_stay and not (each.is_called_off or each.is_over)
        )

    def replace(self, plan: Plan) -> list[str]:
        """Take another plan; call off the evictions that it does not need, return the new ones."""
        known = {name for name, each in self.evictions.items() if not each.is_called_off}
        self.plan = plan
        for name, each in self.evictions.items():
            if name not in plan.evict:
                each.is_called_off = True
        return [name for name in plan.evict if name not in known]
