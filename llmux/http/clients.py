"""Whose request it is, behind proxies that are trusted or not, and what one client may take."""

from __future__ import annotations

import ipaddress
import re
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from functools import lru_cache

from llmux.errors import QueueFull

UNIX = "unix"
"""What stands for peers on Unix sockets, which have no address."""

MOST_HOPS = 32
"""So many addresses of `X-Forwarded-For` are looked at, from the right: no chain is longer."""

RETRY_AFTER_S = 5.0
"""When a client with too many requests in line may try again."""

Address = ipaddress.IPv4Address | ipaddress.IPv6Address
Network = ipaddress.IPv4Network | ipaddress.IPv6Network

CLAIMS = frozenset({b"forwarded", b"x-real-ip"})
"""What says where a request came from, beside `X-Forwarded-...`."""

# "192.0.2.1", "192.0.2.1:80", "2001:db8::1", "[2001:db8::1]:80"
_HOP = re.compile(r"\[([^\]]*)\](?::\d*)?|([0-9.]+):\d*|(.*)", re.DOTALL)


@lru_cache(maxsize=4096)
def address_of(text: str) -> Address | None:
    """An address without its zone, an IPv4 one in IPv6 as such; None if it is none."""
    try:
        address = ipaddress.ip_address(text.partition("%")[0])
    except ValueError:
        return None
    return getattr(address, "ipv4_mapped", None) or address


def is_loopback(peer: str | None) -> bool:
    """Whether a peer is a program of this machine; one on a Unix socket is."""
    if peer is None:
        return True
    address = address_of(peer)
    return address is not None and address.is_loopback


@lru_cache(maxsize=4096)
def client_key(client: str | None) -> str:
    """What counts as one client: an IPv4 address, or the /64 that an IPv6 host gets as a whole.

    RFC 6177 has providers give each site at least that much, so one host has 2^64 addresses.
    """
    address = address_of(client) if client is not None else None
    if isinstance(address, ipaddress.IPv6Address):
        return str(ipaddress.IPv6Network((int(address) >> 64 << 64, 64)))
    return UNIX if client is None else str(address or client)


class TrustedProxies:
    """The peers that are believed when they say whom they ask for.

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
        """The address of the client: the last one of `X-Forwarded-For` that is no trusted proxy.

        What stands left of it may be made up. Where a proxy has written no address, the one that
        the proxy was asked from is the last that is known.

        Args:
            peer: Who has connected; None on a Unix socket.
            headers: What was sent.
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

    def believed(
        self, peer: str | None, headers: Sequence[tuple[bytes, bytes]]
    ) -> Sequence[tuple[bytes, bytes]]:
        """Headers without what an untrusted peer says of where its request came from.

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
    """How many of something each client has at this instant."""

    def __init__(self) -> None:
        self._counts = defaultdict[str, int](int)

    def __len__(self) -> int:
        return len(self._counts)

    def of(self, client: str | None) -> int:
        """How many this one has."""
        return self._counts.get(client_key(client), 0)

    @contextmanager
    def one_more(self, client: str | None) -> Iterator[None]:
        """It has one more for as long as the context lasts."""
        key = client_key(client)
        self._counts[key] += 1
        try:
            yield
        finally:
            self._counts[key] -= 1
            if not self._counts[key]:
                del self._counts[key]


class Place:
    """A request's place among those in line of its client; this one counts nothing."""

    def check(self) -> None:
        """Raise QueueFull if the client has as many as it may."""

    @contextmanager
    def taken(self) -> Iterator[None]:
        """It is in line for as long as the context lasts."""
        yield


NO_PLACE = Place()


class ClientLines:
    """The requests in line, by client, for all models together.

    Attributes:
        limit: How many a client may have; None: as many as it likes.
    """

    def __init__(self, limit: int | None) -> None:
        self.limit = limit
        self.tally = Tally()

    def place(self, client: str | None) -> Place:
        """A place for a request of this client."""
        return NO_PLACE if self.limit is None else CountedPlace(self, client)


class CountedPlace(Place):
    """See `ClientLines.place`."""

    def __init__(self, lines: ClientLines, client: str | None) -> None:
        self._lines = lines
        self._client = client

    def check(self) -> None:
        """See `Place`."""
        limit, count = self._lines.limit, self._lines.tally.of(self._client)
        if limit is not None and count >= limit:
            message = f"{count} requests of this client wait already: limits.queued_per_client"
            raise QueueFull(message, retry_after_s=RETRY_AFTER_S)

    @contextmanager
    def taken(self) -> Iterator[None]:
        """See `Place`."""
        with self._lines.tally.one_more(self._client):
            yield
