"""Sections of the config about models and their groups."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Literal, get_args

import msgspec

from llmux.config.filters import AliasConfig, filter_conflicts
from llmux.config.keys import MASK
from llmux.config.recipe_values import complete
from llmux.config.recipes import HookName
from llmux.config.section import Completed, Keys, NotAKey, Section
from llmux.config.values import (
    Alias,
    ByteSize,
    FieldPath,
    HeaderName,
    HeaderValue,
    Host,
    Name,
    PassivePath,
    Port,
    PositiveInt,
    Resource,
    Script,
    Seconds,
    Url,
)
from llmux.http.socketpath import SCHEME, socket_path

OnSwitch = Literal["hold", "ignore", "cut"]
"""Effect of an open WebSocket on a switch that waits for its model to drain."""

NEEDS_SLEEP = ("address", "wake", "sleep", "stop", "variables", "preserves_in_flight")
"""Fields that can only change while the model sleeps: a model that is awake has the server and the
hooks against it that it was woken with."""

MAY_REPAIR = ("address", "variables", *get_args(HookName), "hook_timeouts")
"""Fields whose change may repair a model whose wake keeps failing."""

_VERSION_AT_END = re.compile(r"/v\d+$")

OWN_NAME = "name"
"""Value of `upstream_model` that stands for the model's own name in the file."""


class HookTimeouts(Section, frozen=True, kw_only=True):
    """Time limits of the hooks, in seconds; null for no limit.

    Attributes:
        wake: Time limit of the wake hook, including the wait until alive succeeds.
        sleep: Time limit of the sleep hook.
        alive: Time limit of the alive hook.
        prefetch: Time limit of the prefetch hook.
        verify_asleep: Time limit of the verify_asleep hook.
        memory: Time limit of the memory hook.
        stop: Time limit of the stop hook.
    """

    # Loading a large model from a network disk takes minutes. `alive` also runs every few seconds.
    wake: Seconds | None = 600.0
    sleep: Seconds | None = 120.0
    alive: Seconds | None = 10.0
    prefetch: Seconds | None = 600.0
    verify_asleep: Seconds | None = 30.0
    memory: Seconds | None = 30.0
    stop: Seconds | None = 120.0


class ModelConfig(Section, frozen=True, kw_only=True):
    """A model: the address of its backend, and the hooks that wake it and put it to sleep.

    Attributes:
        name: Its key in the file.
        recipe: Ready hooks in place of your own: a name (`llmux init` lists them), or the path of a
            folder with a recipe.yaml, such as ./my-recipe. Its hooks, their time limits and its
            other keys count where the model does not give its own.
        with: What the recipe needs, by its parameters: docs/recipes.md.
        port: Port of the backend; give this or url. Most recipes need neither: llmux chooses one of
            `ports`.
        host: Host of the backend, beside port; 127.0.0.1 by default.
        url: URL of the backend, or unix:/path for a Unix socket; give this or port.
        wake: Shell script that starts the model. The model is awake once alive succeeds afterwards.
        sleep: Shell script that frees the GPU.
        alive: Shell script that exits 0 if the model is up.
        prefetch: Shell script that runs while the outgoing model drains and sleeps.
        verify_asleep: Shell script that exits 0 if the GPU is really free.
        memory: Shell script that prints what the model holds, for needs of auto: a line of
            `NAME BYTES` for each of resources.
        stop: Shell script that puts a sleeping model into a deeper sleep, in which it needs nothing
            of what needs_asleep says.
        aliases: Other names that clients may use. An asterisk stands for any text (claude-*). An
            exact name wins, then the pattern with the most characters beside asterisks. An alias
            with request filters of its own is written as a mapping with its name.
        upstream_model: Model name sent to the backend, in place of the client's; `name` for this
            model's name in the file. By default the client's name is sent unchanged.
        unversioned_paths: The backend also has OpenAI's and Anthropic's paths without /v1, as
            llama.cpp has /chat/completions. If false, requests for them get 404 and wake no model.
        passive: Replaces the top-level passive for this model; null for the top-level list.
        headers: Headers added to requests to the backend.
        set: Fields to put into the JSON bodies of requests that lack them; a mapping is for the
            fields of an object.
        force: Fields to put into the JSON bodies of requests, in place of the client's.
        drop: Fields to remove from the JSON bodies of requests; options.num_ctx is a field of an
            object.
        group: Group of the model. Models of one group share memory, such as a GPU's, and take turns
            on it: one is awake at a time, or as many as needs or sets allow.
        needs: What it needs of resources while it is awake, as docs/memory.md says; auto to measure
            it. null: if others of its group say what they need, it is awake alone.
        needs_asleep: What it needs of resources while it sleeps.
        needs_waking: What it needs of resources while it wakes, where that is more than needs.
        keep: Once awake, it stays awake: it is evicted for no other model, only by an operator.
        max_in_flight: Maximum number of requests in flight; more wait in order. null for no limit.
        stream_idle_secs: Fail a stream if the backend sends nothing for this long, also before the
            first byte; null for no limit.
        websocket: Overrides policy.websocket for this model; null for the policy's.
        idle_sleep_secs: Put the model to sleep after this long without a request; null for never.
        preserves_in_flight: The hooks freeze the model together with its requests, so a switch does
            not wait for them.
        abandon_wakes: Overrides policy.abandon_wakes for this model; null for the policy's.
        hook_timeouts: Time limits of the hooks, in seconds.
    """

    name: NotAKey[str] = ""
    recipe: Script | None = None
    parameters: dict[str, Any] = msgspec.field(default_factory=dict, name="with")
    variables: NotAKey[dict[str, str]] = {}  # noqa: RUF012 - msgspec copies it
    port: Port | None = None
    host: Host | None = None
    url: Url | None = None
    wake: Script
    sleep: Script
    alive: Script
    prefetch: Script | None = None
    verify_asleep: Script | None = None
    memory: Script | None = None
    stop: Script | None = None
    aliases: tuple[Alias | AliasConfig, ...] = ()
    upstream_model: Name | None = None
    unversioned_paths: bool = False
    passive: tuple[PassivePath, ...] | None = None
    headers: dict[HeaderName, HeaderValue] = {}  # noqa: RUF012 - msgspec copies it
    set: dict[str, Any] = {}  # noqa: RUF012
    force: dict[str, Any] = {}  # noqa: RUF012
    drop: tuple[FieldPath, ...] = ()
    group: Name = "default"
    needs: dict[Resource, ByteSize] | Literal["auto"] | None = None
    needs_asleep: dict[Resource, ByteSize] = {}  # noqa: RUF012
    needs_waking: dict[Resource, ByteSize] = {}  # noqa: RUF012
    keep: bool = False
    max_in_flight: PositiveInt | None = None
    stream_idle_secs: Seconds | None = 1800.0
    websocket: OnSwitch | None = None
    idle_sleep_secs: Seconds | None = None
    preserves_in_flight: bool = False
    abandon_wakes: bool | None = None
    hook_timeouts: HookTimeouts = HookTimeouts()

    def __repr__(self) -> str:
        hidden = {"headers": dict.fromkeys(self.headers, MASK)}
        fields = (
            f"{name}={hidden.get(name, getattr(self, name))!r}" for name in self.__struct_fields__
        )
        return f"ModelConfig({', '.join(fields)})"

    @property
    def chooses_port(self) -> bool:
        """Whether llmux has to choose the backend's port, and has not done so."""
        return self.port is None and self.url is None

    @property
    def address(self) -> str | None:
        """URL of the backend as in `base_url`; None before llmux has chosen its port."""
        return None if self.chooses_port else self.base_url

    @property
    def base_url(self) -> str:
        """URL of the backend, without a slash at its end; one spelling for each Unix socket."""
        assert not self.chooses_port, f"no port has been chosen for {self.name!r}"
        if self.url is not None:
            path = socket_path(self.url)
            return self.url.rstrip("/") if path is None else SCHEME + path
        host = self.host or "127.0.0.1"
        return f"http://[{host}]:{self.port}" if ":" in host else f"http://{host}:{self.port}"

    @property
    def alias_names(self) -> tuple[str, ...]:
        """The aliases, without their filters."""
        return tuple(each if isinstance(each, str) else each.name for each in self.aliases)

    @property
    def has_unversioned_paths(self) -> bool:
        """True if paths without /v1 can be right, also since the version is in the URL."""
        return self.unversioned_paths or _VERSION_AT_END.search(self.address or "") is not None

    @property
    def name_sent(self) -> str | None:
        """Model name to send to the backend; None for the client's, unchanged."""
        return self.name if self.upstream_model == OWN_NAME else self.upstream_model

    def needs_sleep_after(self, before: ModelConfig) -> bool:
        """Return whether this config can replace `before` only while the model sleeps."""
        return any(getattr(self, key) != getattr(before, key) for key in NEEDS_SLEEP)

    def may_repair(self, before: ModelConfig) -> bool:
        """Return whether a wake may succeed with this config although it failed with `before`."""
        return any(getattr(self, key) != getattr(before, key) for key in MAY_REPAIR)

    def script(self, hook: HookName) -> str | None:
        script: str | None = getattr(self, hook)
        return script

    def timeout_s(self, hook: HookName) -> float | None:
        """Return how many seconds the hook may run; None for no limit."""
        seconds: float | None = getattr(self.hook_timeouts, hook)
        return seconds

    @staticmethod
    def completed(given: Mapping[Any, Any], directory: Path) -> Completed:
        """Add what its recipe gives, if it names one."""
        return complete(given, directory, "hook_timeouts")

    @staticmethod
    def conflicts(given: Mapping[Any, Any]) -> Iterator[tuple[Keys, str]]:
        """Demand an address, or a recipe that gives one, and filters that agree."""
        yield from filter_conflicts(given)
        port, url, host = (given.get(key) is not None for key in ("port", "url", "host"))
        if port and url:
            yield (), "give 'port' or 'url', not both"
        elif url and host:
            yield ("host",), "goes with 'port' only"
        elif not port and not url and given.get("recipe") is None:
            yield (), "give 'port' or 'url'"
        if given.get("keep") is True and given.get("idle_sleep_secs") is not None:
            yield ("idle_sleep_secs",), "'keep' keeps the model awake"


class GroupConfig(Section, frozen=True, kw_only=True):
    """Behaviour of an idle group.

    Attributes:
        name: Its key in the file: a name that models give as their group.
        standby: Model to wake once the group has been idle for a while; null for none.
        standby_after_secs: How long the group must have been idle.
        preload: Model to wake when llmux starts; null for none.
    """

    name: NotAKey[str] = ""
    standby: Name | None = None
    standby_after_secs: Seconds = 300.0
    preload: Name | None = None


def group_conflicts(groups: Any, models: Any) -> Iterator[tuple[Keys, str]]:
    """Check that each group has models, and that its standby and preload are among them.

    Args:
        groups: The section `groups` as the file has it.
        models: The section `models` as the file has it.

    Yields:
        Path, and message.
    """
    if not isinstance(groups, dict) or not isinstance(models, dict):
        return
    group_of = {
        name: model.get("group", "default")
        for name, model in models.items()
        if isinstance(model, dict)
    }
    for group, rules in groups.items():
        if group not in group_of.values():
            yield ("groups", group), "no model has this group"
        for key in ("standby", "preload"):
            model = rules.get(key) if isinstance(rules, dict) else None
            if isinstance(model, str) and group_of.get(model) != group:
                yield ("groups", group, key), f"{model!r} is no model of this group"
        standby = rules.get("standby") if isinstance(rules, dict) else None
        sleeper = models.get(standby) if isinstance(standby, str) else None
        if isinstance(sleeper, dict) and sleeper.get("idle_sleep_secs") is not None:
            keys = ("models", standby, "idle_sleep_secs")
            yield keys, f"the standby of {group!r} would be woken again at once"
