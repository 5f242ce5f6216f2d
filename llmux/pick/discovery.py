"""Find the hosts: addresses and names of the config, or a file as Envoy's EDS reads it."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import AsyncGenerator, Iterable
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit, urlunsplit

from llmux.config.files import decode
from llmux.errors import ConfigError
from llmux.observe.logs import get_logger
from llmux.pick.config import HostConfig, PickConfig, is_name, split_address
from llmux.pick.table import Address

LOOK_UP_S = 5.0
"""Interval at which names are looked up again."""

LOOK_S = 1.0
"""Interval at which a file is looked at."""

log = get_logger(__name__)


async def found_addresses(config: PickConfig) -> AsyncGenerator[list[Address], None]:
    """Yield the addresses of all hosts: at once, and whenever they change.

    What cannot be read or looked up for now leaves its hosts as they were.

    Raises:
        ConfigError: At the start, the file of hosts cannot be used.
    """
    if config.eds_file is not None:
        async for found in _of_file(config, config.eds_file):
            yield found
        return
    known: dict[str, list[Address]] = {}
    told: list[Address] | None = None
    while True:
        for host in config.addresses:
            name, port = split_address(host.address)
            if not is_name(name):
                known[host.address] = [address_of(config, host, f"{name}:{port}")]
            elif (looked_up := await _look_up(name, port)) or host.address not in known:
                known[host.address] = [address_of(config, host, each) for each in looked_up]
        latest = sorted({address for found in known.values() for address in found})
        if latest != told:
            told = latest
            yield latest
        await asyncio.sleep(LOOK_UP_S)


async def _look_up(name: str, port: int) -> list[str]:
    """Return the endpoints of a name; none if it cannot be looked up."""
    loop = asyncio.get_running_loop()
    try:
        found = await loop.getaddrinfo(name, port, type=socket.SOCK_STREAM)
    except OSError as error:
        log.warning("name_unknown", name=name, error=error.strerror or str(error))
        return []
    hosts = {str(place[0]) for *_, place in found}
    return sorted(f"[{host}]:{port}" if ":" in host else f"{host}:{port}" for host in hosts)


def address_of(config: PickConfig, host: HostConfig, endpoint: str) -> Address:
    """Return the address of a host at an endpoint: an IP address and a port."""
    name = split_address(host.address)[0]
    ip, port = split_address(endpoint)
    scheme = "http" if config.hosts_tls is None else "https"
    control = f"{scheme}://{ip}:{config.control_port or port}"
    if host.control is not None:
        parts = urlsplit(host.control.rstrip("/"))
        if parts.hostname == name.strip("[]"):  # of the same name: at this one of its addresses
            netloc = ip if parts.port is None else f"{ip}:{parts.port}"
            parts = parts._replace(netloc=netloc)
        control = urlunsplit(parts)
    by_name = name if is_name(name) else ""
    given = None if config.hosts_tls is None else config.hosts_tls.name
    return Address(endpoint, control, given or by_name)


# ---- A file, as Envoy's EDS reads it ----


async def _of_file(config: PickConfig, path: Path) -> AsyncGenerator[list[Address], None]:
    told, stamp = None, None
    while True:
        latest = _stamp(path)
        if latest != stamp or told is None:
            stamp = latest
            try:
                endpoints = endpoints_of(path, decode(path))
            except ConfigError as error:
                if told is None:
                    raise
                log.error("hosts_unreadable", error=str(error))
            else:
                hosts = [address_of(config, HostConfig(address=each), each) for each in endpoints]
                if hosts != told:
                    told = hosts
                    yield hosts
        await asyncio.sleep(LOOK_S)


def _stamp(path: Path) -> tuple[int, ...] | None:
    """Return what changes with a file; None: it is not there, and `decode` says why."""
    try:
        found = path.stat()
    except OSError:
        return None
    return (found.st_mtime_ns, found.st_size, found.st_ino)


def endpoints_of(path: Path, data: object) -> list[str]:
    """Return the endpoints of a ClusterLoadAssignment, or of a discovery response with some.

    Args:
        path: The file that it comes from, for messages.
        data: The decoded file.

    Raises:
        ConfigError: It is neither, or an address is none.
    """
    resources = data.get("resources") if isinstance(data, dict) else None
    assignments = resources if isinstance(resources, list) else [data]
    try:
        found = [endpoint for each in assignments for endpoint in _endpoints(each)]
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        places = "endpoints.lb_endpoints.endpoint.address.socket_address"
        expected = f"expected a ClusterLoadAssignment, with IP addresses in {places}"
        raise ConfigError([f"{path}: {expected} ({error!r})"]) from None
    return sorted(set(found))


def _endpoints(assignment: Any) -> Iterable[str]:
    for locality in assignment["endpoints"]:
        for each in locality.get("lb_endpoints", ()):
            where = each["endpoint"]["address"]["socket_address"]
            host, port = str(where["address"]), int(where["port_value"])
            if is_name(host):
                raise ValueError(f"{host} is no IP address")
            endpoint = f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
            split_address(endpoint)
            yield endpoint
