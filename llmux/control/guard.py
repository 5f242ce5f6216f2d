"""Who may see and steer: a key where there are any, else programs of this machine."""

from __future__ import annotations

import ipaddress
from urllib.parse import urlsplit

from quart import request

from llmux.config import Config
from llmux.errors import Forbidden, InvalidKey
from llmux.keys import KeyRing
from llmux.names import shown

PROXIES = frozenset({"forwarded", "via", "x-real-ip"})
"""What a proxy adds, beside `X-Forwarded-...`."""

FOREIGN_SITES = frozenset({"cross-site", "same-site"})
"""Values of `Sec-Fetch-Site` (W3C Fetch Metadata): same-site is another port of this host."""


def metrics_keys(config: Config) -> KeyRing:
    """The keys that open the metrics; none: they are open."""
    rings = {"open": KeyRing(), "api_key": config.api_keys, "control_key": config.control_keys}
    return rings[config.metrics_access]


def check_key(ring: KeyRing) -> None:
    """Let those in who send one of these keys; everybody, if there are none.

    Raises:
        InvalidKey: The request that is being served carries none of them.
    """
    if ring and not ring.accepts(request.scope["headers"]):
        raise InvalidKey


def check_local(
    *,
    peer: tuple[str, int] | None,
    headers: dict[str, str],
    own_hosts: set[str],
    may_be_linked: bool = False,
) -> None:
    """Let only this machine's own programs steer: no proxied request, no foreign web page.

    The `Host` is checked too, since a page whose name was rebound to a loopback address is of
    the same origin as itself, and sends no `Origin` with a GET. For GETs of other sites there is
    `Sec-Fetch-Site`, which no page can forge.

    Args:
        peer: Who asks.
        headers: What was sent, by names in lower case.
        own_hosts: Names of this machine.
        may_be_linked: Whether people may come by a link from another site.

    Raises:
        Forbidden: The request comes from elsewhere.
    """
    if peer is None or not _is_loopback(peer[0]):
        raise Forbidden("The control API answers loopback peers only")
    if any(name in PROXIES or name.startswith("x-forwarded-") for name in headers):
        raise Forbidden("The control API does not answer proxied requests")
    host = headers.get("host", "")
    try:
        name = urlsplit(f"//{host}").hostname or ""
    except ValueError:
        name = ""
    if name != "localhost" and not _is_loopback(name) and name not in own_hosts:
        raise Forbidden(f"The control API does not answer for the host {shown(host)!r}")
    is_linked = may_be_linked and headers.get("sec-fetch-mode") == "navigate"
    if headers.get("sec-fetch-site") in FOREIGN_SITES and not is_linked:
        raise Forbidden("The control API does not answer pages of other sites")
    origin = headers.get("origin")
    if origin is not None and origin not in (f"http://{host}", f"https://{host}"):
        raise Forbidden(f"The control API does not answer pages of {shown(origin)}")


def _is_loopback(host: str) -> bool:
    try:
        address = ipaddress.ip_address(host)
    except ValueError:
        return False
    mapped = getattr(address, "ipv4_mapped", None)
    return bool((mapped or address).is_loopback)
