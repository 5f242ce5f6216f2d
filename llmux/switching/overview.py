"""Questions about all groups: what is awake, who waits, what switches cost."""

from __future__ import annotations

from itertools import chain

import trio

from llmux.config import ModelConfig
from llmux.observe.metrics import Counts, ModelGauges
from llmux.switching.group import Mode, State
from llmux.switching.groups import Groups
from llmux.switching.model import Model
from llmux.switching.switcher import Switcher


class Overview:
    """Answers questions about all groups, as they are at this instant."""

    def __init__(self, groups: Groups) -> None:
        self._groups = groups

    @property
    def groups(self) -> dict[str, Switcher]:
        """The switchers by group, in the config's order."""
        return self._groups.switchers

    @property
    def mode(self) -> Mode:
        """`auto`, or `manual`: then nothing but `force_switch` switches, in any group."""
        return self._groups.mode

    def switcher_of(self, model: str) -> Switcher:
        """Return the switcher of a model's group; raises ModelNotFound."""
        return self._groups.switcher_of(model)

    def config_of(self, model: str) -> ModelConfig:
        """Return the config of a model that is in use."""
        return self._groups.config_of(model)

    @property
    def state(self) -> State:
        """`switching` while any group is, else `active` if any is, else `idle`."""
        states = {switcher.state for switcher in self._groups.switchers.values()}
        return next(s for s in ("switching", "active", "idle") if s in states)

    @property
    def active_model(self) -> str | None:
        """The model that is awake; with several groups, the first group's that has one."""
        return next((name for name in self.active_models.values() if name), None)

    @property
    def active_models(self) -> dict[str, str | None]:
        """The model that is awake in each group."""
        return {
            group: switcher.active.name if switcher.active else None
            for group, switcher in self._groups.switchers.items()
        }

    @property
    def models(self) -> dict[str, Model]:
        """Every model, in the config's order."""
        return dict(
            chain.from_iterable(
                switcher.models.items() for switcher in self._groups.switchers.values()
            )
        )

    @property
    def registered_models(self) -> list[str]:
        """The names of all models."""
        return list(self._groups)

    def is_registered(self, model: str) -> bool:
        """Whether a model of this name exists; aliases are not names."""
        return model in self._groups

    def model_port(self, model: str) -> int | None:
        """The local port of a model's backend; None if unknown, or if it has a URL instead."""
        return self._groups.config_of(model).port if model in self._groups else None

    def in_flight_count(self, model: str) -> int:
        """How many requests are in flight on a model at this instant."""
        return self._groups.switcher_of(model).models[model].in_flight.count

    @property
    def queue_depths(self) -> dict[str, int]:
        """How many requests wait for each model at this instant."""
        return {name: model.queued for name, model in self.models.items()}

    def estimated_switch_cost(self, source: str | None, target: str) -> float | None:
        """Seconds of hook time that a switch should take; None if it was never seen."""
        return self._groups.switcher_of(target).measures.costs.estimate(source, target)

    def estimated_costs(self) -> dict[str, dict[str, float]]:
        """Every known cost in seconds, by source (`idle`: nothing was awake) and target."""
        costs: dict[str, dict[str, float]] = {}
        for switcher in self._groups.switchers.values():
            for source in (None, *switcher.models):
                known = switcher.measures.costs.estimates_from(source)
                if known:
                    costs.setdefault(source or "idle", {}).update(known)
        return costs

    def gauges(self) -> Counts:
        now = trio.current_time()
        return {
            name: ModelGauges(
                queued=model.queued,
                in_flight=model.in_flight.count,
                group=group,
                state=model.phase.value,
                oldest_wait_s=0.0 if model.oldest is None else now - model.oldest,
            )
            for group, switcher in self._groups.switchers.items()
            for name, model in switcher.models.items()
        }

    def in_flight_and_queued(self) -> dict[str, tuple[int, int]]:
        return {name: (model.in_flight.count, model.queued) for name, model in self.models.items()}
