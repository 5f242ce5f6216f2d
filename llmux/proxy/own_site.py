"""Which web pages may use a llmux without keys: its own, and those of `cors_origins`.

Without keys, being able to connect is all it takes, and every browser of the network can. So pages
of other sites are refused by what browsers say of them and no page can change: `Host`, `Origin` and
`Sec-Fetch-Site`. Where there are keys, these are the check, and pages have none.
"""

from __future__ import annotations

import re
import socket
from collections.abc import Iterable, Sequence
from functools import lru_cache
from typing import NamedTuple

from llmux.base.names import shown
from llmux.config import Config
from llmux.errors import Forbidden
from llmux.http.clients import TrustedProxies, address_of
from llmux.http.syntax import Headers

PRIVATE_SUFFIXES = (
    "localhost",  # RFC 6761, section 6.3
    "local",  # RFC 6762; Kubernetes' cluster.local, too
    "internal",  # reserved by ICANN in 2024; host.docker.internal
    "home.arpa",  # RFC 8375
    "intranet", "private", "corp", "home", "lan",  # RFC 6762, appendix G
    "localdomain",
)  # fmt: skip
"""What ends names that no public name server answers for, so that no page can have one."""

# What no top-level domain looks like, since those are of letters, or IDNA (RFC 3696, section 2):
# Docker's network names, for one.
_PRIVATE_TOP = re.compile(r"(?!xn--)[a-z]*[0-9_-][a-z0-9_-]*")
_HOST = re.compile(r"(?:\[([^\[\]]*)\]|([^:\[\]@/?#\\]*))(?::[0-9]*)?")

MOST_HOST_BYTES = 300
"""A host name has 253 characters at most, and a port five."""

CONFIRMED = frozenset({b"same-origin", b"none"})
"""Values of `Sec-Fetch-Site` of requests that no other site has caused (W3C Fetch Metadata)."""

FOREIGN = frozenset({b"cross-site", b"same-site"})

_MARKS = frozenset({
    b"host", b"origin", b"sec-fetch-site", b"x-forwarded-host", b"x-forwarded-proto",
})  # fmt: skip
_MARK_LENGTHS = frozenset(map(len, _MARKS))

OPEN_PATHS = (b"/health", b"/metrics", b"/control", b"/ui")
"""llmux's own paths that have a door of their own, or need none; and what is below them."""

_OF_PAGES = frozenset({b"origin", b"referer"})
_OF_PAGES_PREFIXES = (b"sec-fetch-", b"access-control-request-")


class Marks(NamedTuple):
    """What a request says of the page it comes from, each header's values in order."""

    hosts: list[bytes]
    origins: list[bytes]
    sites: list[bytes]
    forwarded_hosts: list[bytes]
    forwarded_protos: list[bytes]


class OwnSite:
    """The names by which clients reach llmux, and the pages that are its own."""

    def __init__(self, config: Config) -> None:
        self._has_keys = bool(config.api_keys)
        self._proxies: TrustedProxies = config.proxies
        pages = config.cors_origins
        self._is_public = pages == "*"
        self._pages = frozenset(origin.encode() for origin in pages)
        self._takes_any_host = config.hosts == "*"
        hosts = [_plain(name) for name in config.hosts]
        self._names = {_plain(config.host), _plain(socket.gethostname())}
        self._names |= {name for name in hosts if not name.startswith("*.")}
        self._suffixes = tuple(name[1:] for name in hosts if name.startswith("*."))
        self._is_own = lru_cache(maxsize=1024)(self._look_up)

    def vet(self, peer: str | None, headers: Headers) -> bool:
        """Let a request in, unless a page of another site has caused it.

        Args:
            peer: Who has connected.
            headers: What was sent.

        Returns:
            Whether it comes from a page that may use llmux: no backend need judge that again.

        Raises:
            Forbidden: There are no keys, and it comes from a page of another site, or by a name
                that may be one's.
        """
        if self._is_plain(headers):
            return False
        marks = _marks(headers)
        origin = marks.origins[0] if marks.origins else None
        is_shared = self._is_public or (
            origin in self._pages and marks.origins.count(origin) == len(marks.origins)
        )
        if is_shared:
            return origin is not None
        is_trusted = bool(marks.forwarded_hosts or marks.forwarded_protos) and peer in self._proxies
        hosts = [*marks.hosts, *marks.forwarded_hosts] if is_trusted else marks.hosts
        if self._has_keys:
            return origin is not None and _is_same(origin, hosts)
        is_secure = is_trusted and set(marks.forwarded_protos) == {b"https"}
        if not is_secure:
            self._check_hosts(hosts)
        is_foreign = any(site.lower() in FOREIGN for site in marks.sites)
        if origin is None:
            if is_foreign:
                raise Forbidden(f"{ABOUT_PAGES}, and this is the request of one")
            return False
        is_confirmed = bool(marks.sites) and all(site.lower() in CONFIRMED for site in marks.sites)
        if is_foreign or not (is_confirmed or _are_same(marks.origins, hosts)):
            raise Forbidden(f"{ABOUT_PAGES}: {_way_in(origin)}")
        return True

    def _is_plain(self, headers: Headers) -> bool:
        """Whether a request has no mark but one host, which may ask: as nearly all of them."""
        host = None
        for name, value in headers:
            if len(name) in _MARK_LENGTHS and (lower := name.lower()) in _MARKS:
                if lower != b"host" or host is not None:
                    return False
                host = value
        return self._has_keys or (
            host is not None and len(host) <= MOST_HOST_BYTES and self._is_own(host)
        )

    def _check_hosts(self, hosts: Iterable[bytes]) -> None:
        for host in hosts:
            if len(host) > MOST_HOST_BYTES or not self._is_own(host):
                name = shown(host.decode("latin-1"))
                raise Forbidden(
                    f"Without api_keys, llmux does not answer for the host {name!r}, which a web "
                    "page could have: if it is llmux's, name it under hosts in its config"
                )

    def _look_up(self, host: bytes) -> bool:
        """Whether no page of another site can have this host: DNS rebinding needs a public name."""
        found = _HOST.fullmatch(host.decode("latin-1").strip().lower())
        if found is None:
            return False
        address, text = found.groups()
        if address is not None:
            return address_of(address) is not None
        name = _plain(text)
        return (
            self._takes_any_host
            or "." not in text  # a name of this network: nobody else's DNS is asked for it
            or address_of(name) is not None
            or name in self._names
            or name.endswith(self._suffixes)
            or _is_private(name)
        )


ABOUT_PAGES = "Without api_keys, llmux does not answer pages of other sites"


NO_NAME = b"null"
"""The origin of pages from files, and of any page in a sandboxed frame (WHATWG HTML, 7.1.1)."""


def _way_in(origin: bytes) -> str:
    if origin == NO_NAME:
        return "this one has no name, so that only api_keys, or cors_origins: '*', let it in"
    return f"name {shown(origin.decode('latin-1'))!r} under cors_origins if it may use llmux"


def is_open_path(path: bytes) -> bool:
    """Whether a raw path of llmux's own is answered whatever page asks."""
    return any(path == own or path.startswith(own + b"/") for own in OPEN_PATHS)


def without_page(headers: Headers) -> list[tuple[bytes, bytes]]:
    """Headers without what browsers say of the page: to a backend it would be foreign.

    Servers judge by `Origin` (gin's CORS, as in Ollama, refuses it with 403), some first by
    `Sec-Fetch-Site` (Go's CrossOriginProtection), and some by `Referer` where `Origin` is missing
    (Django); what only preflights ask is llmux's to answer.
    """
    return [field for field in headers if not _is_of_page(field[0].lower())]


def _is_of_page(name: bytes) -> bool:
    return name in _OF_PAGES or name.startswith(_OF_PAGES_PREFIXES)


def _marks(headers: Headers) -> Marks:
    marks = Marks([], [], [], [], [])
    for name, value in headers:
        if len(name) not in _MARK_LENGTHS or (lower := name.lower()) not in _MARKS:
            continue
        if lower == b"host":
            marks.hosts.append(value)
        elif lower == b"origin":
            marks.origins.append(value.strip())
        elif lower == b"sec-fetch-site":
            marks.sites.append(value.strip())
        elif lower == b"x-forwarded-host":
            marks.forwarded_hosts.extend(each.strip() for each in value.split(b","))
        else:
            marks.forwarded_protos.extend(each.strip().lower() for each in value.split(b","))
    return marks


def _are_same(origins: Iterable[bytes], hosts: Sequence[bytes]) -> bool:
    return all(_is_same(origin, hosts) for origin in origins)


def _is_same(origin: bytes, hosts: Iterable[bytes]) -> bool:
    """Whether an origin is that of one of these hosts, by http or https.

    Behind a proxy that ends TLS, llmux is asked by http for what the page knows as https.
    """
    scheme, _, authority = origin.lower().partition(b"://")
    if scheme not in (b"http", b"https"):
        return False
    usual = b":443" if scheme == b"https" else b":80"
    return any(authority == host.strip().lower().removesuffix(usual) for host in hosts)


def _plain(name: str) -> str:
    return name.lower().removesuffix(".")


def _is_private(name: str) -> bool:
    top = name.rpartition(".")[2]
    is_reserved = any(name == end or name.endswith("." + end) for end in PRIVATE_SUFFIXES)
    return is_reserved or _PRIVATE_TOP.fullmatch(top) is not None
