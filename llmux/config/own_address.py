"""Backends that are llmux itself: a request for one would be forwarded for ever."""

from __future__ import annotations

import ipaddress
import socket
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import urlsplit

from llmux.config.section import Keys
from llmux.config.shape import Config
from llmux.http.socketpath import socket_path

LOCALHOST = "127.0.0.1"

DEFAULT_PORTS = {"http": 80, "https": 443}


def loop_mistakes(config: Config, host: str, port: int) -> list[tuple[Keys, str]]:
    """Return path and message of each backend that is a listener of llmux.

    Names are not looked up, apart from `localhost` and this machine's own.

    Args:
        config: The config.
        host: Address that llmux listens on.
        port: Port that llmux listens on; 0 if the system picks it.
    """
    return list(_loops(config, host, port))


def _loops(config: Config, host: str, port: int) -> Iterator[tuple[Keys, str]]:
    backends: list[tuple[Keys, str]] = [
        (("models", model.name, "port" if model.url is None else "url"), model.base_url)
        for model in config.models.values()
        if not model.chooses_port  # llmux takes a port that is free
    ]
    if config.fallback is not None:
        backends.append((("fallback",), config.fallback))
    listeners = [("llmux's own port", host, port)]
    if config.control is not None and config.control.port is not None:
        own = "the port of llmux's control API"
        listeners.append((own, config.control.host or LOCALHOST, config.control.port))
    for keys, url in backends:
        if (path := socket_path(url)) is not None:
            if config.control_socket is not None and _is_same(Path(path), config.control_socket):
                yield keys, "is the socket of llmux's control API, not of a model's server"
            continue
        parts = urlsplit(url)
        there, number = parts.hostname or "", parts.port or DEFAULT_PORTS[parts.scheme]
        for what, listens_on, own_port in listeners:
            if own_port == number and is_here(there, listens_on):
                yield keys, f"is {what} ({own_port}): give the port of the model's server"


def _is_same(one: Path, other: Path) -> bool:
    return one.resolve() == other.resolve()


def is_here(host: str, listens_on: str) -> bool:
    """Return whether a connection to `host` arrives at a listener on `listens_on`, port aside."""
    host, listens_on = host.lower().rstrip("."), listens_on.lower().rstrip(".")
    there, own = _address(host), _address(listens_on)
    if host == listens_on:
        return True
    if "localhost" in (host, listens_on) and _is_localhost(there) and _is_localhost(own):
        return True
    if own is None or there is None:
        return own is not None and own.is_unspecified and host == socket.gethostname().lower()
    if there == own:
        return True
    if there.is_unspecified:  # as a destination it means this machine
        return own.is_unspecified or own.is_loopback
    return own.is_unspecified and (there.is_loopback or _is_local(there))


Address = ipaddress.IPv4Address | ipaddress.IPv6Address


def _address(host: str) -> Address | None:
    if host == "localhost":
        return ipaddress.ip_address(LOCALHOST)
    try:
        found = ipaddress.ip_address(host)
    except ValueError:
        return None
    return getattr(found, "ipv4_mapped", None) or found


def _is_localhost(address: Address | None) -> bool:
    """Return whether a connection to `localhost` may arrive there."""
    return address is not None and (address.is_unspecified or str(address) in {LOCALHOST, "::1"})


def _is_local(address: Address) -> bool:
    """Return whether an address is one of this machine's: only these can be bound."""
    family = socket.AF_INET if address.version == 4 else socket.AF_INET6
    try:
        with socket.socket(family, socket.SOCK_DGRAM) as probe:
            probe.bind((str(address), 0))
    except OSError:
        return False
    return True
