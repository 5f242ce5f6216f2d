"""Access to the control API: a control key, or without those any program of this machine.

A read key lets its client read only: what steers llmux, and what makes it run a hook, is refused.
"""

from __future__ import annotations

import re
import socket
from urllib.parse import urlsplit

from quart import request

from llmux.api.listeners import LISTENER, SOCKET
from llmux.base.names import shown
from llmux.config import Config
from llmux.config.keys import KeyRing
from llmux.errors import Forbidden, InvalidKey, ReadKey
from llmux.http.clients import NO_PROXIES, TrustedProxies, is_loopback

# Headers that proxies, load balancers and CDNs add, and programs of this machine do not send.
_OF_PROXIES = re.compile(
    r"forwarded(-.*)?|x-forwarded(-.*)?|x-original-.*|via|x-real-ip|x-client-ip|x-cluster-client-ip"
    r"|client-ip|true-client-ip|x-remote-(addr|ip)|x-proxyuser-ip|x-rewrite-url"
    r"|x-proxied-for|cf-.*|cdn-loop|fastly-.*|fly-client-ip|x-appengine-.*|x-azure-.*|x-envoy-.*"
    r"|x-amzn-trace-id|x-arr-.*|x-proxy-.*|x-nginx-.*"
)

READING = frozenset({"GET", "HEAD", "OPTIONS"})
"""Methods by which a client only reads, unless a route says otherwise."""

READS_ONLY = "x-llmux-access"
"""Header of the control API's answers to a read key, with the value `read`."""

FOREIGN_SITES = frozenset({"cross-site", "same-site"})
"""Values of `Sec-Fetch-Site` (W3C Fetch Metadata): same-site is another port of this host."""


def metrics_keys(config: Config) -> KeyRing:
    """Return the keys that open the metrics; an empty ring opens them to everybody."""
    if config.metrics_access == "control_key":
        return config.control_keys | config.read_keys
    return config.api_keys if config.metrics_access == "api_key" else KeyRing()


def check_key(ring: KeyRing) -> None:
    """Admit requests that carry one of these keys, or all requests if there are no keys.

    Raises:
        InvalidKey: The request that is being served carries none of them.
    """
    if ring and not ring.accepts(request.scope["headers"]):
        raise InvalidKey


def check_named(config: Config) -> None:
    """Admit the current request if it may learn which models there are.

    Raises:
        InvalidKey: There are `api_keys`, and it carries none of them, and no control or read key.
    """
    if config.api_keys:
        check_key(config.api_keys | config.control_keys | config.read_keys)


def reads_only(config: Config) -> bool:
    """Return whether the current request carries a read key, and none that controls."""
    headers = request.scope["headers"]
    return bool(config.read_keys.accepts(headers)) and not config.control_keys.accepts(headers)


def check_control(config: Config, *, steers: bool = True) -> None:
    """Admit the current request if it may control llmux.

    A request with a read key reads only, also from this machine: a proxy may have brought it.

    Args:
        config: The config in use.
        steers: False if the request only reads.

    Raises:
        ReadKey: It steers, and carries a read key.
        InvalidKey: It carries no key, and needs one.
        Forbidden: No key would do, and it does not come from a program of this machine.
    """
    if reads_only(config):
        if steers:
            raise ReadKey
    elif config.control_keys:
        check_key(config.control_keys)
    else:
        _check_without_control_keys(config, steers=steers)


def _check_without_control_keys(config: Config, *, steers: bool) -> None:
    try:
        check_own_machine(config)
    except Forbidden:
        if config.read_keys and not steers:  # with one of them it would be admitted
            raise InvalidKey from None
        raise


def check_own_machine(config: Config, *, may_be_linked: bool = False) -> None:
    """Admit the current request only if it comes from a program of this machine.

    llmux's own Unix socket is open to its user only, and no web page reaches it. On the control
    API's own TCP listener, `trusted_proxies` do not apply: only added headers reveal a proxy.

    Raises:
        Forbidden: It comes from elsewhere.
    """
    listener = request.scope.get(LISTENER)
    if listener == SOCKET:
        return
    own_hosts = {config.host, socket.gethostname()}
    if config.control is not None and config.control.host is not None:
        own_hosts.add(config.control.host)
    check_local(
        peer=request.scope.get("client"),
        headers={name.lower(): value for name, value in request.headers.items()},
        own_hosts=own_hosts,
        may_be_linked=may_be_linked,
        http_version=request.scope["http_version"],
        proxies=config.proxies if listener is None else NO_PROXIES,
    )


def check_local(
    *,
    peer: tuple[str, int] | None,
    headers: dict[str, str],
    own_hosts: set[str],
    may_be_linked: bool = False,
    http_version: str = "1.1",
    proxies: TrustedProxies = NO_PROXIES,
) -> None:
    """Admit programs of this machine only: no proxied request, no page of another site.

    `Host` is checked because of DNS rebinding: a page whose name was rebound to a loopback address
    sees llmux as its own origin, and sends no `Origin` with a GET. GETs of other sites are told by
    `Sec-Fetch-Site`, which no page can forge.

    Args:
        peer: Address and port of the connection.
        headers: As received, with names in lower case.
        own_hosts: Names of this machine.
        may_be_linked: True if people may follow a link here from another site.
        http_version: As ASGI has it. 1.0 is nginx's default towards its upstreams, and no program
            of this machine speaks it.
        proxies: Peers that forward others' requests, whatever headers they add.

    Raises:
        Forbidden: The request comes from elsewhere.
    """
    if peer is None or not is_loopback(peer[0]):
        raise Forbidden("The control API answers loopback peers only")
    if peer[0] in proxies:
        raise Forbidden("The control API does not answer trusted_proxies without a key")
    if any(map(_OF_PROXIES.fullmatch, headers)):
        raise Forbidden("The control API does not answer proxied requests")
    if http_version == "1.0":
        raise Forbidden("The control API does not answer HTTP/1.0, which proxies speak")
    host = headers.get("host", "")
    try:
        name = urlsplit(f"//{host}").hostname or ""
    except ValueError:
        name = ""
    if name != "localhost" and not is_loopback(name) and name not in own_hosts:
        raise Forbidden(f"The control API does not answer for the host {shown(host)!r}")
    is_linked = may_be_linked and headers.get("sec-fetch-mode") == "navigate"
    if headers.get("sec-fetch-site") in FOREIGN_SITES and not is_linked:
        raise Forbidden("The control API does not answer pages of other sites")
    origin = headers.get("origin")
    if origin is not None and origin not in (f"http://{host}", f"https://{host}"):
        raise Forbidden(f"The control API does not answer pages of {shown(origin)}")
