"""Identify the client of a request, also behind trusted proxies, and limit each client's line."""

from __future__ import annotations

import ipaddress
import re
from collections import defaultdict
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from functools import lru_cache

from llmux.errors import QueueFull
from llmux.http.syntax import Headers

UNIX = "unix"
"""Stands for peers on Unix sockets, which have no address."""

MOST_HOPS = 32
"""Limit for addresses read of `X-Forwarded-For`, from the right: no chain of proxies is longer."""

RETRY_AFTER_S = 5.0
"""Fixed delay for `Retry-After` when a client has too many requests in line."""

Address = ipaddress.IPv4Address | ipaddress.IPv6Address
Network = ipaddress.IPv4Network | ipaddress.IPv6Network

CLAIMS = frozenset({b"forwarded", b"x-real-ip"})
"""Headers that claim a request's origin, beside `X-Forwarded-...`."""

# "192.0.2.1", "192.0.2.1:80", "2001:db8::1", "[2001:db8::1]:80"
_HOP = re.compile(r"\[([^\]]*)\](?::\d*)?|([0-9.]+):\d*|(.*)", re.DOTALL)


@lru_cache(maxsize=4096)
def address_of(text: str) -> Address | None:
    """Parse an address, without its zone; IPv4-mapped IPv6 becomes IPv4. None if it is not one."""
    try:
        address = ipaddress.ip_address(text.partition("%")[0])
    except ValueError:
        return None
    return getattr(address, "ipv4_mapped", None) or address


def is_loopback(peer: str | None) -> bool:
    """Return whether a peer is on this machine, as one on a Unix socket is."""
    if peer is None:
        return True
    address = address_of(peer)
    return address is not None and address.is_loopback


@lru_cache(maxsize=4096)
def client_key(client: str | None) -> str:
    """Return what counts as one client: an IPv4 address, or the /64 of an IPv6 address.

    RFC 6177 has providers give each site at least that much, so one host has 2^64 addresses.
    """
    address = address_of(client) if client is not None else None
    if isinstance(address, ipaddress.IPv6Address):
        return str(ipaddress.IPv6Network((int(address) >> 64 << 64, 64)))
    return UNIX if client is None else str(address or client)


class TrustedProxies:
    """The peers whose claims about the origin of a request are believed.

    Args:
        names: Addresses, networks, or `unix`.
    """

    def __init__(self, names: Iterable[str] = ()) -> None:
        known = list(names)
        self._has_unix = UNIX in known
        self._networks: list[Network] = [
            ipaddress.ip_network(name) for name in known if name != UNIX
        ]

    def __bool__(self) -> bool:
        return self._has_unix or bool(self._networks)

    def __contains__(self, peer: object) -> bool:
        if peer is None:
            return self._has_unix
        address = address_of(peer) if isinstance(peer, str) else None
        return address is not None and any(address in network for network in self._networks)

    def client(self, peer: str | None, headers: Iterable[tuple[bytes, bytes]]) -> str | None:
        """Return the client's address: the last in `X-Forwarded-For` that is not a trusted proxy.

        Addresses to the left of it may be forged. Where a proxy has written something else than an
        address, the last one known is that of the proxy.

        Args:
            peer: Address of the connection; None on a Unix socket.
            headers: As received.
        """
        if peer not in self:
            return peer
        hops = b",".join(value for name, value in headers if name.lower() == b"x-forwarded-for")
        client = peer
        for hop in reversed(hops.decode("latin-1").rsplit(",", MOST_HOPS)[-MOST_HOPS:]):
            found = _HOP.fullmatch(hop.strip())
            address = address_of(next(filter(None, found.groups()), "")) if found else None
            if address is None:
                break
            client = str(address)
            if client not in self:
                break
        return client

    def believed(self, peer: str | None, headers: Headers) -> Headers:
        """Return the headers without an untrusted peer's claims about the request's origin.

        `X-Forwarded-For` stays, since llmux appends the peer to it.
        """
        if not self or peer in self:
            return headers
        return [field for field in headers if not _is_claim(field[0].lower())]


def _is_claim(name: bytes) -> bool:
    if name.startswith(b"x-forwarded-"):
        return name != b"x-forwarded-for"
    return name in CLAIMS


NO_PROXIES = TrustedProxies()


class Tally:
    """Counts something for each client."""

    def __init__(self) -> None:
        self._counts = defaultdict[str, int](int)

    def __len__(self) -> int:
        return len(self._counts)

    def of(self, client: str | None) -> int:
        return self._counts.get(client_key(client), 0)

    @contextmanager
    def one_more(self, client: str | None) -> Iterator[None]:
        """Count one more for as long as the context lasts."""
        key = client_key(client)
        self._counts[key] += 1
        try:
            yield
        finally:
            self._counts[key] -= 1
            if not self._counts[key]:
                del self._counts[key]


class Place:
    """A request's place in its client's line; this base class imposes no limit."""

    def check(self) -> None:
        """Raise QueueFull if the client's line is full."""

    @contextmanager
    def taken(self) -> Iterator[None]:
        """Be in line for as long as the context lasts."""
        yield


NO_PLACE = Place()


class ClientLines:
    """The requests in line, by client, for all models together.

    Attributes:
        limit: Limit for one client; None: no limit.
    """

    def __init__(self, limit: int | None) -> None:
        self.limit = limit
        self.tally = Tally()

    def place(self, client: str | None) -> Place:
        """Return a place for a request of this client."""
        return NO_PLACE if self.limit is None else CountedPlace(self, client)


class CountedPlace(Place):
    """See `ClientLines.place`."""

    def __init__(self, lines: ClientLines, client: str | None) -> None:
        self._lines = lines
        self._client = client

    def check(self) -> None:
        limit, count = self._lines.limit, self._lines.tally.of(self._client)
        if limit is not None and count >= limit:
            message = f"{count} requests of this client wait already: limits.queued_per_client"
            raise QueueFull(message, retry_after_s=RETRY_AFTER_S)

    @contextmanager
    def taken(self) -> Iterator[None]:
        with self._lines.tally.one_more(self._client):
            yield
