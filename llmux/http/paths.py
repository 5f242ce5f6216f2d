"""Paths: llmux's own, surplus slashes, passive paths that wake no model, and redirects.

Clients join a base URL and a path, and get `//v1/models`, `/v1//chat/completions` or `/v1/models/`.
The surplus slashes are ignored, as nginx (`merge_slashes`) and others do. Nothing here resolves dot
segments: `llmux.http.targets` refuses them.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from urllib.parse import SplitResult, unquote_to_bytes, urlsplit

from llmux.base.wildcards import expression
from llmux.http.syntax import Headers

UPSTREAM = b"/upstream/"

OWN_PATHS = frozenset({
    b"/v1/models", b"/models", b"/metrics", b"/health", b"/health/ready", b"/control", b"/ui",
    # Ollama's clients request these before they use a model.
    b"/api/tags", b"/api/ps", b"/api/version",
    # Tools for llama-swap request these.
    b"/running", b"/unload", b"/api/models/unload",
})  # fmt: skip
OWN_PREFIXES = (
    b"/v1/models/", b"/models/", b"/health/models/", b"/control/", b"/ui/", b"/api/models/unload/",
)  # fmt: skip

CONTROL_PATHS = (b"/control", b"/unload", b"/api/models/unload")
"""Paths for operators only, with all paths below them."""

ROOT = b"/"
ROOT_METHODS = frozenset({b"GET", b"HEAD"})
"""Methods for which the root is llmux's own: some servers generate on `POST /`."""

# The rest of these paths is a model's name, which may hold slashes.
_NAMED = re.compile(
    rb"(/+v1/+models|/+models|/+health/+models|/+control/+logs|/+api/+models/+unload)"
    rb"/(/*+[^/].*)",
    re.DOTALL,
)
_SLASHES = re.compile(rb"/{2,}")

API_PREFIXES = (b"/v1/", b"/api/")
"""Below these, a slash at the end of a path means nothing; elsewhere it may name a folder."""


def own_path(path: bytes, method: bytes = b"") -> bytes | None:
    """Return a path of llmux's own as its routes know it; None for a model's path.

    Args:
        path: Raw, no query.
        method: Of the request; the root is llmux's own for `ROOT_METHODS` only.
    """
    if b"//" not in path and path[-1:] != b"/":
        return path if path in OWN_PATHS or path.startswith(OWN_PREFIXES) else None
    if named := _NAMED.fullmatch(path):
        return merged(named[1]) + b"/" + named[2]
    whole = merged(path)
    bare = whole.rstrip(b"/")
    if bare == b"/ui":
        return whole  # with the slash it is the page, without it a redirect to the page
    if not bare:
        return ROOT if method in ROOT_METHODS else None
    return bare if bare in OWN_PATHS or bare.startswith(OWN_PREFIXES) else None


def merged(path: bytes) -> bytes:
    """Return a path with one slash in place of several."""
    return _SLASHES.sub(b"/", path) if b"//" in path else path


def tidy(target: bytes) -> bytes:
    """Return path and query as forwarded, without surplus slashes.

    Args:
        target: Raw path and query; nearly always returned unchanged.
    """
    if b"//" not in target and b"/?" not in target and target[-1:] != b"/":
        return target
    path, mark, query = target.partition(b"?")
    path = merged(path)
    if path.startswith(API_PREFIXES):
        path = path.rstrip(b"/")
    return path + mark + query


def is_below(path: bytes, tops: Iterable[bytes]) -> bool:
    """Return whether a path is one of others, or below one."""
    return any(path == top or path.startswith(top + b"/") for top in tops)


def segments(path: bytes) -> list[bytes]:
    """Return the parts of a path that are not empty."""
    return [part for part in path.split(b"/") if part]


# ---- Passive ----

DEFAULTS = "defaults"
"""Entry in a list of passive paths that stands for all default ones."""

PASSIVE = (
    (
        "Monitoring polls every few seconds for ever, so the model would never be idle",
        ("/metrics", "/load"),  # vLLM, SGLang, llama.cpp, TGI; vLLM
    ),
    (
        "Uptime probes: a sleeping model is an answer, not a failure",
        ("/health", "/healthz", "/health_generate", "/ping", "/readyz", "/livez"),
    ),
    (
        "Editors and dashboards request it for every model in turn, and would load them all",
        (
            # llama.cpp (what is below /slots acts on one); llmux's own, below /upstream/NAME; TGI;
            # SGLang; vLLM; Ollama.
            "/props", "/slots",
            "/v1/models", "/v1/models/*", "/models", "/models/*",
            "/info",
            "/model_info", "/get_model_info", "/server_info", "/get_server_info",
            "/tokenizer_info",
            "/api/show", "/api/ps", "/api/tags",
        ),
    ),
    (
        "Names the server program: no reason to load 20 GB",
        ("/version", "/v1/version", "/api/version"),
    ),
    (
        "Counts tokens while a prompt is being typed; sending the prompt wakes the model anyway",
        (
            "/tokenize", "/detokenize", "/v1/tokenize", "/v1/detokenize", "/apply-template",
            "/v1/messages/count_tokens", "/v1/responses/input_tokens", "/api/extra/tokencount",
        ),
    ),
    ("Browsers request it by themselves", ("/favicon.ico", "/robots.txt")),
)  # fmt: skip
"""Default of `passive`, grouped by reason."""

MOST_KEPT, MOST_KEPT_BYTES = 256, 64
"""Limits for the cache of decisions: number of targets, and bytes of one."""

PASSIVE_PATHS = tuple(path for _, paths in PASSIVE for path in paths)


class PassivePaths:
    """Paths that look at a model and must not wake it.

    Args:
        patterns: Paths; an asterisk stands for any text.
    """

    def __init__(self, patterns: Iterable[str]) -> None:
        given = tuple(patterns)
        every = [each for each in given if each != DEFAULTS]
        if DEFAULTS in given:
            every += PASSIVE_PATHS
        plain = [each for each in every if "*" not in each]
        wild = [expression(each) for each in every if "*" in each]
        self._plain = frozenset(_known_as(each.encode()) for each in plain)
        self._wild = re.compile("|".join(wild).encode(), re.DOTALL) if wild else None
        self._looked_up: dict[bytes, bool] = {}

    def has(self, target: bytes) -> bool:
        """Return whether a path matches, with any number of slashes, in any case.

        Args:
            target: Raw path and query, as forwarded.
        """
        found = self._looked_up.get(target)
        if found is None:
            found = self._has(target.partition(b"?")[0])
            # A model's clients use a handful of paths. The bounds keep others from filling memory.
            if len(target) <= MOST_KEPT_BYTES and len(self._looked_up) < MOST_KEPT:
                self._looked_up[target] = found
        return found

    def _has(self, path: bytes) -> bool:
        if path in self._plain:
            return True
        if b"%" in path or b"//" in path or path[-1:] == b"/":
            path = merged(unquote_to_bytes(path))
            if _known_as(path) in self._plain:
                return True
        return self._wild is not None and self._wild.fullmatch(path) is not None


def _known_as(path: bytes) -> bytes:
    return merged(path).rstrip(b"/") or ROOT


# ---- Redirects ----


_LOCATIONS = frozenset({b"location", b"content-location"})
_OWN_MACHINE = frozenset({"localhost", "127.0.0.1", "::1", "0.0.0.0"})  # noqa: S104 - compared only
_PORTS = {"http": 80, "https": 443}


def may_redirect(status: int) -> bool:
    """Return whether a response with this status may have a Location (RFC 9110, section 10.2.2)."""
    return 300 <= status < 400 or status in {201, 202}


class Whereabouts:
    """Translates a backend's URLs (Location) to those that its client can reach through llmux.

    Args:
        base_url: Of the backend.
        asked: Raw path that the client requested.
        below: Start of that path that stands for the backend's root; empty if none does.
        own_host: The client's Host header. Some backends use it in URLs, since it is forwarded.
    """

    def __init__(self, base_url: str, *, asked: bytes, below: bytes, own_host: bytes) -> None:
        base = urlsplit("http://localhost" if base_url.startswith("unix:") else base_url)
        self._host = base.hostname or ""
        self._scheme = base.scheme.lower()
        self._port = base.port or _PORTS.get(self._scheme)
        self._prefix = base.path.rstrip("/")
        self._own_host = own_host.decode("latin-1").lower()
        self._asked = asked
        self._below = below

    def applied(self, headers: Headers) -> list[tuple[bytes, bytes]]:
        """Return an answer's headers with all locations of the backend translated."""
        return [
            (name, self._here(value) if name.lower() in _LOCATIONS else value)
            for name, value in headers
        ]

    def _here(self, value: bytes) -> bytes:
        """Return a location as the client can reach it; unchanged if it is not the backend's."""
        try:
            there = urlsplit(value.decode("latin-1").strip())
            path = self._path_at_backend(there)
        except ValueError:
            return value
        if path is None:
            return value
        query = f"?{there.query}" * bool(there.query)
        fragment = f"#{there.fragment}" * bool(there.fragment)
        return relative(self._asked, self._below + f"{path}{query}{fragment}".encode("latin-1"))

    def _path_at_backend(self, there: SplitResult) -> str | None:
        """Return the path below the backend's URL; None if elsewhere, or right as it is."""
        path = there.path or "/"
        if there.netloc:
            is_here = there.netloc.lower() == self._own_host
            below = self._below.decode("latin-1")
            if is_here and (not below or path.startswith(f"{below}/")):
                return None
            if not is_here and not self._is_backend(there):
                return None
        elif there.scheme or not there.path.startswith("/") or not (self._below or self._prefix):
            return None  # relative to the requested path, which is the same here
        if self._prefix and path != self._prefix and not path.startswith(f"{self._prefix}/"):
            return None
        return path.removeprefix(self._prefix) or "/"

    def _is_backend(self, there: SplitResult) -> bool:
        """Return whether an absolute URL is the backend's; raises ValueError for a bad port."""
        scheme = there.scheme.lower() or self._scheme
        host = (there.hostname or "").rstrip(".")
        if scheme not in _PORTS:
            return False
        is_host = host == self._host or {host, self._host} <= _OWN_MACHINE
        return is_host and (there.port or _PORTS.get(scheme)) == self._port


def relative(asked: bytes, target: bytes) -> bytes:
    """Return a target relative to the requested path, which holds behind a proxy's prefix, too.

    Args:
        asked: Raw path, without a query.
        target: Path, maybe with a query, that begins with a slash.
    """
    return (b"../" * (asked.count(b"/") - 1) or b"./") + target.removeprefix(b"/")
