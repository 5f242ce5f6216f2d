"""The whole config: the top level of the file, and checks across its sections."""

from __future__ import annotations

import functools
from collections.abc import Iterator, Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import Annotated, Any, Literal

import msgspec
from msgspec import Meta

from llmux.base.wildcards import Names, ambiguities, is_pattern
from llmux.config.control import ControlConfig, ErrorsConfig
from llmux.config.environment import Hidden
from llmux.config.keys import KeyRing
from llmux.config.limits import Limits
from llmux.config.masking import header_secrets, variable_secrets
from llmux.config.memory_names import name_conflicts
from llmux.config.models import GroupConfig, ModelConfig, group_conflicts
from llmux.config.places import Source
from llmux.config.policy import PolicyConfig
from llmux.config.section import Keys, NotAKey, Section
from llmux.config.tls import TlsConfig
from llmux.config.values import (
    Alias,
    Host,
    KeyList,
    Name,
    Origin,
    OwnHost,
    PassivePath,
    PortRange,
    PositiveInt,
    PositiveSize,
    Proxy,
    Resource,
    Share,
    Url,
    check_some,
    port_range,
)
from llmux.http.clients import TrustedProxies
from llmux.http.paths import PASSIVE_PATHS

TRACING_SECRETS = frozenset({"OTEL_EXPORTER_OTLP_HEADERS", "OTEL_EXPORTER_OTLP_TRACES_HEADERS"})
"""Environment variables with the key of a trace collector (OpenTelemetry's OTLP exporter)."""

USUAL_SECRETS = frozenset({"LLMUX_API_KEYS", "LLMUX_CONTROL_KEYS", "LLMUX_READ_KEYS"})
"""Usual names of the environment variables with llmux's own keys."""

KEY_LISTS = ("api_keys", "control_keys", "read_keys")
"""Keys of the file whose values are secret."""

METRICS_KEYS = {"api_key": ("api_keys",), "control_key": ("control_keys", "read_keys")}
"""The lists of the keys that open the metrics, by `metrics_access`."""

TRACING_NEEDS = "opentelemetry.exporter.otlp.proto.http"
"""The module that the extra `otel` installs last."""


class Config(Section, frozen=True, kw_only=True, dict=True):
    """The config of llmux.

    Attributes:
        host: Address to listen on.
        port: Port to listen on; 0 lets the system pick one.
        tls: Serve HTTPS on this port, and on that of control; null for plain HTTP. A reload reads
            the files again. Under Hypercorn, whose options serve TLS, it is for control only.
        models: Models by name.
        ports: Ports of this machine for models that have a recipe and no port. Each model keeps its
            own, also across restarts. The default is below the ports that systems give to
            outgoing connections.
        groups: Behaviour of idle groups, by name.
        resources: Memory that models share, by name, as their needs say: docs/memory.md. Sizes are
            bytes, or have a unit (80GiB, 512MiB, 4GB).
        sets: Models that may be awake together, a list of their names for each such set. If a group
            has any, no other models of it are awake together.
        memory_margin: Share by which needs of auto are more than the most that was measured.
        overlapping_hooks: Let hooks run at the same time that touch the same resource.
        busy: Maximum number of models with requests in flight, of those of a group that use the
            same resource; null for no limit.
        policy: When to switch.
        shutdown_grace_secs: How long requests in flight may go on after SIGTERM or SIGINT.
        on_shutdown: Leave the model that is awake as it is, or put it to sleep.
        journal: Keep a journal in state_dir for `llmux replay`, and for the history of the last
            hour after a restart: models, times, `policy.options`.
        access_log: Log a line for each request.
        tracing: Send OpenTelemetry traces, as the OTEL_* environment variables say.
        watch_gpus: Show what nvidia-smi reports of GPUs, if it is there, in the status, on the page
            and in the metrics.
        http2: Accept HTTP/2 from clients that ask for it; model clients speak HTTP/1.1.
        limits: Limits for clients.
        errors: How much errors reveal.
        fallback: URL that gets the requests which were read and name no model, and those for
            fallback_models.
        fallback_models: Unknown models whose requests go to fallback; an asterisk stands for any
            text (gpt-*), and `*` alone for every unknown model. All others get 404.
        default_model: Model, or an alias of one, for requests that name none; they do not go to
            fallback then. null for none.
        list_aliases: Include aliases in the list of models, except patterns.
        passive: Paths of requests that only look at a model. They are served if it is awake, and
            get 503 at once otherwise; they never cause a switch, and do not count as use. An
            asterisk stands for any text, `defaults` for the default list.
        api_keys: Keys for clients, {file: PATH} or {env: NAME}; if there are any, clients must send
            one.
        control_keys: Keys for the control API, in the same form. With keys, it also answers other
            machines.
        read_keys: Keys that show all of the control API and steer nothing, in the same form. Other
            machines may read with one, also without any control_keys.
        control: A separate listener for the control API and the page; null for the main listener.
        trusted_proxies: Addresses and networks of proxies in front of llmux, and unix for peers on
            Unix sockets. llmux believes the client addresses that they forward (X-Forwarded-For),
            and answers them on the control API only with a key.
        metrics_access: Key that opens the metrics; open for none.
        forward_api_keys: Forward to backends the key that a client has sent to llmux.
        forward_origin: Forward to backends the headers by which a browser names the page (Origin,
            Referer, Sec-Fetch-*). If false, backends need not allow the pages that llmux allows.
        cors_origins: Origins of web pages that may use models from a browser; * for all.
        hosts: Public names by which clients reach llmux, *.example.org for all below one; * for
            any. Needed without api_keys only: docs/http-api.md.
        state_dir: Folder for logs, lock and state; relative to the config's folder. By default each
            config has its own, in the platform's place for state, or in that of the systemd
            service (StateDirectory=).
        path: Path of the config file, if there is one.
        directory: Working directory of hooks: the file's folder.
        source: Text of the file, for the places of its keys.
        hidden: Secret values of environment variables that the file refers to.
    """

    host: Host = "127.0.0.1"
    port: Annotated[int, Meta(ge=0, le=65535)] = 3000
    tls: TlsConfig | None = None
    models: Annotated[
        dict[Name, ModelConfig], check_some, Meta(extra_json_schema={"minProperties": 1})
    ]
    ports: PortRange = "29000-29999"
    groups: dict[Name, GroupConfig] = {}  # noqa: RUF012 - msgspec copies it
    resources: dict[Resource, PositiveSize] = {}  # noqa: RUF012
    sets: tuple[tuple[Name, ...], ...] = ()
    memory_margin: Share = 0.1
    overlapping_hooks: bool = False
    busy: PositiveInt | None = None
    policy: PolicyConfig = PolicyConfig()
    shutdown_grace_secs: Annotated[float, Meta(ge=0)] = 30.0
    on_shutdown: Literal["leave", "sleep"] = "leave"
    journal: bool = True
    access_log: bool = False
    tracing: bool = False
    watch_gpus: bool = True
    http2: bool = False
    limits: Limits = Limits()
    errors: ErrorsConfig = ErrorsConfig()
    fallback: Url | None = None
    fallback_models: tuple[Alias, ...] = ()
    default_model: Name | None = None
    list_aliases: bool = False
    passive: tuple[PassivePath, ...] = PASSIVE_PATHS
    api_keys: KeyList = msgspec.field(default_factory=KeyRing)
    control_keys: KeyList = msgspec.field(default_factory=KeyRing)
    read_keys: KeyList = msgspec.field(default_factory=KeyRing)
    control: ControlConfig | None = None
    trusted_proxies: tuple[Proxy, ...] = ()
    metrics_access: Literal["open", "api_key", "control_key"] = "open"
    forward_api_keys: bool = False
    forward_origin: bool = False
    cors_origins: tuple[Origin, ...] | Literal["*"] = ()
    hosts: tuple[OwnHost, ...] | Literal["*"] = ()
    state_dir: Path
    path: NotAKey[Path | None] = None
    directory: NotAKey[Path]
    source: NotAKey[Source | None] = None
    hidden: NotAKey[Hidden] = Hidden()

    @functools.cached_property
    def names(self) -> Names:
        """Model names by every name that clients may use: the models' own and their aliases."""
        own = {name: name for name in self.models}
        return Names(own | {alias: m.name for m in self.models.values() for alias in m.alias_names})

    @functools.cached_property
    def listed(self) -> tuple[str, ...]:
        """The names that clients are told of, in the file's order: the models', maybe aliases."""
        return tuple(name for name, own in self.names.items() if self.list_aliases or name == own)

    @functools.cached_property
    def groups_of_models(self) -> dict[str, list[ModelConfig]]:
        """The models of each group, all in the file's order."""
        found: dict[str, list[ModelConfig]] = {}
        for model in self.models.values():
            found.setdefault(model.group, []).append(model)
        return found

    def passive_of(self, model: str) -> tuple[str, ...]:
        """Return the passive paths of a model."""
        own = self.models[model].passive
        return self.passive if own is None else own

    @functools.cached_property
    def proxies(self) -> TrustedProxies:
        """Peers whose forwarded client addresses are believed."""
        return TrustedProxies(self.trusted_proxies)

    @property
    def control_socket(self) -> Path | None:
        """Path of the control API's Unix socket, or None; symbolic links are not resolved here."""
        if self.control is None or self.control.socket is None:
            return None
        return self.directory / Path(self.control.socket).expanduser()

    @property
    def secrets(self) -> frozenset[str]:
        """Texts that are kept out of logs: keys, and the headers that backends get."""
        headers = (value for model in self.models.values() for value in model.headers.values())
        return frozenset(
            {
                *self.api_keys.texts,
                *self.control_keys.texts,
                *self.read_keys.texts,
                *self.hidden,
                *header_secrets(headers),
                *variable_secrets({*self.secret_variables, *USUAL_SECRETS}),
            }
        )

    @property
    def secret_variables(self) -> frozenset[str]:
        """Environment variables that hold keys; hooks do not get them."""
        tracing = TRACING_SECRETS if self.tracing else frozenset()
        rings = (self.api_keys, self.control_keys, self.read_keys)
        return tracing.union(*(ring.variables for ring in rings))

    @property
    def answers_other_machines(self) -> bool:
        """True if there are keys by which other machines may use the control API."""
        return bool(self.control_keys or self.read_keys)

    @property
    def key_counts(self) -> str:
        """How many keys there are, for people."""
        reading = f", {len(self.read_keys)} for reading" if self.read_keys else ""
        return f"{len(self.api_keys)} for models, {len(self.control_keys)} for control{reading}"

    @staticmethod
    def conflicts(given: Mapping[Any, Any]) -> Iterator[tuple[Keys, str]]:
        """Check what no section can check by itself."""
        yield from _top_level_conflicts(given)
        models: Any = given.get("models")
        owners: dict[str, str] = {}  # model by alias, the first one for an alias that is repeated
        yield from _alias_conflicts(models, owners)
        yield from _pattern_conflicts(models, owners)
        default = given.get("default_model")
        if isinstance(default, str) and isinstance(models, dict):
            known = {*map(str, models), *owners}
            if default not in known or (is_pattern(default) and default not in models):
                yield ("default_model",), f"{default!r} is no model, nor an alias of one"
        yield from group_conflicts(given.get("groups"), models)
        yield from name_conflicts(given)


def port_shortage(config: Config) -> tuple[Keys, str] | None:
    """Return path and message if more models need a port of `ports` than it has; None otherwise."""
    needed = sum(model.chooses_port for model in config.models.values())
    control = config.control.port if config.control is not None else None
    given = {config.port, control, *(model.port for model in config.models.values())}
    room = sum(port not in given for port in port_range(config.ports)) if needed else 0
    if needed <= room:
        return None
    told = f"llmux chooses the port of {needed} models, and {config.ports} has {room} for them"
    return ("ports",), f"{told}: widen the range, or give the models 'port' or 'url'"


def doubled_keys(config: Config) -> tuple[Keys, str] | None:
    """Return path and message if a key is to read only, and steers nevertheless; else None."""
    both = len({*config.read_keys.texts} & {*config.control_keys.texts})
    if not both:
        return None
    what = "a key that is" if both == 1 else f"{both} keys that are"
    return ("read_keys",), f"{what} in control_keys, too, and would steer: leave it in one of them"


def _top_level_conflicts(given: Mapping[Any, Any]) -> Iterator[tuple[Keys, str]]:
    if given.get("tracing") is True and not _is_installed(TRACING_NEEDS):
        yield ("tracing",), "needs OpenTelemetry: pip install 'llmux-proxy[otel]'"
    if given.get("fallback_models") and given.get("fallback") is None:
        yield ("fallback_models",), "goes with 'fallback' only"
    control = given.get("control")
    if isinstance(control, dict) and control.get("port") == given.get("port", 3000) != 0:
        yield ("control", "port"), "is the main listener's port"
    needed = METRICS_KEYS.get(str(given.get("metrics_access")), ())
    if needed and not any(map(given.get, needed)):
        # Without any key to send, nobody could read the metrics.
        lists = " or ".join(map(repr, needed))
        yield ("metrics_access",), f"needs {lists}, of which there are none"


def _alias_conflicts(models: Any, owners: dict[str, str]) -> Iterator[tuple[Keys, str]]:
    """Demand that an alias names one model; fill in `owners` on the way."""
    for keys, alias in _aliases(models):
        if alias in models:
            yield keys, f"{alias!r} is the name of a model"
        elif alias in owners:
            yield keys, f"{alias!r} is an alias of {owners[alias]!r} already"
        owners.setdefault(alias, keys[1])


def _pattern_conflicts(models: Any, owners: Mapping[str, str]) -> Iterator[tuple[Keys, str]]:
    """Demand that of two patterns of different models one wins for every name."""
    wild = [each for each in owners.items() if is_pattern(each[0])]
    for one, other in ambiguities(wild):
        keys = next(keys for keys, alias in _aliases(models) if alias == other)
        yield (
            keys,
            f"some names match this and {one!r} of {owners[one]!r}, and neither is longer",
        )


def _aliases(models: Any) -> Iterator[tuple[Keys, str]]:
    """Yield every alias and its path; skip anything that does not have the shape for one."""
    for name, model in models.items() if isinstance(models, dict) else ():
        aliases = model.get("aliases") if isinstance(model, dict) else None
        for index, alias in enumerate(aliases if isinstance(aliases, list | tuple) else ()):
            if isinstance(alias, dict) and isinstance(alias.get("name"), str):
                yield ("models", name, "aliases", index, "name"), alias["name"]
            elif isinstance(alias, str):
                yield ("models", name, "aliases", index), alias


def _is_installed(module: str) -> bool:
    try:
        return find_spec(module) is not None
    except ModuleNotFoundError:  # one of its parent packages is missing
        return False
