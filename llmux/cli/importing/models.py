"""One model of llama-swap as one of llmux."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from llmux.cli.importing.checks import mapping, names, number, text, texts
from llmux.cli.importing.commandlines import port_of, shell_word, shell_words
from llmux.cli.importing.draft import ModelDraft
from llmux.config.filters import PROTECTED
from llmux.errors import ConfigError

NO_COUNTERPART = {
    "unlisted": "llmux lists all models",
    "name": "llmux lists models by their names in this file only",
    "description": "llmux lists no descriptions",
    "metadata": "llmux lists no metadata",
    "capabilities": "llmux lists no capabilities",
    "sendLoadingState": "llmux sends comments instead, see policy.waiting_keepalive_secs",
    "timeouts": "llmux connects within 10 s, and waits for an answer as long as the client does",
}

DEFAULT_PROXY = "http://localhost:${PORT}"

_LOCAL = re.compile(r"http://(?:localhost|127\.0\.0\.1|\[::1\]):(\$\{PORT\}|[0-9]+)/?")


class ModelReader:
    """Reads one model's section.

    Args:
        name: The model's name.
        section: Its section, with macros expanded.
        port: The port that llama-swap would give it.
        ttl: Its `globalTTL`, in seconds.
        stop_s: Its `unloadTimeout`, in seconds; 0 for the default.
        timeout: Its `healthCheckTimeout`, in seconds; None for the default.

    Raises:
        ConfigError: The section cannot be read.
    """

    def __init__(
        self,
        name: str,
        section: Mapping[str, Any],
        *,
        port: int,
        ttl: int,
        stop_s: int,
        timeout: int | None,
    ) -> None:
        self._where = f"models.{name}"
        self._name = name
        self._section = section
        self._port = port
        self._draft = ModelDraft()
        self._read: set[str] = {"macros"}
        self._read_command(stop_s)
        self._read_names()
        self._read_filters()
        self._read_limits(ttl, timeout)
        self._note_rest()

    @property
    def draft(self) -> ModelDraft:
        return self._draft

    def _take(self, key: str) -> tuple[Any, str]:
        """Return a value of the section, and its path for errors."""
        self._read.add(key)
        return self._section.get(key), f"{self._where}.{key}"

    def _read_command(self, stop_s: int) -> None:
        words = shell_words(text(*self._take("cmd")), f"{self._where}.cmd")
        if environment := texts(*self._take("env")):
            words = ["env", *map(shell_word, environment), *words]
        values = self._draft.values
        options: dict[str, Any] = {"command": " ".join(words)}
        values["recipe"] = "process"
        values["with"] = options
        self._read_address(options)
        if (health := text(*self._take("checkEndpoint"), "/health")) != "/health":
            is_whole = health == "none" or health.startswith(("/", "${"))
            options["health"] = health if is_whole else f"/{health}"
        if stop_secs := number(*self._take("unloadTimeout"), 0) or stop_s:
            options["stop_secs"] = stop_secs
        if stop := text(*self._take("cmdStop")):
            if "${PID}" in stop:
                self._draft.notes.append(
                    "cmdStop needs ${PID}: the recipe stops all processes itself"
                )
            else:
                ended = " ".join(shell_words(stop, f"{self._where}.cmdStop"))
                values["sleep"] = f"{ended} || true"  # verify_asleep tells whether it has worked

    def _read_address(self, options: dict[str, Any]) -> None:
        address = text(*self._take("proxy"), DEFAULT_PROXY).strip()
        values, command = self._draft.values, options["command"]
        if (match := _LOCAL.fullmatch(address)) is None:
            values["url"] = address.replace("${PORT}", str(self._port))
            options["command"] = command.replace("${PORT}", str(self._port))
        elif match[1] != "${PORT}":
            values["port"] = int(match[1])
            options["command"] = command.replace("${PORT}", match[1])
        elif "${PORT}" not in command:
            if (port := port_of(command)) is None:
                self._draft.notes.append("cmd does not say its port: check that it reads $PORT")
            else:
                values["port"] = port

    def _read_names(self) -> None:
        filters, where = self._take("filters")
        variants = mapping(mapping(filters, where).get("setParamsByID"), f"{where}.setParamsByID")
        own = texts(*self._take("aliases"))
        called = [*own, *(key for key in variants if key not in {*own, self._name})]
        aliases = [
            {"name": name, "force": _forced(variants[name], f"{where}.setParamsByID.{name}")}
            if name in variants
            else name
            for name in called
        ]
        if aliases:
            self._draft.values["aliases"] = aliases
        if sent := text(*self._take("useModelName")):
            self._draft.values["upstream_model"] = sent

    def _read_filters(self) -> None:
        filters, where = self._take("filters")
        filters = mapping(filters, where)
        forced = _forced(filters.get("setParams"), f"{where}.setParams")
        by_name = mapping(filters.get("setParamsByID"), f"{where}.setParamsByID")
        if own := _forced(by_name.get(self._name), f"{where}.setParamsByID.{self._name}"):
            forced |= own
            if self._draft.values.get("aliases"):
                self._draft.notes.append(f"setParamsByID.{self._name}: applies to the aliases, too")
        dropped = filters.get("stripParams") or filters.get("strip_params")
        drop = names(dropped, f"{where}.stripParams")
        if drop:
            self._draft.values["drop"] = drop
        if forced:
            self._draft.values["force"] = forced
        _leave_out_protected(self._draft)

    def _read_limits(self, ttl: int, timeout: int | None) -> None:
        values = self._draft.values
        if limit := number(*self._take("concurrencyLimit"), 0):
            values["max_in_flight"] = limit
            self._draft.notes.append("above max_in_flight, requests wait; llama-swap refuses them")
        own_ttl = number(*self._take("ttl"), -1)
        if (idle_s := ttl if own_ttl == -1 else own_ttl) > 0:
            values["idle_sleep_secs"] = idle_s
        if mapping(*self._take("compat")).get("ignoreWebsockets"):
            values["websocket"] = "ignore"
        if timeout is not None:
            values["hook_timeouts"] = {"wake": timeout}

    def _note_rest(self) -> None:
        for key in self._section:
            if key not in self._read:
                why = NO_COUNTERPART.get(key, "llmux import does not know it")
                self._draft.notes.append(f"{key}: {why}")


def _forced(value: object, where: str) -> dict[str, Any]:
    return {key: item for key, item in mapping(value, where).items() if key != "model"}


def _leave_out_protected(draft: ModelDraft) -> None:
    """Remove the fields that no filter of llmux may change, and note those."""
    values = draft.values
    aliases = (each for each in values.get("aliases", ()) if isinstance(each, dict))
    notes: dict[str, None] = {}  # each once
    for section in (values, *aliases):
        for key in list(section.get("force", ())):
            if (why := PROTECTED.get(str(key).casefold())) is not None:
                del section["force"][key]
                notes[f"filters, {key}: {why}"] = None
        if not section.get("force", True):
            del section["force"]
    for path in list(values.get("drop", ())):
        if (why := PROTECTED.get(path.partition(".")[0].casefold())) is not None:
            values["drop"].remove(path)
            notes[f"filters, {path}: {why}"] = None
    if not values.get("drop", True):
        del values["drop"]
    draft.notes += notes


def peer_draft(peer: str, model: str, section: Mapping[str, Any]) -> ModelDraft:
    """Return a model of another server, which is always awake; raises ConfigError."""
    where = f"peers.{peer}"
    address = text(section.get("proxy"), f"{where}.proxy")
    if "://" not in address:
        raise ConfigError([f"{where}.proxy: expected a URL, got {address!r}"])
    values: dict[str, Any] = {
        "url": address.rstrip("/"), "group": f"{peer}/{model}", "upstream_model": model,
        "wake": "true", "sleep": "true", "alive": "true",
    }  # fmt: skip
    if key := text(section.get("apiKey"), f"{where}.apiKey"):
        values["headers"] = {"Authorization": f"Bearer {key}"}
    filters = mapping(section.get("filters"), f"{where}.filters")
    if drop := names(filters.get("stripParams"), f"{where}.filters.stripParams"):
        values["drop"] = drop
    if forced := _forced(filters.get("setParams"), f"{where}.filters.setParams"):
        values["force"] = forced
    draft = ModelDraft(values)
    _leave_out_protected(draft)
    if "timeouts" in section:
        draft.notes.append(f"timeouts: {NO_COUNTERPART['timeouts']}")
    return draft
