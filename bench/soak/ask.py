"""One request of a good client: its content, behaviour and outcome."""

from __future__ import annotations

import json
import math
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime

from bench.soak.backend.answers import plain_body, stream_events
from bench.soak.settings import CODES, KEY

Header = Callable[[str], str]
"""Looks up a header of an answer; empty if there is none."""


@dataclass
class Ask:
    """A request as its client makes it, and how that client behaves.

    Attributes:
        called: The model name that it uses: the name or an alias.
        wants: The only error code that llmux may answer with; empty for a valid request.
        leave_after_s: Time after which the client disconnects in any case.
        pace: Bytes that the client reads at a time, with pauses; 0 for no limit.
        is_slow_upload: The body is sent in pieces, with pauses.
        stalls: The client reads only the head of the response.
        version: HTTP version.
        closes: Send `Connection: close`.
        extra_crlf: Send an empty line after the body, as old clients do.
        half_closes: Close the sending side after the request.
        stops_after: Bytes of the body to send before going silent; -1 for all of it.
        chunked: Send the body in chunks.
        own_path: One of llmux's own paths to request, instead of a model.
    """

    id: str
    model: str
    called: str
    body_bytes: int
    size: int
    chunks: int
    gap_s: float
    work_s: float
    lie: str = ""
    wants: str = ""
    leave_after_s: float = math.inf
    leaves_by_reset: bool = False
    pace: int = 0
    is_slow_upload: bool = False
    stalls: bool = False
    version: str = "1.1"
    closes: bool = False
    extra_crlf: bool = False
    half_closes: bool = False
    stops_after: int = -1
    chunked: bool = False
    own_path: str = ""
    body: bytes = b""

    def make_body(self) -> bytes:
        """Return the request's body, which its id makes unique."""
        if self.own_path:
            return b""
        model = {"model": self.called} if self.wants != "no_model" else {}
        text = json.dumps({**model, "id": self.id, "stream": bool(self.chunks), "prompt": ""})
        if self.wants == "bad_request" and self.stops_after < 0:
            text = text[:-1] + ', "model": "other"}'
        filler = f"{self.id} " * (self.body_bytes // (len(self.id) + 1))
        return (text[:-1] + f', "filler": "{filler}"' + "}").encode()

    def expected(self) -> list[bytes]:
        """Return both right responses: to the body as sent, and with `upstream_model`."""
        as_called = json.dumps({"model": self.called})[:-1].encode()
        as_upstream = json.dumps({"model": upstream_name(self.model)})[:-1].encode()
        rewritten = self.body.replace(as_called, as_upstream, 1)
        return [self._answer_to(body) for body in (self.body, rewritten)]

    def _answer_to(self, received: bytes) -> bytes:
        checksum = zlib.crc32(received)
        if self.chunks:
            return b"".join(stream_events(self.model, self.id, checksum, self.chunks))
        body = plain_body(self.model, self.id, checksum, self.size)
        return body[:-20] if self.lie == "length too short" else body

    def headers(self) -> list[tuple[str, str]]:
        """Return the request's header fields, except those for framing."""
        authorization = ("Authorization", f"Bearer {KEY}")
        if self.own_path:
            return [authorization]
        soak = {name: getattr(self, name) for name in ("id", "size", "chunks", "gap_s", "work_s")}
        content_type = ("Content-Type", "application/json")
        return [authorization, content_type, ("x-soak", json.dumps(soak | {"lie": self.lie}))]

    @property
    def target(self) -> str:
        return self.own_path or "/v1/chat/completions"


def upstream_name(model: str) -> str:
    """Return the `upstream_model` that reloads give a model at times."""
    return f"upstream/{model}"


@dataclass
class Seen:
    """How a request ended.

    Attributes:
        outcome: ok, left, cut, lost, hang, wrong, unserved, or the code of llmux's error.
        status: Status code, if a status line came.
        model: Model name from the response.
        detail: More detail, for people.
        request_id: Request id from the response.
        kind: Kind of client: HTTP/1.1, HTTP/2 or WebSocket.
    """

    outcome: str
    status: int = 0
    model: str = ""
    detail: str = ""
    request_id: str = ""
    kind: str = "HTTP/1.1"
    ask: Ask | None = None
    begun_at: float = 0.0
    ended_at: float = 0.0


def seen_of(outcome: str, status: int, header: Header, detail: str = "") -> Seen:
    """Return the end of a request whose response has a head."""
    return Seen(outcome, status, header("x-llmux-model"), detail, header("x-llmux-request-id"))


def judge(ask: Ask, status: int, header: Header, body: bytes) -> Seen:
    """Judge a whole response: is it the right one?"""
    if ask.own_path:
        outcome = "ok" if status == 200 else "wrong"
        for code in ("too_many_connections", "queue_full"):  # for memory, that is
            if status in CODES[code] and f'"{code}"'.encode() in body:
                outcome = code
        return seen_of(outcome, status, header, f"{status} {body[:200]!r}")
    if status == (503 if ask.lie == "says 503" else 200) and body in ask.expected():
        right = not ask.wants and header("x-llmux-model") == ask.model
        return seen_of("ok" if right else "wrong", status, header, "" if right else "named wrongly")
    try:
        error = json.loads(body)["error"]
        code, message = error["code"], error["message"]
    except (ValueError, KeyError, TypeError):
        detail = f"{status}, {len(body)} bytes, not as expected: {body[:200]!r}"
        return seen_of("wrong", status, header, detail)
    if status not in CODES.get(code, ()) or error.get("type") != "llmux_error":
        return seen_of("wrong", status, header, f"{status} {code}: {message}")
    if code == "queue_full" and not header("retry-after").isdigit():
        return seen_of("wrong", status, header, "429 without Retry-After")
    return seen_of(code, status, header, message)


def describe(seen: Seen) -> str:
    """Format a request and its end, for people."""
    ask = seen.ask
    assert ask is not None
    about = {
        name: value
        for name, value in vars(ask).items()
        if value and name != "body" and value != math.inf and (name, value) != ("stops_after", -1)
    }
    begun = datetime.fromtimestamp(seen.begun_at).astimezone().isoformat()
    took = f"{seen.ended_at - seen.begun_at:.2f} s"
    what = f"{seen.kind} {seen.status} {seen.outcome} ({seen.detail}) {seen.request_id}"
    return f"{what} after {took} from {begun}: {about}"
