"""The live page at `/ui`: static files, the same for everybody, with strict headers."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import dataclass
from importlib.resources import files
from importlib.resources.abc import Traversable

from quart import Blueprint, Response, redirect, request
from werkzeug.exceptions import NotFound
from werkzeug.wrappers import Response as WerkzeugResponse

from llmux.api.guard import check_own_machine
from llmux.config import Config

CONTENT_TYPES = {
    ".css": "text/css; charset=utf-8",
    ".html": "text/html; charset=utf-8",
    ".js": "text/javascript; charset=utf-8",
    ".svg": "image/svg+xml",
}
"""Media types of the served files, by suffix; other files in the folder are not served."""

HEADERS = {
    # Nothing from other hosts, nothing inline, no framing; forms are handled by scripts.
    "Content-Security-Policy": (
        "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data:; "
        "connect-src 'self'; font-src 'self'; base-uri 'none'; form-action 'none'; "
        "frame-ancestors 'none'"
    ),
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cache-Control": "no-cache",  # revalidate each time, so that an upgrade shows at once
}

INDEX = "index.html"


def check_visitor(config: Config) -> None:
    """Admit everybody if there are keys, which the page asks for, else this machine only.

    Raises:
        Forbidden: The request that is being served comes from elsewhere.
    """
    if not config.answers_other_machines:
        check_own_machine(config, may_be_linked=True)


@dataclass(frozen=True)
class _File:
    content: bytes
    content_type: str
    tag: str


def page_routes(config: Callable[[], Config]) -> Blueprint:
    """Serve the page: to all if there are keys, which it asks for, else to this machine."""
    routes = Blueprint("page", __name__)
    served = dict(_read(files("llmux") / "ui"))

    @routes.before_request
    async def guard() -> None:
        check_visitor(config())

    @routes.get("/ui")
    async def add_slash() -> WerkzeugResponse:
        # Relative, so that it works behind a proxy's prefix.
        return redirect("ui/", 308)

    @routes.get("/ui/", defaults={"name": INDEX})
    @routes.get("/ui/<path:name>")
    async def show(name: str) -> Response:
        file = served.get(name)
        if file is None:
            raise NotFound
        answer = Response(file.content, content_type=file.content_type, headers=HEADERS)
        answer.set_etag(file.tag)
        return await answer.make_conditional(request)

    return routes


def _read(folder: Traversable, prefix: str = "") -> list[tuple[str, _File]]:
    """Return the files to serve below a folder, by path."""
    found: list[tuple[str, _File]] = []
    for entry in folder.iterdir():
        if entry.is_dir():
            found += _read(entry, f"{prefix}{entry.name}/")
        elif content_type := CONTENT_TYPES.get(entry.name[entry.name.rfind(".") :]):
            content = entry.read_bytes()
            tag = hashlib.sha256(content).hexdigest()[:16]
            found.append((prefix + entry.name, _File(content, content_type, tag)))
    return found
