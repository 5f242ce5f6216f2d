"""WebSockets whose handshake names no model: read it from the first message, without I/O.

llmux accepts such a WebSocket itself and reads the first message. Then it opens one to the backend
of the model named there, and forwards all that the client has sent so far.
"""

from __future__ import annotations

import base64
import hashlib
import json
import os
import secrets
from collections.abc import Collection, Iterator, Sequence
from typing import Any, NamedTuple

import msgspec

from llmux.base.wildcards import Names
from llmux.config.keys import PROTOCOLS, of_list
from llmux.errors import BadRequest, BodyTooLarge, NoModel
from llmux.http.paths import UPSTREAM, merged, own_path
from llmux.http.syntax import Headers
from llmux.http.wsframes import (
    CLOSE,
    CONTINUATION,
    MOST_CONTROL_BYTES,
    PING,
    PONG,
    TEXT,
    frame,
    masked,
)
from llmux.openai.fields import Fields
from llmux.openai.headers import header
from llmux.openai.jsonbody import names_inside
from llmux.openai.naming import find_model
from llmux.openai.scanning import no_pause

MOST_FIRST_BYTES = 1 << 20
"""Limit for the first message: parsing takes up to 0.25 s. Real ones have a few thousand bytes."""

MOST_HELD_BYTES = 2 * MOST_FIRST_BYTES
"""Limit for all frames held until the first message is complete; they may be many, and empty."""

MOST_FRAMES = 100_000
"""Limit for frames before there is a backend: each costs some microseconds, however small it is."""

SILENCE_S = 1.0
"""Seconds of silence after the handshake that show a client to wait for the server's greeting."""

REALTIME = b"realtime"
"""OpenAI's subprotocol."""

CREDENTIAL_PREFIX = b"openai-"
"""Start of values that are no subprotocols. Browsers cannot set headers on a WebSocket, so OpenAI's
API takes keys and the like in the list of subprotocols."""

GREETING = (
    b'{"type":"session.created","event_id":"event_llmux",'
    b'"session":{"id":"sess_llmux","object":"realtime.session"}}'
)
"""First message of a realtime server; some clients (vLLM's) name the model only in reply to it."""

_PLACES = (("model",), ("session", "model"), ("response", "model"), ("setup", "model"))
"""Paths to the model's name. OpenAI: session.update, session.start, response.create; vLLM: at the
top; Google: setup."""

_TRANSCRIPTION = (
    ("session", "audio", "input", "transcription", "model"),
    ("session", "input_audio_transcription", "model"),
)
"""Paths to it in a session that only transcribes; in others, to one beside the session's model."""

_STEPS = frozenset(step for place in (*_PLACES, *_TRANSCRIPTION) for step in place)

_TOO_DEEP = "The first message is nested too deeply"


def names_no_model(target: bytes, headers: Headers, fields: Fields, names: Collection[str]) -> bool:
    """Return whether the first message has to name the model, since the handshake does not."""
    path = target.partition(b"?")[0]
    if own_path(path) is not None or merged(path).startswith(UPSTREAM):
        return False
    try:
        find_model(target, headers, fields, names)
    except NoModel:
        return True
    return False


class FirstMessage:
    """The first message of a WebSocket, and the model that it names.

    Args:
        data: The message.
        names: All names that clients may use.

    Attributes:
        fields: The model's name, in the form that bodies have it.

    Raises:
        BadRequest: Not readable, or names two models.
    """

    def __init__(self, data: bytes, names: Names) -> None:
        content = _read(data)
        places = list(_find(content, _PLACES)) or list(_find(content, _TRANSCRIPTION))
        found = {name for _, name in places}
        if len(found) > 1:
            raise BadRequest("The first message names two models")
        self._written = name = next(iter(found), "")
        if names.find(name) is None:
            name = name.removeprefix("models/") or name  # Google's API
        self.fields = Fields(name, msgspec.json.encode, [])
        if not name:
            self.fields.elsewhere = names_inside(data, no_pause)
        # Keep bytes while it waits: the parsed message takes up to 25 times as many.
        self._data = data
        self._mark = secrets.token_hex()
        self._marked = _with_name(content, places, self._mark) if places else data

    def renamed(self, name: str) -> bytes:
        """Return the message with another name for the model; raises BadRequest.

        A message without a name, or with that name already, is returned as received: it may be
        audio.
        """
        if self._written in {"", name}:
            return self._data
        if self._marked is None:
            raise BadRequest(_TOO_DEEP)
        return self._marked.replace(b'"%b"' % self._mark.encode(), json.dumps(name).encode())


def _find(content: Any, places: Sequence[Sequence[str]]) -> Iterator[tuple[dict[str, Any], str]]:
    for *above, key in places:
        parent = content
        for step in above:
            parent = parent.get(step) if isinstance(parent, dict) else None
        name = parent.get(key) if isinstance(parent, dict) else None
        if isinstance(name, str) and name:
            yield parent, name


def _with_name(
    content: Any, places: Sequence[tuple[dict[str, Any], str]], name: str
) -> bytes | None:
    """Return the message with this name in all places; None if it is nested too deeply."""
    for parent, _ in places:
        parent["model"] = name
    try:
        # In ASCII: half of a character, written as an escape, is no UTF-8.
        return json.dumps(content).encode()
    except RecursionError:  # writing needs more stack than reading did
        return None


def _read(data: bytes) -> Any:
    """Parse a message; returns None for anything but a JSON object, which names no model."""
    text = data.removeprefix(b"\xef\xbb\xbf").strip()
    if not text.startswith(b"{"):
        return None
    try:
        return _loaded(text)
    except RecursionError:
        raise BadRequest(_TOO_DEEP) from None
    except ValueError as error:
        raise BadRequest(f"The first message is not JSON: {error}") from None


def _loaded(text: bytes) -> Any:
    try:
        return json.loads(text, object_pairs_hook=_without_duplicates)
    except (json.JSONDecodeError, UnicodeDecodeError):
        raise
    except ValueError:
        # Too many digits for an integer in Python. JavaScript reads them all as floats.
        return json.loads(text, object_pairs_hook=_without_duplicates, parse_int=float)


def _without_duplicates(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """Make an object; raises BadRequest if a key on the way to the model's name is repeated.

    Parsers differ on which of two equal keys counts, so the backend might read another model.
    """
    found = dict(pairs)
    if len(found) < len(pairs):
        for key, value in pairs:
            if key in _STEPS and value != found[key]:
                raise BadRequest("The first message names two models")
    return found


# ---- Subprotocols ----


def chosen_protocol(headers: Headers) -> bytes:
    """Return the subprotocol to accept of those that the client offers; empty for none."""
    offered = _offered(headers)
    if REALTIME in offered:
        return REALTIME
    return next((each for each in offered if not each.startswith(CREDENTIAL_PREFIX)), b"")


def missing_protocol(offer: Headers, answer: Headers) -> list[tuple[bytes, bytes]]:
    """Return the subprotocol header that a backend's handshake answer lacks; mostly nothing.

    Browsers fail a WebSocket if they offered subprotocols and none was chosen, and model servers
    choose none.

    Args:
        offer: The client's headers.
        answer: The backend's headers.
    """
    if header(answer, PROTOCOLS) or REALTIME not in _offered(offer):
        return []
    return [(b"Sec-WebSocket-Protocol", REALTIME)]


def opened_headers(headers: Headers) -> list[tuple[bytes, bytes]]:
    """Return the headers for the backend's handshake, once the client's was accepted.

    The backend must not choose otherwise: they offer only the subprotocol that the client got, and
    no extensions, since it got none.
    """
    protocol = chosen_protocol(headers)
    kept = [
        field
        for field in headers
        if field[0].lower() not in (PROTOCOLS, b"sec-websocket-extensions")
    ]
    offered = [
        each for each in _offered(headers) if each == protocol or each.startswith(CREDENTIAL_PREFIX)
    ]
    return [*kept, (b"Sec-WebSocket-Protocol", b", ".join(offered))] if offered else kept


def _offered(headers: Headers) -> list[bytes]:
    values = (value for name, value in headers if name.lower() == PROTOCOLS)
    return [each for value in values for each in of_list(value)]


# ---- The handshake and its frames (RFC 6455) ----


def check_handshake(method: bytes, headers: Headers) -> None:
    """Raise BadRequest unless this is a WebSocket handshake (section 4.2.1)."""
    try:
        key = base64.b64decode(header(headers, b"sec-websocket-key"), validate=True)
    except ValueError:
        key = b""
    version = header(headers, b"sec-websocket-version")
    if method != b"GET" or version != b"13" or len(key) != 16:
        raise BadRequest("Not a WebSocket handshake: RFC 6455, section 4.2.1")


def handshake_answer(headers: Headers) -> list[tuple[bytes, bytes]]:
    """Return the headers that accept a client's handshake (section 4.2.2)."""
    key = header(headers, b"sec-websocket-key") + b"258EAFA5-E914-47DA-95CA-C5AB0DC85B11"
    token = base64.b64encode(hashlib.sha1(key, usedforsecurity=False).digest())
    accepted = [
        (b"Connection", b"Upgrade"),
        (b"Upgrade", b"websocket"),
        (b"Sec-WebSocket-Accept", token),
    ]
    protocol = chosen_protocol(headers)
    return [*accepted, (b"Sec-WebSocket-Protocol", protocol)] if protocol else accepted


class Frame(NamedTuple):
    """A client's frame; `raw` is all of it as received."""

    opcode: int
    is_last: bool
    payload: bytes
    raw: bytes


class EarlyFrames:
    """The frames that a client sends before there is a backend; they are held for it.

    Attributes:
        message: The first message as far as received.
        is_whole: True once the first message is complete.
        has_closed: True once the client has closed the WebSocket.
    """

    def __init__(self) -> None:
        self.message = bytearray()
        self.is_whole = self.has_closed = False
        self._count = 0
        self._opcode = TEXT
        self._is_amid = False  # between two frames of one message
        self._first_bytes = 0  # length of the first message's frames, at the start of `_held`
        self._held = bytearray()  # complete data frames, for the backend
        self._rest = bytearray()  # an incomplete frame

    def feed(self, data: bytes) -> bytes:
        """Read received bytes; returns the frames to answer with: pongs, or a Close.

        Raises:
            BadRequest: Not frames of a client.
            BodyTooLarge: The first message is too large.
        """
        self._rest += data
        answer = b""
        while not self.has_closed and (each := self._next()) is not None:
            answer += self._take(each)
        # What follows the first message is bounded by its caller, which counts it like a body.
        if not self.is_whole and len(self._held) + len(self._rest) > MOST_HELD_BYTES:
            raise BodyTooLarge(MOST_FIRST_BYTES)
        return answer

    @property
    def has_begun(self) -> bool:
        """True if the client has sent any part of a message."""
        return bool(self._held or self._rest)

    def replace_first(self, message: bytes) -> None:
        """Replace the first message by another, in one frame."""
        new = frame(self._opcode, message, os.urandom(4))
        self._held[: self._first_bytes] = new
        self._first_bytes = len(new)

    def take(self) -> bytes:
        """Hand over the bytes for the backend, and keep none."""
        held = bytes(self._held + self._rest)
        self._held, self._rest = bytearray(), bytearray()
        return held

    def _take(self, each: Frame) -> bytes:
        self._count += 1
        if self._count > MOST_FRAMES:
            raise BadRequest(f"More than {MOST_FRAMES} frames before the model is awake")
        if each.opcode == PING:
            return frame(PONG, each.payload)
        if each.opcode == PONG:
            return b""
        if each.opcode == CLOSE:
            self.has_closed = True
            return frame(CLOSE, each.payload[:2])
        if self._is_amid != (each.opcode == CONTINUATION):
            raise BadRequest("A WebSocket message begins within another, or continues none")
        self._is_amid = not each.is_last
        self._held += each.raw
        if not self.is_whole:
            if len(self.message) + len(each.payload) > MOST_FIRST_BYTES:
                raise BodyTooLarge(MOST_FIRST_BYTES)
            self._opcode = each.opcode or self._opcode  # continuations have 0
            self.message += each.payload
            self._first_bytes += len(each.raw)
            self.is_whole = each.is_last
        return b""

    def _next(self) -> Frame | None:
        rest = self._rest
        if len(rest) < 2:
            return None
        opcode, length = rest[0] & 0x0F, rest[1] & 0x7F
        is_control = opcode >= CLOSE
        # Reserved bits belong to extensions, and none was accepted; clients must mask.
        if rest[0] & 0x70 or not rest[1] & 0x80 or opcode not in (0, 1, 2, 8, 9, 10):
            raise BadRequest("Not a WebSocket frame of a client, or one of an extension")
        if is_control and (length > MOST_CONTROL_BYTES or not rest[0] & 0x80):
            raise BadRequest("A WebSocket control frame is too long, or fragmented")
        start = 2 + {126: 2, 127: 8}.get(length, 0)
        if length > MOST_CONTROL_BYTES:
            length = int.from_bytes(rest[2:start], "big")
        end = start + 4 + length
        if len(rest) < end:
            return None
        raw = bytes(rest[:end])
        del rest[:end]
        payload = masked(raw[start + 4 :], raw[start : start + 4])
        return Frame(opcode, bool(raw[0] & 0x80), payload, raw)


# ---- Errors ----


def close_code(status: int) -> int:
    """Return the close code for an HTTP status (section 7.4.1, and IANA's registry)."""
    if status == 413:
        return 1009  # message too big
    if status in (429, 503, 504):
        return 1013  # try again later
    return 1008 if status < 500 else 1011  # policy violation; internal error


def error_message(answer: bytes) -> bytes:
    """Turn the JSON body of an error into an error event of the realtime API."""
    members = answer.removeprefix(b"{").removeprefix(b'"type":"error",')  # Anthropic's has it, too
    return b'{"type":"error",' + members


def close_payload(status: int) -> bytes:
    """Return the payload of a Close frame for an HTTP status."""
    return close_code(status).to_bytes(2, "big")
