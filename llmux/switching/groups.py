"""The groups of a config: one switcher for each, and how a new config changes them."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping

from llmux.config import Config, ModelConfig
from llmux.config.section import Keys
from llmux.errors import ModelNotFound
from llmux.observe.events import Events
from llmux.policy import Policy, load_policy
from llmux.switching.awake import AwakeRecord
from llmux.switching.group import AskForecast, Mode
from llmux.switching.health import HeardSince
from llmux.switching.hooks import Hooks
from llmux.switching.idle import NO_IDLE_RULES, IdleRules
from llmux.switching.memory import Measured, memory_of
from llmux.switching.model import Traits
from llmux.switching.switcher import Switcher


class Groups:
    """The switcher of each group, and the config in use of each model.

    Args:
        hooks: Runs hooks.
        events: Gets the events of all switchers.
        record: Knows which models an earlier llmux left awake.
        on_new: Called with the switcher of each new group.
        measured: Returns what models with `needs: auto` were seen to hold, by a config.

    Attributes:
        switchers: By group, in the config's order.
        mode: The mode of all groups, including new ones.
        is_cordoned: True if all groups are cordoned, including new ones.
    """

    def __init__(
        self,
        hooks: Hooks,
        events: Events,
        record: AwakeRecord,
        on_new: Callable[[Switcher], object],
        measured: Callable[[Config], Measured] = lambda _: {},
    ) -> None:
        self.switchers: dict[str, Switcher] = {}
        self.mode: Mode = "auto"
        self.is_cordoned = False
        self._hooks = hooks
        self._events = events
        self._record = record
        self._on_new = on_new
        self._measured = measured
        self._config: Config | None = None
        self._heard_since: HeardSince = lambda _model, _since: False
        self._on_sleep: Callable[[str], object] = lambda _model: None
        self._forecast: AskForecast = lambda _model: None
        self._used: dict[str, ModelConfig] = {}  # the old config while a change waits for a sleep
        self._switcher_of: dict[str, Switcher] = {}

    def __contains__(self, model: object) -> bool:
        return model in self._switcher_of

    def __iter__(self) -> Iterator[str]:
        """Iterate over the names of all models, without aliases."""
        return iter(self._switcher_of)

    def get(self, model: str) -> Switcher | None:
        """Return the switcher of a model's group, or None."""
        return self._switcher_of.get(model)

    def switcher_of(self, model: str) -> Switcher:
        """Return the switcher of a model's group; raises ModelNotFound."""
        try:
            return self._switcher_of[model]
        except KeyError:
            raise ModelNotFound(model) from None

    def config_of(self, model: str) -> ModelConfig:
        """Return the config in use of a model; a pending change is not in use yet."""
        return self._used[model]

    def connect(
        self, heard_since: HeardSince, on_sleep: Callable[[str], object], forecast: AskForecast
    ) -> None:
        """Set these callbacks of all switchers; see `Switcher.connect`."""
        self._heard_since, self._on_sleep, self._forecast = heard_since, on_sleep, forecast
        for switcher in self.switchers.values():
            switcher.connect(heard_since, on_sleep, forecast)

    # ---- Reloads ----

    def fill(self, config: Config) -> None:
        """Add the models of the first config; raises ConfigError if a policy cannot be loaded."""
        policies = self.policies_for(config)
        for model in config.models.values():
            self._add(config, model, policies[model.group])
        self._use_memory(config)

    def _add(self, config: Config, model: ModelConfig, policy: Policy) -> None:
        switcher = self.switchers.get(model.group)
        if switcher is None:
            switcher = self.switchers[model.group] = Switcher(
                (),
                self._hooks,
                policy,
                self._events,
                settings=config.policy,
                queued_per_model=config.limits.queued_per_model,
                record=self._record,
                group=model.group,
                idle_rules=idle_rules_of(config, model.group),
            )
            switcher.connect(self._heard_since, self._on_sleep, self._forecast)
            self._on_new(switcher)
        switcher.set_mode(self.mode)
        switcher.set_cordoned(self.is_cordoned)
        switcher.add(model.name, traits_of(model))
        self._used[model.name] = model
        self._switcher_of[model.name] = switcher

    def _use_memory(self, config: Config) -> None:
        """Let each group share the memory that a config gives it."""
        self._config = config
        measured = self._measured(config)
        for name, switcher in self.switchers.items():
            switcher.use_memory(memory_of(config, name, measured), config.busy)

    def remeasure(self) -> None:
        """Use what models were seen to hold since."""
        if self._config is not None:
            self._use_memory(self._config)

    @property
    def to_measure(self) -> set[str]:
        """The models that are awake and whose needs are to be measured."""
        return {
            model.name
            for switcher in self.switchers.values()
            if switcher.shares_memory
            for model in switcher.awake
            if self._used[model.name].needs == "auto"
        }

    def refuses(self, config: Config) -> Iterator[tuple[Keys, str]]:
        """Yield path and message for each change in a new config that cannot be made now."""
        for name, switcher in self._switcher_of.items():
            model = config.models.get(name)
            moves = model is not None and self.switchers.get(model.group) is not switcher
            if moves and not switcher.is_unused(name):
                yield ("models", name, "group"), "cannot change while the model is in use"

    def policies_for(self, config: Config) -> dict[str, Policy]:
        """Return a policy for each current and new group: one each, since policies may keep state.

        Raises:
            ConfigError: A policy cannot be loaded.
        """
        groups = {*self.switchers, *(model.group for model in config.models.values())}
        return {
            group: load_policy(config.policy, config.directory, config.source)
            for group in sorted(groups)
        }

    def apply(
        self,
        old: Config,
        new: Config,
        policies: Mapping[str, Policy],
        use: Callable[[str, ModelConfig | None], None],
    ) -> None:
        """Switch all groups to another config; `refuses` must have yielded nothing for it.

        Args:
            old: The config in use before.
            new: The config to use.
            policies: The result of `policies_for` for the new config.
            use: Called with a model's name and its new config as soon as that is in use, or with
                None once the model is removed.
        """
        for switcher in self.switchers.values():
            rules = idle_rules_of(new, switcher.group)
            policy = policies[switcher.group]
            switcher.apply(new.policy, policy, new.limits.queued_per_model, rules)
            switcher.set_mode(self.mode)
        for name in [name for name in self._switcher_of if name not in new.models]:
            self._remove(name, use)
        for model in new.models.values():
            before, has_it = old.models.get(model.name), self._switcher_of.get(model.name)
            used = self._used.get(model.name, model)
            if has_it is not None and has_it is not self.switchers.get(model.group):
                self._remove(model.name, use)  # takes effect at once, since the model is not in use
                has_it = None
            if has_it is None:
                use(model.name, model)
                self._add(new, model, policies[model.group])
            elif model != before or model != used:
                has_it.add(model.name)  # cancels a pending removal
                self._change(model, use, waits=model.needs_sleep_after(used))
        self._use_memory(new)

    def _remove(self, name: str, use: Callable[[str, ModelConfig | None], None]) -> None:
        switcher = self._switcher_of[name]

        def forget() -> None:
            del self._switcher_of[name], self._used[name]
            use(name, None)
            if not switcher.models:
                del self.switchers[switcher.group]
                switcher.stop()

        switcher.remove(name, forget)

    def _change(
        self, model: ModelConfig, use: Callable[[str, ModelConfig | None], None], *, waits: bool
    ) -> None:
        switcher = self._switcher_of[model.name]

        def change() -> None:
            if model.may_repair(self._used[model.name]):
                switcher.models[model.name].forgive()
            self._used[model.name] = model
            use(model.name, model)
            switcher.models[model.name].apply(traits_of(model))
            self.remeasure()  # whether it may be stopped may have changed

        if waits:
            switcher.renew(model.name, change)
        else:
            switcher.leave_as_is(model.name)
            change()


def traits_of(model: ModelConfig) -> Traits:
    """Return the part of a model's config that matters to its switcher."""
    limit, idle_s = model.max_in_flight, model.idle_sleep_secs
    return Traits(
        math.inf if limit is None else limit,
        model.preserves_in_flight,
        math.inf if idle_s is None else idle_s,
        model.abandon_wakes,
        model.keep,
        model.stop is not None,
    )


def idle_rules_of(config: Config, group: str) -> IdleRules:
    """Return the idle rules of a group, by its config."""
    rules = config.groups.get(group)
    if rules is None:
        return NO_IDLE_RULES
    return IdleRules(rules.standby, rules.standby_after_secs, rules.preload)
