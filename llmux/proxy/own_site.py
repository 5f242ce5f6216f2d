"""Which web pages may use an llmux without keys: its own, and those of `cors_origins`.

Without keys, anybody who can connect may send requests, and so may every page that a browser on the
network shows. So pages of other sites are refused, by headers that browsers set and no page can
change: `Host`, `Origin` and `Sec-Fetch-Site`. With keys, the key is the check, and foreign pages
have none.
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
from llmux.http.paths import CONTROL_PATHS, is_below
from llmux.http.syntax import Headers

PRIVATE_SUFFIXES = (
    "localhost",  # RFC 6761, section 6.3
    "local",  # RFC 6762; Kubernetes' cluster.local, too
    "internal",  # reserved by ICANN in 2024; host.docker.internal
    "home.arpa",  # RFC 8375
    "intranet", "private", "corp", "home", "lan",  # RFC 6762, appendix G
    "localdomain",
)  # fmt: skip
"""Suffixes that public DNS never resolves, so that no page of another site can have such a host."""

# Top-level domains are letters only, or IDNA (RFC 3696, section 2), so a last label with digits,
# "-" or "_" is private: Docker's network names, for one.
_PRIVATE_TOP = re.compile(r"(?!xn--)[a-z]*[0-9_-][a-z0-9_-]*")
_HOST = re.compile(r"(?:\[([^\[\]]*)\]|([^:\[\]@/?#\\]*))(?::[0-9]*)?")

MOST_HOST_BYTES = 300
"""Limit for a Host header: a name has up to 253 characters, a port up to five."""

CONFIRMED = frozenset({b"same-origin", b"none"})
"""Values of `Sec-Fetch-Site` for requests that no other site caused (W3C Fetch Metadata)."""

FOREIGN = frozenset({b"cross-site", b"same-site"})  # same-site: another port or subdomain

_MARKS = frozenset({
    b"host", b"origin", b"sec-fetch-site", b"x-forwarded-host", b"x-forwarded-proto",
})  # fmt: skip
_MARK_LENGTHS = frozenset(map(len, _MARKS))

OPEN_PATHS = (b"/health", b"/metrics", b"/ui", *CONTROL_PATHS)
"""llmux's own paths that check access themselves, or need no check, with all paths below them."""

_OF_PAGES = frozenset({b"origin", b"referer"})
_OF_PAGES_PREFIXES = (b"sec-fetch-", b"access-control-request-")


class Marks(NamedTuple):
    """The headers that tell of the page behind a request; each field lists all values, in order."""

    hosts: list[bytes]
    origins: list[bytes]
    sites: list[bytes]
    forwarded_hosts: list[bytes]
    forwarded_protos: list[bytes]


class OwnSite:
    """Checks whether requests come from llmux's own site, or from an allowed page."""

    def __init__(self, config: Config) -> None:
        self._has_keys = bool(config.api_keys)
        self._proxies: TrustedProxies = config.proxies
        pages = config.cors_origins
        self._is_public = pages == "*"
        self._pages = frozenset(origin.encode() for origin in pages)
        self._takes_any_host = config.hosts == "*"
        # No page of another site can have a name that is in the certificate.
        of_certificate = () if config.tls is None else config.tls.pair.names
        hosts = [_normalized(name) for name in (*config.hosts, *of_certificate)]
        self._names = {_normalized(config.host), _normalized(socket.gethostname())}
        self._names |= {name for name in hosts if not name.startswith("*.")}
        self._suffixes = tuple(name[1:] for name in hosts if name.startswith("*."))
        self._is_own = lru_cache(maxsize=1024)(self._look_up)

    def vet(self, peer: str | None, headers: Headers) -> bool:
        """Refuse a request that a page of another site caused.

        Args:
            peer: Address of the connection; None on a Unix socket.
            headers: As received.

        Returns:
            True if an allowed page sent the request. A backend need not check that again, and would
            take the page for a foreign one.

        Raises:
            Forbidden: There are no keys, and the request comes from a page of another site, or
                names a host that such a page could have.
        """
        if self._names_host_only(headers):
            return False
        marks = _marks(headers)
        origin = marks.origins[0] if marks.origins else None
        is_shared = self._is_public or (
            origin in self._pages and marks.origins.count(origin) == len(marks.origins)
        )
        if is_shared:
            return origin is not None
        # A trusted proxy may replace Host by its own and forward the client's.
        is_trusted = bool(marks.forwarded_hosts or marks.forwarded_protos) and peer in self._proxies
        hosts = [*marks.hosts, *marks.forwarded_hosts] if is_trusted else marks.hosts
        if self._has_keys:  # refuses nothing, but tells whether the page is llmux's own
            return origin is not None and _is_same(origin, hosts)
        # A rebound name cannot pass TLS, since its owner has no certificate of llmux's.
        is_secure = is_trusted and set(marks.forwarded_protos) == {b"https"}
        if not is_secure:
            self._check_hosts(hosts)
        is_foreign = any(site.lower() in FOREIGN for site in marks.sites)
        if origin is None:  # programs, and GETs of pages: those have Sec-Fetch-Site
            if is_foreign:
                raise Forbidden(f"{ABOUT_PAGES}, and this request comes from one")
            return False
        is_confirmed = bool(marks.sites) and all(site.lower() in CONFIRMED for site in marks.sites)
        if is_foreign or not (is_confirmed or _are_same(marks.origins, hosts)):
            raise Forbidden(f"{ABOUT_PAGES}: {_advice(origin)}")
        return True

    def _names_host_only(self, headers: Headers) -> bool:
        """Return whether the only mark is one acceptable Host, as in nearly all requests."""
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
        """Return whether no page of another site can have this host.

        DNS rebinding points a name of the attacker's at llmux, so that takes a public name.
        """
        found = _HOST.fullmatch(host.decode("latin-1").strip().lower())
        if found is None:
            return False
        address, text = found.groups()
        if address is not None:
            return address_of(address) is not None
        name = _normalized(text)
        return (
            self._takes_any_host
            or "." not in text  # a name of this network: public DNS is not asked for it
            or address_of(name) is not None
            or name in self._names
            or name.endswith(self._suffixes)
            or _is_private(name)
        )


ABOUT_PAGES = "Without api_keys, llmux does not answer pages of other sites"


NO_NAME = b"null"
"""The origin of pages from files, and of any page in a sandboxed frame (WHATWG HTML, 7.1.1)."""


def _advice(origin: bytes) -> str:
    if origin == NO_NAME:
        return "this one has no origin to allow, so it takes api_keys, or cors_origins: '*'"
    return f"name {shown(origin.decode('latin-1'))!r} under cors_origins if it may use llmux"


def is_open_path(path: bytes) -> bool:
    """Return whether a raw path of llmux's own is exempt from this check."""
    return is_below(path, OPEN_PATHS)


def without_page(headers: Headers) -> list[tuple[bytes, bytes]]:
    """Remove the headers that tell of the page: a backend would refuse it as a foreign one.

    Servers check `Origin` (gin's CORS, as in Ollama, answers 403), some `Sec-Fetch-Site` first
    (Go's CrossOriginProtection), and some `Referer` if `Origin` is missing (Django). Headers of
    preflights go too, since llmux answers those.
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
    """Return whether an origin is one of these hosts, by http or https.

    Behind a proxy that terminates TLS, a page's https origin meets a request by http.
    """
    scheme, _, authority = origin.lower().partition(b"://")
    if scheme not in (b"http", b"https"):
        return False
    usual = b":443" if scheme == b"https" else b":80"
    return any(authority == host.strip().lower().removesuffix(usual) for host in hosts)


def _normalized(name: str) -> str:
    return name.lower().removesuffix(".")


def _is_private(name: str) -> bool:
    top = name.rpartition(".")[2]
    is_reserved = any(name == end or name.endswith("." + end) for end in PRIVATE_SUFFIXES)
    return is_reserved or _PRIVATE_TOP.fullmatch(top) is not None
