"""The config's shape: every key of the file, its type, its bounds and its default.

A type says all about its value that can be said without looking elsewhere: msgspec's `Meta` holds
bounds, for the JSON Schema too, and a function beside it is a check that raises ValueError.
"""

from __future__ import annotations

import functools
import ipaddress
import os
import re
from collections.abc import Iterator, Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar
from urllib.parse import urlsplit

import msgspec
from msgspec import Meta

from llmux.base.names import MAX_NAME_BYTES
from llmux.base.wildcards import Names, ambiguities, is_pattern, literals
from llmux.config.keys import MASK, KeyRing
from llmux.config.masking import header_secrets, variable_secrets
from llmux.http.clients import TrustedProxies
from llmux.http.paths import DEFAULTS, PASSIVE_PATHS
from llmux.http.socketpath import SCHEME, is_socket_url, meant_socket, socket_path

HookName = Literal["wake", "sleep", "alive", "prefetch", "verify_asleep"]

OnSwitch = Literal["hold", "ignore", "cut"]
"""What an open WebSocket means to a switch that waits for its model to be left."""

Keys = tuple[Any, ...]
"""Where a value stands in the file: mapping keys and list indexes, outermost first."""

T = TypeVar("T")

NOT_A_KEY = "not a key of the file"
"""Marks a field that the loader fills in and the file must not name."""

NotAKey = Annotated[T, NOT_A_KEY]


# --- Checks of single values ---------------------------------------------------------------------


def check_not_blank(text: str) -> None:
    """Raise ValueError for a text of spaces only."""
    if not text.strip():
        raise ValueError("must not be blank")


def _check_name(text: str) -> None:
    """Names end in headers, environment variables and log lines."""
    check_not_blank(text)
    if not text.isprintable():
        raise ValueError("must hold printable characters only")
    if len(text.encode("utf-8", "replace")) > MAX_NAME_BYTES:
        raise ValueError(f"must have at most {MAX_NAME_BYTES} bytes of UTF-8")


# RFC 1123 names, with the underscores that container networks use. A last label that is all digits
# would be a mistyped IPv4 address.
_LABEL = r"[A-Za-z0-9_](?:[A-Za-z0-9_-]{0,61}[A-Za-z0-9_])?"
_HOST_NAME = re.compile(rf"(?=.{{1,253}}\Z)(?:{_LABEL}\.)*(?![0-9]+\.?\Z){_LABEL}\.?")


def _is_address(host: str) -> bool:
    try:
        ipaddress.ip_address(host)
    except ValueError:
        return False
    return "%" not in host  # a zone would have to be escaped in a URL


def _check_host(host: str) -> None:
    if not (_HOST_NAME.fullmatch(host) or _is_address(host)):
        raise ValueError("expected a host name or IP address")


def _check_url(url: str) -> None:
    if is_socket_url(url):
        socket_path(url)
        return
    if (meant := meant_socket(url)) is not None:
        raise ValueError(f"a Unix socket is written as {meant!r}")
    if not re.fullmatch(r"[!-~]*", url):
        raise ValueError("must be ASCII without spaces (percent-encode anything else)")
    if re.match(r"https?://", url, re.IGNORECASE) is None:
        raise ValueError("must start with http:// or https://, or be unix:/path/of.sock")
    if "?" in url or "#" in url:
        raise ValueError("must not hold a query or fragment")
    try:
        parts = urlsplit(url)
        port = parts.port
    except ValueError as error:
        raise ValueError(f"not a URL: {error}") from None
    if parts.username is not None:
        raise ValueError("must not hold credentials (send an Authorization header instead)")
    if port == 0 or parts.netloc.endswith(":"):
        raise ValueError("the port must be 1 to 65535")
    _check_host(parts.hostname or "")


_ORIGIN = re.compile(r"([a-z][a-z0-9+.-]*)://(?:[a-z0-9._-]+|\[[0-9a-f:.]+\])(?::([0-9]{1,5}))?")
_DEFAULT_PORTS = {"http": "80", "https": "443"}


def _check_origin(origin: str) -> None:
    """Only what a browser sends can match: no slash at the end, no default port (RFC 6454)."""
    found = _ORIGIN.fullmatch(origin)
    if found and found[2] != _DEFAULT_PORTS.get(found[1], ""):
        return
    hint = " (for all origins: cors_origins: '*')" if origin == "*" else ""
    raise ValueError(f"expected an origin such as https://example.org, got {origin!r}{hint}")


def _check_own_host(name: str) -> None:
    """A name, or all below one; no port, since a name is another site's whatever its port."""
    if not (_HOST_NAME.fullmatch(name.removeprefix("*.")) or _is_address(name)):
        hint = " (for all hosts: hosts: '*')" if name == "*" else ""
        expected = "a host name such as llm.example.org or *.example.org, without a port"
        raise ValueError(f"expected {expected}, got {name!r}{hint}")


_RESERVED_HEADERS = frozenset({
    "connection", "content-length", "host", "keep-alive", "proxy-authenticate",
    "proxy-authorization", "proxy-connection", "te", "trailer", "transfer-encoding", "upgrade",
})  # fmt: skip
"""Hop-by-hop fields (RFC 9110 section 7.6.1) and those that follow from the request itself."""


def _check_header_name(name: str) -> None:
    if not re.fullmatch(r"[!#$%&'*+.^_`|~0-9A-Za-z-]+", name):  # token, RFC 9110 section 5.6.2
        raise ValueError("not a legal header name")
    if name.lower() in _RESERVED_HEADERS:
        raise ValueError("this header is llmux's to set")


def _check_header_value(value: str) -> None:
    if re.search(r"[\x00-\x08\x0a-\x1f\x7f]", value):
        raise ValueError("must not hold line breaks or control characters")


def _check_proxy(text: str) -> None:
    """An address, a network without host bits, or `unix`."""
    if text == "unix":
        return
    try:
        ipaddress.ip_network(text)
    except ValueError:
        pass
    else:
        return
    try:
        network = ipaddress.ip_network(text, strict=False)
    except ValueError:
        expected = "an IP address, a network such as 10.0.0.0/8, or unix"
        raise ValueError(f"expected {expected}, got {text!r}") from None
    raise ValueError(f"{text} has host bits set; did you mean {network}?")


MOST_SOCKET_PATH_BYTES = 103
"""unix(7): 108 with a NUL at the end; macOS has 104."""


def _check_socket(text: str) -> None:
    check_not_blank(text)
    if len(os.fsencode(text)) > MOST_SOCKET_PATH_BYTES:
        raise ValueError(f"a socket's path has {MOST_SOCKET_PATH_BYTES} bytes at most")


def _check_passive(text: str) -> None:
    """A path, maybe with asterisks, or the word for the paths that are passive by default."""
    if text == DEFAULTS:
        return
    if not text.startswith("/"):
        raise ValueError(f"expected a path that begins with '/', or {DEFAULTS!r}, got {text!r}")
    if not re.fullmatch(r"[!-~]+", text) or re.search(r"[?#\\]", text):
        raise ValueError("expected a path alone, of ASCII without spaces, '?', '#' and '\\'")


def _check_alias(alias: str) -> None:
    """One that is nothing but asterisks takes every name there is, and is asked for as '*'."""
    if is_pattern(alias) and not literals(alias) and alias != "*":
        raise ValueError("write '*' for every name")


def _check_some(models: dict[str, Any]) -> None:
    if not models:
        raise ValueError("needs at least one model")


_VISIBLE = Meta(extra_json_schema={"pattern": r"\S"})

Script = Annotated[str, check_not_blank, _VISIBLE]
Name = Annotated[
    str,
    _check_name,
    Meta(extra_json_schema={"pattern": r"\S", "maxLength": MAX_NAME_BYTES}),
]
Alias = Annotated[Name, _check_alias]
PassivePath = Annotated[
    str, _check_passive, Meta(extra_json_schema={"pattern": f"^(/[!-~]*|{DEFAULTS})$"})
]
Host = Annotated[str, _check_host]
Url = Annotated[
    str,
    _check_url,
    Meta(
        extra_json_schema={
            "pattern": "^([Hh][Tt][Tt][Pp][Ss]?://|[Uu][Nn][Ii][Xx]:/(//+)?[^/]([^\\n]*[^/])?$)"
        }
    ),
]
Origin = Annotated[str, _check_origin, Meta(extra_json_schema={"pattern": "^[a-z][^/]*://[^/]+$"})]
OwnHost = Annotated[
    str, _check_own_host, Meta(extra_json_schema={"pattern": "^[^/:]+$|^[0-9a-f:]+$"})
]
HeaderName = Annotated[str, _check_header_name]
HeaderValue = Annotated[str, _check_header_value]
Port = Annotated[int, Meta(ge=1, le=65535)]
PositiveInt = Annotated[int, Meta(gt=0)]
Seconds = Annotated[float, Meta(gt=0)]
Proxy = Annotated[str, _check_proxy]
SocketPath = Annotated[str, _check_socket, _VISIBLE]
KeyList = Annotated[
    KeyRing,
    Meta(
        extra_json_schema={
            "type": "array",
            "items": {
                "anyOf": [
                    {"type": "string", "pattern": "^[!-~]+$"},
                    *(
                        {
                            "type": "object",
                            "properties": {source: {"type": "string"}},
                            "required": [source],
                            "additionalProperties": False,
                        }
                        for source in ("file", "env")
                    ),
                ]
            },
            "default": [],
        }
    ),
]


# --- The shape -----------------------------------------------------------------------------------
# The lines under "Attributes:" are also the descriptions in the JSON Schema.


class Section(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A mapping of the file whose keys are known."""

    @staticmethod
    def conflicts(given: Mapping[Any, Any]) -> Iterator[tuple[Keys, str]]:  # noqa: ARG004
        """What values that may be right one by one get wrong together.

        Args:
            given: The section as the file has it, so that a mistake in it hides no conflict.

        Yields:
            Path below this section, and message.
        """
        yield from ()


@functools.cache
def file_keys(section: type[Section]) -> dict[str, Any]:
    """The section's keys in the file, each with its type."""
    fields = msgspec.structs.fields(section)
    return {f.name: f.type for f in fields if NOT_A_KEY not in getattr(f.type, "__metadata__", ())}


class HookTimeouts(Section, frozen=True, kw_only=True):
    """Seconds that each hook may run; null for no limit.

    Attributes:
        wake: Seconds for the wake hook, and after it until alive succeeds.
        sleep: Seconds for the sleep hook.
        alive: Seconds for the alive hook.
        prefetch: Seconds for the prefetch hook.
        verify_asleep: Seconds for the verify_asleep hook.
    """

    wake: Seconds | None = 600.0
    sleep: Seconds | None = 120.0
    alive: Seconds | None = 10.0
    prefetch: Seconds | None = 600.0
    verify_asleep: Seconds | None = 30.0


NEEDS_SLEEP = ("base_url", "wake", "sleep", "preserves_in_flight")
"""What of a model can only change while it sleeps: where its server is, and its hooks."""


OWN_NAME = "name"
"""As `upstream_model`: the model's own name in the file."""


class ModelConfig(Section, frozen=True, kw_only=True):
    """A model: where its backend answers, and the hooks that wake it and put it to sleep.

    Attributes:
        name: Its key in the file.
        port: Port of the backend; give this or url.
        host: Host of the backend, beside port; 127.0.0.1 if not given.
        url: URL of the backend, or unix:/path for a Unix socket; give this or port.
        wake: Shell script that starts the model, which is awake once alive succeeds after it.
        sleep: Shell script that frees the GPU.
        alive: Shell script that exits 0 if the model is up.
        prefetch: Shell script that runs while the outgoing model drains and sleeps.
        verify_asleep: Shell script that exits 0 if the GPU is really free.
        aliases: Other names that clients may use. An asterisk stands for any text (claude-*). A
            name that is written out wins, then the pattern with the most other characters.
        upstream_model: What the backend calls the model, put in place of any name; `name` for the
            name here, whatever alias was used. As sent if not given.
        passive: Like passive of the file, in its place for this model; null for the file's.
        headers: Headers added to what the backend gets.
        group: Models of one group share a GPU and take turns on it.
        max_in_flight: Most requests in flight; the rest wait in order. null for no limit.
        stream_idle_secs: A stream of which the backend sends nothing for so long has failed, also
            before its first byte; null for no limit.
        websocket: What becomes of its WebSockets when a switch waits; null for policy.websocket.
        idle_sleep_secs: After so long without a request the model is put to sleep; null for never.
        preserves_in_flight: The hooks freeze the model with its requests, so none are waited for.
        abandon_wakes: As in policy, for this model; null for what policy says.
        hook_timeouts: Seconds that each hook may run.
    """

    name: NotAKey[str] = ""
    port: Port | None = None
    host: Host | None = None
    url: Url | None = None
    wake: Script
    sleep: Script
    alive: Script
    prefetch: Script | None = None
    verify_asleep: Script | None = None
    aliases: tuple[Alias, ...] = ()
    upstream_model: Name | None = None
    passive: tuple[PassivePath, ...] | None = None
    headers: dict[HeaderName, HeaderValue] = {}
    group: Name = "default"
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
    def base_url(self) -> str:
        """The backend's URL without a slash at its end; a Unix socket in one form only."""
        if self.url is not None:
            path = socket_path(self.url)
            return self.url.rstrip("/") if path is None else SCHEME + path
        host = self.host or "127.0.0.1"
        return f"http://[{host}]:{self.port}" if ":" in host else f"http://{host}:{self.port}"

    @property
    def name_sent(self) -> str | None:
        """What a request's name is replaced by for the backend; None: it is sent as it came."""
        return self.name if self.upstream_model == OWN_NAME else self.upstream_model

    def needs_sleep_after(self, before: ModelConfig) -> bool:
        """Whether it can follow that one only while the model sleeps: another server, or hooks."""
        return any(getattr(self, key) != getattr(before, key) for key in NEEDS_SLEEP)

    def script(self, hook: HookName) -> str | None:
        """The hook's shell script; None if the model has no such hook."""
        script: str | None = getattr(self, hook)
        return script

    def timeout_s(self, hook: HookName) -> float | None:
        """Seconds that the hook may run; None for no limit."""
        seconds: float | None = getattr(self.hook_timeouts, hook)
        return seconds

    @staticmethod
    def conflicts(given: Mapping[Any, Any]) -> Iterator[tuple[Keys, str]]:
        """One of port and url, and host beside port only."""
        port, url, host = (given.get(key) is not None for key in ("port", "url", "host"))
        if port and url:
            yield (), "give 'port' or 'url', not both"
        elif url and host:
            yield ("host",), "goes with 'port' only"
        elif not port and not url:
            yield (), "give 'port' or 'url'"


class GroupConfig(Section, frozen=True, kw_only=True):
    """What a group does when nobody wants anything of it.

    Attributes:
        name: Its key in the file: a name that models give as their group.
        standby: The model that is woken once nothing else was wanted for a while; null for none.
        standby_after_secs: How long nothing must have been wanted.
        preload: The model that is woken when llmux starts; null for none.
    """

    name: NotAKey[str] = ""
    standby: Name | None = None
    standby_after_secs: Seconds = 300.0
    preload: Name | None = None


class PolicyConfig(Section, frozen=True, kw_only=True):
    """When to switch, and how patiently.

    Attributes:
        name: One of adaptive, fifo, exhaustive, cost_aware or time_slice; package.module:Class for
            one of your own.
        request_timeout_secs: Longest wait for a model; null for no limit.
        drain_before_switch: Let requests in flight finish before their model sleeps.
        drain_timeout_secs: Longest drain; null for no limit.
        on_drain_timeout: What becomes of requests still in flight then; wait only logs it.
        websocket: What WebSockets do when a switch waits: hold it up, are ignored and go on, or are
            cut at once.
        websocket_idle_secs: A WebSocket without a message for so long is cut once something waits
            for its place; null for never. Pings are no messages.
        waiting_keepalive_secs: How often a client that waits for server-sent events gets a comment
            until the first byte of its answer's body; null for never.
        min_active_secs: Least time that a model stays awake.
        alive_interval_secs: How often the alive hook of the model that is awake runs; 0 for never.
        alive_failures: Failures in a row after which the model counts as down; 1 if its backend
            has refused a connection.
        max_wait_secs: After so long a wait a request's model is next, or soon: docs/policies.md.
        abandon_wakes: End a wake hook once nobody waits for its model any more, then run the sleep
            hook; else the model wakes for nobody.
        gate: Do not leave a model while its backend's metrics (vLLM's) say that requests wait.
        client_hints: Honour x-llmux-priority and x-llmux-max-wait of requests.
        options: Given as they are to a policy of your own.
    """

    name: Name = "adaptive"
    request_timeout_secs: Annotated[float, Meta(ge=0)] | None = None
    drain_before_switch: bool = True
    drain_timeout_secs: Seconds | None = None
    on_drain_timeout: Literal["cut", "wait"] = "cut"
    websocket: OnSwitch = "hold"
    websocket_idle_secs: Seconds | None = 300.0
    waiting_keepalive_secs: Seconds | None = None
    min_active_secs: Annotated[float, Meta(ge=0)] = 0.0
    alive_interval_secs: Annotated[float, Meta(ge=0)] = 30.0
    alive_failures: PositiveInt = 3
    max_wait_secs: Seconds = 300.0
    abandon_wakes: bool = False
    gate: bool = False
    client_hints: bool = False
    options: dict[str, Any] = {}


class Limits(Section, frozen=True, kw_only=True):
    """What one client, or all of them, may take.

    Attributes:
        body_bytes: Largest request body.
        queued_per_model: Most requests that wait for one model.
        queued_bytes: Most bytes of all waiting requests, heads and bodies, and of own answers.
        body_secs: Longest time that a request body may take to arrive.
        client_stall_secs: A client that takes no byte for so long is cut; so is a WebSocket whose
            backend takes none.
        dead_peer_secs: A client or backend whose host has answered nothing for so long is gone (TCP
            keep-alive); null for the system's own settings.
        connections: Most connections of clients; null for as many as there are descriptors for.
        header_fields: Most header fields of one request.
        connections_per_client: Most connections of one address (IPv6: of one /64); null for half of
            all, and any number for programs of this machine. Not for trusted_proxies. `llmux` only.
        queued_per_client: Most requests of one address that wait, for all models together; null for
            no limit. Behind trusted_proxies the address is the one that they forward.
        remembered_ids: Of how many responses, files, batches and the like it is remembered which
            model has made them; the one unused for the longest time is forgotten first.
    """

    body_bytes: PositiveInt = 64 << 20
    queued_per_model: PositiveInt = 1000
    queued_bytes: PositiveInt = 1 << 30
    body_secs: Seconds = 600.0
    client_stall_secs: Seconds = 60.0
    dead_peer_secs: Seconds | None = 120.0
    connections: PositiveInt | None = None
    header_fields: PositiveInt = 128
    connections_per_client: PositiveInt | None = None
    queued_per_client: PositiveInt | None = None
    remembered_ids: PositiveInt = 10_000


class ControlConfig(Section, frozen=True, kw_only=True):
    """A listener of its own for /control and /ui, which the main one does not answer then.

    Attributes:
        host: Address to listen on, beside port; 127.0.0.1 if not given.
        port: Port to listen on; 0 lets the system pick one. Give this or socket.
        socket: Path of a Unix socket, for the user that llmux runs as alone; relative to the
            config's folder. Give this or port.
    """

    host: Host | None = None
    port: Annotated[int, Meta(ge=0, le=65535)] | None = None
    socket: SocketPath | None = None

    @staticmethod
    def conflicts(given: Mapping[Any, Any]) -> Iterator[tuple[Keys, str]]:
        """One of port and socket, and host beside port only."""
        host, port, socket = (given.get(key) is not None for key in ("host", "port", "socket"))
        if port and socket:
            yield (), "give 'port' or 'socket', not both"
        elif socket and host:
            yield ("host",), "goes with 'port' only"
        elif not port and not socket:
            yield (), "give 'port' or 'socket'"


class ErrorsConfig(Section, frozen=True, kw_only=True):
    """How much errors tell.

    Attributes:
        hook_output: Who gets the last lines that a failed hook printed, which may hold secrets:
            operators for the log and the control API only; clients for clients, too.
    """

    hook_output: Literal["operators", "clients"] = "operators"


TRACING_SECRETS = frozenset({"OTEL_EXPORTER_OTLP_HEADERS", "OTEL_EXPORTER_OTLP_TRACES_HEADERS"})
"""Where the key of a collector of traces is."""

USUAL_SECRETS = frozenset({"LLMUX_API_KEYS", "LLMUX_CONTROL_KEYS"})
"""Usual names of llmux's own secrets."""

KEY_LISTS = ("api_keys", "control_keys")
"""The keys of the file whose values are secret."""


TRACING_NEEDS = "opentelemetry.exporter.otlp.proto.http"
"""What the extra `otel` installs last."""


class Config(Section, frozen=True, kw_only=True, dict=True):
    """The config of llmux.

    Attributes:
        host: Address to listen on.
        port: Port to listen on; 0 lets the system pick one.
        models: Models by name.
        groups: What groups of models do when nobody wants anything, by name.
        policy: When to switch.
        shutdown_grace_secs: How long requests in flight may go on after SIGTERM or SIGINT.
        on_shutdown: What becomes of the model that is awake; leave or sleep.
        journal: Keep a journal in state_dir for `llmux replay`: models, times, `policy.options`.
        access_log: Log a line for each request.
        tracing: Send OpenTelemetry traces; where to is for the OTEL_* variables to say.
        http2: Speak HTTP/2 with clients that ask for it; model clients speak HTTP/1.1.
        limits: What clients may take.
        errors: How much errors tell.
        fallback: URL that gets the requests which were read and name no model or an unknown one.
        default_model: The model, or an alias of it, of requests that name none; they do not go to
            fallback then. null for none.
        list_aliases: Whether the list of models has the aliases, too, but for patterns.
        passive: Paths that only look at a model: served if it is awake, else 503 at once; no use
            of it, no reason to switch. An asterisk stands for any text, `defaults` for the default.
        api_keys: Keys, {file: PATH} or {env: NAME}; if any, clients must send one of them.
        control_keys: The same for the control API, which then answers other machines, too.
        control: A listener of its own for the control API and the page; null for the main one.
        trusted_proxies: Addresses and networks of proxies in front of llmux, and unix for peers on
            Unix sockets. They say for whom they ask (X-Forwarded-For), and do not reach the control
            API without a key.
        metrics_access: Which key opens the metrics; open for none.
        forward_api_keys: Whether backends get to see the key that a client has sent to llmux.
        forward_origin: Whether backends get to see what a browser says of a page (Origin, Referer,
            Sec-Fetch-*) that llmux has let in; false: they need not allow it once more.
        cors_origins: Origins of web pages that may use models from a browser; * for all.
        hosts: Public names by which clients reach llmux, *.example.org for all below one; * for
            any. Needed without api_keys only: docs/http-api.md.
        state_dir: Folder of logs, lock and state; relative to the config's folder. By default one
            for each config, in the platform's place for such.
        path: The file that this comes from, if any.
        directory: Where hooks run: the file's folder.
    """

    host: Host = "127.0.0.1"
    port: Annotated[int, Meta(ge=0, le=65535)] = 3000
    models: Annotated[
        dict[Name, ModelConfig], _check_some, Meta(extra_json_schema={"minProperties": 1})
    ]
    groups: dict[Name, GroupConfig] = {}
    policy: PolicyConfig = PolicyConfig()
    shutdown_grace_secs: Annotated[float, Meta(ge=0)] = 30.0
    on_shutdown: Literal["leave", "sleep"] = "leave"
    journal: bool = True
    access_log: bool = False
    tracing: bool = False
    http2: bool = False
    limits: Limits = Limits()
    errors: ErrorsConfig = ErrorsConfig()
    fallback: Url | None = None
    default_model: Name | None = None
    list_aliases: bool = False
    passive: tuple[PassivePath, ...] = PASSIVE_PATHS
    api_keys: KeyList = msgspec.field(default_factory=KeyRing)
    control_keys: KeyList = msgspec.field(default_factory=KeyRing)
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

    @functools.cached_property
    def names(self) -> Names:
        """The model's name by every name that clients may use: its own and its aliases."""
        own = {name: name for name in self.models}
        return Names(own | {alias: m.name for m in self.models.values() for alias in m.aliases})

    def passive_of(self, model: str) -> tuple[str, ...]:
        """The paths that only look at a model."""
        own = self.models[model].passive
        return self.passive if own is None else own

    @functools.cached_property
    def proxies(self) -> TrustedProxies:
        """The peers that are believed when they say whom they ask for."""
        return TrustedProxies(self.trusted_proxies)

    @property
    def control_socket(self) -> Path | None:
        """Where the control API's Unix socket is, if it has one; links are not followed here."""
        if self.control is None or self.control.socket is None:
            return None
        return self.directory / Path(self.control.socket).expanduser()

    @property
    def secrets(self) -> frozenset[str]:
        """The texts that are kept out of logs: keys, and the headers that backends get."""
        headers = (value for model in self.models.values() for value in model.headers.values())
        return frozenset(
            {
                *self.api_keys.texts,
                *self.control_keys.texts,
                *header_secrets(headers),
                *variable_secrets({*self.secret_variables, *USUAL_SECRETS}),
            }
        )

    @property
    def secret_variables(self) -> frozenset[str]:
        """The environment variables that hold keys, and are none of a hook's business."""
        tracing = TRACING_SECRETS if self.tracing else frozenset()
        return self.api_keys.variables | self.control_keys.variables | tracing

    @staticmethod
    def conflicts(given: Mapping[Any, Any]) -> Iterator[tuple[Keys, str]]:
        """An alias must name one model; a door with a lock must have a key; an extra be there."""
        if given.get("tracing") is True and not _is_installed(TRACING_NEEDS):
            yield ("tracing",), "needs OpenTelemetry: pip install 'llmux[otel]'"
        control = given.get("control")
        if isinstance(control, dict) and control.get("port") == given.get("port", 3000) != 0:
            yield ("control", "port"), "is the main listener's port"
        needed = f"{given.get('metrics_access')}s"
        if needed in KEY_LISTS and not given.get(needed):
            yield ("metrics_access",), f"needs {needed!r}, of which there are none"
        models: Any = given.get("models")
        owners: dict[str, str] = {}
        for keys, alias in _aliases(models):
            if alias in models:
                yield keys, f"{alias!r} is the name of a model"
            elif alias in owners:
                yield keys, f"{alias!r} is an alias of {owners[alias]!r} already"
            owners.setdefault(alias, keys[1])
        wild = [each for each in owners.items() if is_pattern(each[0])]
        for one, other in ambiguities(wild):
            keys = next(keys for keys, alias in _aliases(models) if alias == other)
            yield (
                keys,
                f"some names match this and {one!r} of {owners[one]!r}, and neither is longer",
            )
        default = given.get("default_model")
        if isinstance(default, str) and isinstance(models, dict):
            known = {*map(str, models), *owners}
            if default not in known or (is_pattern(default) and default not in models):
                yield ("default_model",), f"{default!r} is no model, nor an alias of one"
        yield from _group_conflicts(given.get("groups"), models)


def _group_conflicts(groups: Any, models: Any) -> Iterator[tuple[Keys, str]]:
    """A group must have models, and its standby and preload be some of them."""
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


def _is_installed(module: str) -> bool:
    try:
        return find_spec(module) is not None
    except ModuleNotFoundError:  # a package that it is in is not there
        return False


def _aliases(models: Any) -> Iterator[tuple[Keys, str]]:
    """Every alias and its path, past anything that has not the shape for one."""
    for name, model in models.items() if isinstance(models, dict) else ():
        aliases = model.get("aliases") if isinstance(model, dict) else None
        for index, alias in enumerate(aliases if isinstance(aliases, list | tuple) else ()):
            if isinstance(alias, str):
                yield ("models", name, "aliases", index), alias
