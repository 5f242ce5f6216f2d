"""The config of `llmux pick`."""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Annotated, Any

import msgspec
from msgspec import Meta

from llmux.config.keys import KeyRing
from llmux.config.load import load_section
from llmux.config.section import Keys, Section
from llmux.config.values import HeaderName, KeyList, Name, Port, Url

DEFAULT = Path("pick.yaml")


def split_address(text: str) -> tuple[str, int]:
    """Return host and port of `10.0.0.1:3000`, `[::1]:3000` or `name:3000`.

    Raises:
        ValueError: It is no address with a port.
    """
    found = re.fullmatch(r"(\[[0-9A-Fa-f:.]+\]|[A-Za-z0-9._-]+):([0-9]{1,5})", text)
    if found is None or int(found[2]) > 65535:
        raise ValueError(f"expected an address and a port such as 10.0.0.1:3000, got {text!r}")
    host = found[1]
    if host.startswith("["):
        ipaddress.IPv6Address(host[1:-1])
    return host, int(found[2])


def is_name(host: str) -> bool:
    """Return whether a host is to be looked up, as opposed to an IP address."""
    try:
        ipaddress.ip_address(host.strip("[]"))
    except ValueError:
        return True
    return False


def _check_address(text: str) -> None:
    if not split_address(text)[1]:
        raise ValueError("the port must be 1 to 65535")


def _check_listen(text: str) -> None:
    split_address(text)


HostAddress = Annotated[str, _check_address]
Listen = Annotated[str, _check_listen]


class HostConfig(Section, frozen=True, kw_only=True):
    """A host, that is, an llmux.

    Attributes:
        address: Where it takes requests: an IP address or a name, and a port. Each address of a
            name is a host.
        control: URL of its control API, if that has an address of its own.
    """

    address: HostAddress
    control: Url | None = None


class HostsTlsConfig(Section, frozen=True, kw_only=True):
    """TLS to the hosts.

    Attributes:
        ca: PEM file with the certificates to trust; the system's by default.
        name: Name that the hosts' certificates have; by default, that by which hosts gives each.
    """

    ca: Path | None = None
    name: str | None = None


class PairConfig(Section, frozen=True, kw_only=True):
    """A certificate.

    Attributes:
        cert: PEM file with the certificate, followed by the rest of its chain.
        key: PEM file with its private key.
    """

    cert: Path
    key: Path


class EnvoyConfig(Section, frozen=True, kw_only=True):
    """Settings of Envoy, for `llmux pick envoy-config`.

    Attributes:
        listen: Where clients reach Envoy.
        api_keys: Keys of clients, of which each request must have one, as Authorization Bearer or
            x-api-key. They are written into Envoy's config.
        tls: Certificate for clients.
        admin: Address of Envoy's own admin interface; null for none.
        max_body_bytes: Longest body of a request; longer ones get 413.
        homes: For models, the hosts that get their requests while the picker is gone, best first.
            Models without get a home by the hash of their name.
    """

    listen: Listen = "127.0.0.1:8080"
    api_keys: KeyList = msgspec.field(default_factory=KeyRing)
    tls: PairConfig | None = None
    admin: Listen | None = None
    max_body_bytes: Annotated[int, "a size, in bytes or with a unit", Meta(ge=1 << 16)] = 64 << 20
    homes: dict[Name, tuple[HostAddress, ...]] = {}  # noqa: RUF012 - msgspec copies it


class PickConfig(Section, frozen=True, kw_only=True):
    """The config of `llmux pick`.

    Attributes:
        listen: Where Envoy reaches the picker (gRPC).
        tls: Certificate for it; without, it speaks plain gRPC.
        web: Where the picker serves /v1/models, /health and /metrics; null for nowhere.
        hosts: The hosts: addresses, or mappings.
        eds_file: File with the hosts, as Envoy's EDS reads it: a ClusterLoadAssignment, in YAML or
            JSON, with the cluster_name hosts. It is read again when it changes.
        control_port: Port of the hosts' control APIs, if they have a listener of their own.
        hosts_tls: The hosts speak TLS.
        read_keys: Keys of which the hosts accept one (their read_keys or control_keys).
        model_headers: Headers in which a gateway tells the model of a request. Clients must not be
            able to send them.
        refuse_unknown: Answer requests for models that no host knows with 404. false: they go to
            any host, for hosts with a fallback.
        most_endpoints: Most hosts in an answer; 1 for a gateway whose Envoy takes the pick by a
            cluster of type ORIGINAL_DST, which understands no list. null: all that would do.
        envoy: Settings for `llmux pick envoy-config`.
    """

    listen: Listen = "127.0.0.1:9002"
    tls: PairConfig | None = None
    web: Listen | None = "127.0.0.1:9003"
    hosts: tuple[HostAddress | HostConfig, ...] = ()
    eds_file: Path | None = None
    control_port: Port | None = None
    hosts_tls: HostsTlsConfig | None = None
    read_keys: KeyList = msgspec.field(default_factory=KeyRing)
    model_headers: tuple[HeaderName, ...] = ("x-llmux-model", "x-gateway-model-name")
    refuse_unknown: bool = True
    most_endpoints: Annotated[int, Meta(ge=1)] | None = None
    envoy: EnvoyConfig = msgspec.field(default_factory=EnvoyConfig)

    @staticmethod
    def conflicts(given: Mapping[Any, Any]) -> Iterator[tuple[Keys, str]]:
        """Demand hosts, in one place, each once."""
        hosts, eds_file = given.get("hosts"), given.get("eds_file")
        if not hosts and not eds_file:
            yield (), "give 'hosts' or 'eds_file'"
        elif hosts and eds_file:
            yield ("eds_file",), "give 'hosts' or 'eds_file', not both"
        seen = set()
        for index, host in enumerate(hosts if isinstance(hosts, list) else ()):
            address = host.get("address") if isinstance(host, dict) else host
            if isinstance(address, str) and address in seen:
                yield ("hosts", index), f"{address!r} is in the list already"
            if isinstance(address, str):
                seen.add(address)

    @property
    def addresses(self) -> tuple[HostConfig, ...]:
        """The hosts, each as a mapping."""
        return tuple(
            HostConfig(address=host) if isinstance(host, str) else host for host in self.hosts
        )


SECTIONS = (PickConfig, HostConfig, HostsTlsConfig, PairConfig, EnvoyConfig)


def load_pick_config(path: Path) -> PickConfig:
    """Read and check a config of `llmux pick`.

    Raises:
        ConfigError: The file cannot be read or is no such config, with all mistakes found.
    """
    return load_section(PickConfig, path)
