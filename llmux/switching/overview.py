"""Read-only facts about all groups: models awake, requests waiting, costs of switches."""

from __future__ import annotations

from itertools import chain

import trio

from llmux.config import ModelConfig
from llmux.observe.metrics import Counts, ModelGauges
from llmux.switching.group import Mode, State
from llmux.switching.groups import Groups
from llmux.switching.model import Model, Phase
from llmux.switching.switcher import Switcher

RUNNING = {Phase.WAKING: "wake", Phase.SLEEPING: "sleep"}
"""The hook that runs in a phase; in WAKING it may be `alive`, which is looked at after it."""


class Overview:
    """Read-only facts about all groups, as of now."""

    def __init__(self, groups: Groups) -> None:
        self._groups = groups

    @property
    def groups(self) -> dict[str, Switcher]:
        """The switchers by group, in the config's order."""
        return self._groups.switchers

    @property
    def mode(self) -> Mode:
        """`auto`, or `manual`, in which only operators switch; the same in all groups."""
        return self._groups.mode

    @property
    def is_cordoned(self) -> bool:
        """True if new requests are refused; the same in all groups."""
        return self._groups.is_cordoned

    def refusal_of(self, model: str) -> str | None:
        """Return the `error.code` that a request for a model would get now; None: it is served.

        A served one may have to wait. Limits for single clients and for request bodies are left
        out, since they depend on the request.

        Raises:
            ModelNotFound: No model has this name; aliases do not count.
        """
        switcher = self._groups.switcher_of(model)
        error = switcher.refusal(switcher.models[model])
        return None if error is None else error.code

    def switcher_of(self, model: str) -> Switcher:
        """Return the switcher of a model's group; raises ModelNotFound."""
        return self._groups.switcher_of(model)

    def config_of(self, model: str) -> ModelConfig:
        """Return the config in use of a model; a pending change is not in use yet."""
        return self._groups.config_of(model)

    @property
    def state(self) -> State:
        """`switching` if any group is switching, else `active` if any is active, else `idle`."""
        states = {switcher.state for switcher in self._groups.switchers.values()}
        return next(s for s in ("switching", "active", "idle") if s in states)

    @property
    def active_model(self) -> str | None:
        """The model that is awake, or None; with several, the first one."""
        return next((name for name in self.active_models.values() if name), None)

    @property
    def active_models(self) -> dict[str, str | None]:
        """The model that is awake in each group, the first if several are."""
        return {
            group: switcher.active.name if switcher.active else None
            for group, switcher in self._groups.switchers.items()
        }

    @property
    def to_measure(self) -> set[str]:
        """The models that are awake and whose needs are to be measured (`needs: auto`)."""
        return self._groups.to_measure

    @property
    def awake_models(self) -> dict[str, list[str]]:
        """The models that are awake in each group."""
        return {
            group: [model.name for model in switcher.awake]
            for group, switcher in self._groups.switchers.items()
        }

    @property
    def models(self) -> dict[str, Model]:
        """All models by name, in the config's order."""
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
        """Return whether there is a model of this name; aliases do not count."""
        return model in self._groups

    def model_port(self, model: str) -> int | None:
        """Return the local port of a model's backend; None if it is unknown or has a URL."""
        return self._groups.config_of(model).port if model in self._groups else None

    def in_flight_count(self, model: str) -> int:
        return self._groups.switcher_of(model).models[model].in_flight.count

    @property
    def unfinished(self) -> str:
        """The requests in flight and the hooks that run, in words; empty: none."""
        models = self.models.values()
        count = sum(model.in_flight.count for model in models)
        parts = [f"{count} request{'' if count == 1 else 's'} in flight"] if count else []
        parts += [
            f"the {hook} hook of {model.name}"
            for model in models
            if (hook := RUNNING.get(model.phase)) is not None
        ]
        return ", ".join(parts)

    @property
    def queue_depths(self) -> dict[str, int]:
        """Number of requests that wait for each model."""
        return {name: model.queued for name, model in self.models.items()}

    def estimated_switch_cost(self, source: str | None, target: str) -> float | None:
        """Return the expected hook time of a switch, in seconds; None if never measured."""
        return self._groups.switcher_of(target).measures.costs.estimate(source, target)

    def estimated_costs(self) -> dict[str, dict[str, float]]:
        """Return all known costs in seconds, by source (`idle`: no model awake) and target."""
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
                is_failing=model.is_failing,
            )
            for group, switcher in self._groups.switchers.items()
            for name, model in switcher.models.items()
        }

    def in_flight_and_queued(self) -> dict[str, tuple[int, int]]:
        return {name: (model.in_flight.count, model.queued) for name, model in self.models.items()}
