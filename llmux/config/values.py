"""Values of the config: their types, and checks of single values.

A type says all about its value that can be said without looking elsewhere: msgspec's `Meta` holds
bounds, for the JSON Schema too, and a function beside it is a check that raises ValueError.
"""

from __future__ import annotations

import ipaddress
import os
import re
from typing import Annotated, Any
from urllib.parse import urlsplit

from msgspec import Meta

from llmux.base.names import MAX_NAME_BYTES
from llmux.base.wildcards import is_pattern, literals
from llmux.config.keys import KeyRing
from llmux.config.sizes import MOST_BYTES, SIZE_PATTERN
from llmux.http.paths import DEFAULTS
from llmux.http.socketpath import is_socket_url, meant_socket, socket_path


def check_not_blank(text: str) -> None:
    """Raise ValueError for a text of spaces only."""
    if not text.strip():
        raise ValueError("must not be blank")


def _check_name(text: str) -> None:
    """Check a name, which ends in headers, environment variables and log lines."""
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
    """Accept what a browser can send: no slash at the end, no default port (RFC 6454)."""
    found = _ORIGIN.fullmatch(origin)
    if found and found[2] != _DEFAULT_PORTS.get(found[1], ""):
        return
    hint = " (for all origins: cors_origins: '*')" if origin == "*" else ""
    raise ValueError(f"expected an origin such as https://example.org, got {origin!r}{hint}")


def _check_own_host(name: str) -> None:
    """Accept a host name, or `*.` and one; no port, for a site has its name on all ports."""
    if not (_HOST_NAME.fullmatch(name.removeprefix("*.")) or _is_address(name)):
        hint = " (for all hosts: hosts: '*')" if name == "*" else ""
        expected = "a host name such as llm.example.org or *.example.org, without a port"
        raise ValueError(f"expected {expected}, got {name!r}{hint}")


_RESERVED_HEADERS = frozenset({
    "connection", "content-length", "host", "keep-alive", "proxy-authenticate",
    "proxy-authorization", "proxy-connection", "te", "trailer", "transfer-encoding", "upgrade",
})  # fmt: skip
"""Hop-by-hop fields (RFC 9110 section 7.6.1) and fields that follow from the request itself."""


def _check_header_name(name: str) -> None:
    if not re.fullmatch(r"[!#$%&'*+.^_`|~0-9A-Za-z-]+", name):  # token, RFC 9110 section 5.6.2
        raise ValueError("not a legal header name")
    if name.lower() in _RESERVED_HEADERS:
        raise ValueError("this header is llmux's to set")


def _check_header_value(value: str) -> None:
    if re.search(r"[\x00-\x08\x0a-\x1f\x7f]", value):
        raise ValueError("must not hold line breaks or control characters")


def _check_proxy(text: str) -> None:
    """Accept an address, a network without host bits, or `unix`."""
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


MAX_SOCKET_PATH_BYTES = 103
"""Longest path that every system takes. unix(7): 108 with a NUL at the end; macOS has 104."""


def _check_socket(text: str) -> None:
    check_not_blank(text)
    if len(os.fsencode(text)) > MAX_SOCKET_PATH_BYTES:
        raise ValueError(f"a socket's path has {MAX_SOCKET_PATH_BYTES} bytes at most")


def _check_passive(text: str) -> None:
    """Accept a path, with or without asterisks, or the word for the default paths."""
    if text == DEFAULTS:
        return
    if not text.startswith("/"):
        raise ValueError(f"expected a path that begins with '/', or {DEFAULTS!r}, got {text!r}")
    if not re.fullmatch(r"[!-~]+", text) or re.search(r"[?#\\]", text):
        raise ValueError("expected a path alone, of ASCII without spaces, '?', '#' and '\\'")


def _check_alias(alias: str) -> None:
    """Demand one spelling, '*', of the alias that matches every name."""
    if is_pattern(alias) and not literals(alias) and alias != "*":
        raise ValueError("write '*' for every name")


def _check_field_path(text: str) -> None:
    """Accept the path of a field in a JSON body, with dots between its keys."""
    if not all(key.strip() for key in text.split(".")):
        raise ValueError("expected the name of a field, or a path such as options.num_ctx")


def port_range(text: str) -> range:
    """Return the ports of a text such as 29000-29999.

    Raises:
        ValueError: It is no range of ports.
    """
    found = re.fullmatch(r"\s*([0-9]{1,5})\s*-\s*([0-9]{1,5})\s*", text)
    first, last = map(int, found.groups()) if found else (0, 0)
    if not 0 < first <= last <= 65535:
        raise ValueError(f"expected a range of ports such as 29000-29999, got {text!r}")
    return range(first, last + 1)


def _check_port_range(text: str) -> None:
    port_range(text)


IN_BYTES = "a size, in bytes or with a unit"
"""Marks an integer that may be written as 80GiB."""

A_SHARE = "a share of 1"
"""Marks a number that is no duration, as all others with a fraction are."""


def _check_resource(name: str) -> None:
    """Refuse names that begin as those of llmux's own resources do (`llmux.switching.memory`)."""
    if name.startswith("#"):
        raise ValueError("must not begin with '#'")


def check_some(models: dict[str, Any]) -> None:
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
FieldPath = Annotated[str, _check_field_path, _VISIBLE]
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
PortRange = Annotated[
    str,
    _check_port_range,
    Meta(extra_json_schema={"pattern": r"^\s*[0-9]{1,5}\s*-\s*[0-9]{1,5}\s*$"}),
]
PositiveInt = Annotated[int, Meta(gt=0)]
_SIZE_SHAPE = {"type": ["integer", "string"], "pattern": SIZE_PATTERN}
ByteSize = Annotated[int, IN_BYTES, Meta(ge=0, le=MOST_BYTES, extra_json_schema=_SIZE_SHAPE)]
PositiveSize = Annotated[int, IN_BYTES, Meta(ge=1, le=MOST_BYTES, extra_json_schema=_SIZE_SHAPE)]
Share = Annotated[float, A_SHARE, Meta(ge=0, le=1)]
Resource = Annotated[
    Name,
    _check_resource,
    Meta(extra_json_schema={"pattern": r"^[^#]*\S", "maxLength": MAX_NAME_BYTES}),
]
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
