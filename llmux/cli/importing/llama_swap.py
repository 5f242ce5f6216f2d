"""A config of llama-swap as one of llmux; facts are those of its version of August 2026.

Older forms are read, too: `groups` and `matrix` at the top, `filters.strip_params`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from llmux.base.exclusions import maximal
from llmux.cli.importing.checks import mapping, number, texts
from llmux.cli.importing.coexistence import (
    MayCoexist,
    Sets,
    allowed_by_groups,
    allowed_by_sets,
    are_for_llmux,
    lost_pairs,
    make_groups,
    sets_of_pairs,
)
from llmux.cli.importing.draft import Draft
from llmux.cli.importing.macros import expand, scope
from llmux.cli.importing.matrix import ModelSet, read_matrix
from llmux.cli.importing.models import ModelReader, peer_draft
from llmux.config.files import decode
from llmux.errors import ConfigError

FIRST_PORT = 5800
"""Default of `startPort`."""

LEAST_TIMEOUT_S = 15
"""llama-swap raises a shorter `healthCheckTimeout` to this."""

SHOWN_PAIRS = 6

NO_COUNTERPART = {
    "captureBuffer": "llmux records no requests",
    "includeAliasesInList": "llmux lists aliases",
    "logLevel": "see -v",
    "logRequests": "llmux logs each request",
    "logTimeFormat": "see --log-format",
    "logToStdout": "the servers' output is in state_dir",
    "metricsMaxInMemory": "see /metrics",
    "performance": "see /metrics",
    "profiles": "names are not switched at run time",
    "selectors": "a request names one model, or an alias",
    "store": "see journal and state_dir",
    "ui": "see /ui",
    "upstream": "no such path wakes a model",
}

READ = frozenset({
    "apiKeys", "globalTTL", "groups", "healthCheckTimeout", "hooks", "macros", "matrix", "models",
    "peers", "routing", "sendLoadingState", "startPort", "unloadTimeout",
})  # fmt: skip


def read_llama_swap(path: Path) -> Draft:
    """Read a config of llama-swap. Raises ConfigError."""
    data = decode(path)
    if not isinstance(data, Mapping) or not isinstance(data.get("models"), Mapping):
        raise ConfigError([f"{path}: no config of llama-swap: it has no 'models'"])
    try:
        return _Reader(data, path).draft
    except ConfigError as error:
        raise ConfigError([f"{path}: {message}" for message in error.mistakes]) from None


class _Reader:
    def __init__(self, data: Mapping[str, Any], path: Path) -> None:
        self._data = data
        self.draft = Draft(f"llmux import llama-swap {path.name}")
        self._macros = scope(data.get("macros"), None, "")
        del self._macros["MODEL_ID"]
        self._read_models()
        self._read_peers()
        self._read_groups()
        self._read_start()
        self._read_rest()

    def _value(self, key: str) -> Any:
        return expand(self._data.get(key), self._macros, key)

    def _number(self, key: str, default: int) -> int:
        return number(self._value(key), key, default)

    def _mapping(self, key: str) -> Mapping[str, Any]:
        return mapping(self._value(key), key)

    def _read_models(self) -> None:
        models = {
            name: self._expanded(name, mapping(section, f"models.{name}"))
            for name, section in mapping(self._data["models"], "models").items()
        }
        # As llama-swap gives ports: in the order of names, to models that use one.
        users = sorted(name for name, model in models.items() if "${PORT}" in str(model))
        first, ttl = self._number("startPort", FIRST_PORT), self._number("globalTTL", 0)
        timeout = self._number("healthCheckTimeout", 0) or None
        for name, model in models.items():
            self.draft.models[name] = ModelReader(
                name,
                model,
                port=first + (users.index(name) if name in users else 0),
                ttl=ttl,
                stop_s=self._number("unloadTimeout", 0),
                timeout=timeout and max(timeout, LEAST_TIMEOUT_S),
            ).draft

    def _expanded(self, name: str, model: Mapping[str, Any]) -> Mapping[str, Any]:
        macros = scope(self._data.get("macros"), model.get("macros"), name)
        inner = {key: value for key, value in model.items() if key != "macros"}
        for key in ("cmd", "cmdStop"):  # a macro in a comment means nothing
            if isinstance(inner.get(key), str):
                inner[key] = _without_comments(inner[key])
        return mapping(expand(inner, macros, f"models.{name}"), f"models.{name}")

    def _read_peers(self) -> None:
        peers = self._mapping("peers")
        homes: dict[str, list[str]] = {}
        for peer, value in peers.items():
            section = mapping(value, f"peers.{peer}")
            for model in texts(section.get("models"), f"peers.{peer}.models"):
                homes.setdefault(model, []).append(f"{peer}/{model}")
                self.draft.models[f"{peer}/{model}"] = peer_draft(peer, model, section)
        local = {*self._data["models"]}
        for model, full_names in homes.items():
            if len(full_names) == 1 and model not in local:
                self.draft.models[full_names[0]].values["aliases"] = [model]

    # ---- Which models may be awake together ----

    def _read_groups(self) -> None:
        routing = self._mapping("routing")
        router = mapping(routing.get("router"), "routing.router")
        settings = mapping(router.get("settings"), "routing.router.settings")
        matrix = self._mapping("matrix")
        if router.get("use") == "matrix":
            matrix = mapping(settings.get("matrix"), "routing.router.settings.matrix")
        groups = {
            name: mapping(group, f"groups.{name}")
            for name, group in (
                self._mapping("groups") or mapping(settings.get("groups"), "groups")
            ).items()
        }
        models = [str(name) for name in self._data["models"]]
        if matrix:
            sets = read_matrix(matrix, self._data["models"])
            self._apply_matrix(models, sets)
            if matrix.get("evict_costs"):
                self.draft.notes.append("matrix.evict_costs: llmux measures what each switch costs")
        else:
            named = {
                model: name
                for name, group in groups.items()
                for model in texts(group.get("members"), f"groups.{name}.members")
            }
            for model in sorted({*named} - {*models}):
                self.draft.notes.append(f"group {named[model]}: there is no model {model!r}")
            self._apply_groups(models, allowed_by_groups(groups, models), named.get)
        scheduler = mapping(routing.get("scheduler"), "routing.scheduler")
        if scheduler.get("settings"):
            self.draft.notes.append(
                "routing.scheduler: a request can have a priority, see x-llmux-priority"
            )

    def _apply_matrix(self, models: list[str], sets: list[ModelSet]) -> None:
        """Give all models one group with sets, or groups of which one model each is awake."""
        rule = allowed_by_sets(sets)
        groups = make_groups(models, rule, pairs_decide=False)
        largest = [sorted(each, key=models.index) for each in maximal(sets)]
        if not lost_pairs(groups, rule) or not self._allow(largest):
            self._name_groups(groups, lambda _: None)
            self._note_lost(lost_pairs(groups, rule))

    def _apply_groups(
        self, models: list[str], rule: MayCoexist, name_of: Callable[[str], str | None]
    ) -> None:
        """Group models that are kept apart, with sets for those of a group that are not."""
        groups = make_groups(models, rule, pairs_decide=True)
        self._name_groups(groups, name_of)
        for group in groups:
            lost = lost_pairs([group], rule)
            if lost and not self._allow(sets_of_pairs(group, rule)):
                self._note_lost(lost)

    def _allow(self, sets: Sets) -> bool:
        """Write sets; False if there are too many of them."""
        if not are_for_llmux(sets):
            return False
        self.draft.values.setdefault("sets", []).extend(each for each in sets if len(each) > 1)
        return True

    def _name_groups(self, groups: list[list[str]], name_of: Callable[[str], str | None]) -> None:
        if len(groups) > 1:
            taken: set[str] = set()
            for group in groups:
                named = [name for model in group if (name := name_of(model)) and name not in taken]
                name = named[0] if named else group[0]
                taken.add(name)
                for model in group:
                    self.draft.models[model].values["group"] = name

    def _note_lost(self, lost: list[tuple[str, str]]) -> None:
        if lost:
            shown = ", ".join(f"{one} + {other}" for one, other in lost[:SHOWN_PAIRS])
            more = f" and {len(lost) - SHOWN_PAIRS} more" if len(lost) > SHOWN_PAIRS else ""
            self.draft.notes.append(
                f"llama-swap lets these be awake together, and here they take turns: {shown}{more}"
            )

    # ---- The rest ----

    def _read_start(self) -> None:
        hooks = self._mapping("hooks")
        on_startup = mapping(hooks.get("on_startup"), "hooks.on_startup")
        preload = texts(on_startup.get("preload"), "hooks.on_startup.preload")
        aliases = {
            alias if isinstance(alias, str) else alias["name"]: name
            for name, model in self.draft.models.items()
            for alias in model.values.get("aliases", ())
        }
        chosen: dict[str, str] = {}
        for asked in preload:
            name = aliases.get(asked, asked)
            if name not in self.draft.models:
                self.draft.notes.append(f"hooks.on_startup.preload: there is no model {asked!r}")
                continue
            group = self.draft.models[name].values.get("group", "default")
            if chosen.setdefault(group, name) != name:
                first = f"of its group, {chosen[group]} is woken at the start"
                self.draft.notes.append(f"hooks.on_startup.preload: {name}: {first}")
        if chosen:
            self.draft.values["groups"] = {
                group: {"preload": name} for group, name in chosen.items()
            }

    def _read_rest(self) -> None:
        if keys := texts(self._value("apiKeys"), "apiKeys"):
            self.draft.values["api_keys"] = keys
        if self._value("sendLoadingState"):
            self.draft.values["policy"] = {"waiting_keepalive_secs": 10}
            self.draft.notes.append(
                "sendLoadingState: comments in the stream, which clients do not show"
            )
        for key in self._data:
            if key not in READ and not str(key).startswith("x-"):
                why = NO_COUNTERPART.get(key, "llmux import does not know it")
                self.draft.notes.append(f"{key}: {why}")


def _without_comments(command: str) -> str:
    return "\n".join(line for line in command.splitlines() if not line.strip().startswith("#"))
