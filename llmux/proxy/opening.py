"""The beginning of a WebSocket whose first message names its model; pure functions and readers.

Its handshake names none, so llmux accepts it and looks at the first message; then the backend is
asked for a WebSocket of its own, and gets what the client has sent until then.
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
"""Of a first message: it is read in a quarter of a second at most. Sessions have a few thousand."""

MOST_HELD_BYTES = 2 * MOST_FIRST_BYTES
"""Of its frames, which may be many and empty."""

MOST_FRAMES = 100_000
"""Before there is a backend: each costs some microseconds, however small it is."""

SILENCE_S = 1.0
"""A client that says nothing for so long after the handshake waits for the server to speak."""

REALTIME = b"realtime"
"""OpenAI's subprotocol. Beside it, browsers send keys and the like as if they were some, too."""

NOT_SPOKEN = b"openai-"
"""What those begin with."""

GREETING = (
    b'{"type":"session.created","event_id":"event_llmux",'
    b'"session":{"id":"sess_llmux","object":"realtime.session"}}'
)
"""What servers of the realtime API say first; some clients name the model only then (vLLM's)."""

_PLACES = (("model",), ("session", "model"), ("response", "model"), ("setup", "model"))
"""OpenAI: session.update, session.start, response.create; vLLM: at the top; Google: setup."""

_TRANSCRIPTION = (
    ("session", "audio", "input", "transcription", "model"),
    ("session", "input_audio_transcription", "model"),
)
"""A session that does nothing but transcribe names its model here only."""


_STEPS = frozenset(step for place in (*_PLACES, *_TRANSCRIPTION) for step in place)

_TOO_DEEP = "The first message is nested too deeply"


def names_no_model(target: bytes, headers: Headers, fields: Fields, names: Collection[str]) -> bool:
    """Whether a handshake leaves it to the first message to name the model."""
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
        names: Every name that clients may use.

    Attributes:
        fields: What it names, as for a body.

    Raises:
        BadRequest: It cannot be read, or names two models.
    """

    def __init__(self, data: bytes, names: Names) -> None:
        content = _read(data)
        places = list(_find(content, _PLACES)) or list(_find(content, _TRANSCRIPTION))
        found = {name for _, name in places}
        if len(found) > 1:
            raise BadRequest("The first message names two models")
        self._written = name = next(iter(found), "")
        if names.find(name) is None:
            name = name.removeprefix("models/") or name  # so Google's API has it
        self.fields = Fields(name, msgspec.json.encode, [])
        if not name:
            self.fields.elsewhere = names_inside(data, no_pause)
        # Keep bytes while it waits: the parsed message takes up to 25 times as many.
        self._data = data
        self._mark = secrets.token_hex()
        self._marked = _with_name(content, places, self._mark) if places else data

    def renamed(self, name: str) -> bytes:
        """The message with another name for the model in it; raises BadRequest.

        One without a name, or with that one, is left as it is: it may be audio.
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
    """A message with this name in all places; None if it nests too deeply to be written."""
    for parent, _ in places:
        parent["model"] = name
    try:
        # In ASCII: half of a character, written as an escape, is no UTF-8.
        return json.dumps(content).encode()
    except RecursionError:  # there is less room for it than when it was read
        return None


def _read(data: bytes) -> Any:
    """What a message holds; what is no JSON object names nothing."""
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
        return json.loads(text, object_pairs_hook=_without_twins)
    except (json.JSONDecodeError, UnicodeDecodeError):
        raise
    except ValueError:
        # More digits than Python turns into an integer; JavaScript has floats only.
        return json.loads(text, object_pairs_hook=_without_twins, parse_int=float)


def _without_twins(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """An object; readers differ on which of two equal keys counts, so none may lead to a model."""
    found = dict(pairs)
    if len(found) < len(pairs):
        for key, value in pairs:
            if key in _STEPS and value != found[key]:
                raise BadRequest("The first message names two models")
    return found


# ---- Subprotocols ----


def spoken(headers: Headers) -> bytes:
    """The subprotocol that a client may be answered with; empty if it has offered none."""
    offered = _offered(headers)
    if REALTIME in offered:
        return REALTIME
    return next((each for each in offered if not each.startswith(NOT_SPOKEN)), b"")


def agreed_protocol(offer: Headers, answer: Headers) -> list[tuple[bytes, bytes]]:
    """A header for the answer to a handshake, where the backend's lacks it.

    Browsers give up a WebSocket for which they have offered subprotocols and none was chosen, and
    model servers know none.

    Args:
        offer: The client's headers.
        answer: The backend's.
    """
    if header(answer, PROTOCOLS) or REALTIME not in _offered(offer):
        return []
    return [(b"Sec-WebSocket-Protocol", REALTIME)]


def opened_headers(headers: Headers) -> list[tuple[bytes, bytes]]:
    """Headers for the backend's handshake, now that the client's is answered.

    They offer what was agreed with the client only, and no extensions: there are none.
    """
    protocol = spoken(headers)
    kept = [
        field
        for field in headers
        if field[0].lower() not in (PROTOCOLS, b"sec-websocket-extensions")
    ]
    agreed = [each for each in _offered(headers) if each == protocol or each.startswith(NOT_SPOKEN)]
    return [*kept, (b"Sec-WebSocket-Protocol", b", ".join(agreed))] if agreed else kept


def _offered(headers: Headers) -> list[bytes]:
    values = (value for name, value in headers if name.lower() == PROTOCOLS)
    return [each for value in values for each in of_list(value)]


# ---- The handshake and its frames (RFC 6455) ----


def check_handshake(method: bytes, headers: Headers) -> None:
    """Raise BadRequest if it is none (section 4.2.1)."""
    try:
        key = base64.b64decode(header(headers, b"sec-websocket-key"), validate=True)
    except ValueError:
        key = b""
    version = header(headers, b"sec-websocket-version")
    if method != b"GET" or version != b"13" or len(key) != 16:
        raise BadRequest("Not the handshake of a WebSocket: RFC 6455, section 4.2.1")


def handshake_answer(headers: Headers) -> list[tuple[bytes, bytes]]:
    """The headers that accept a client's handshake (section 4.2.2)."""
    key = header(headers, b"sec-websocket-key") + b"258EAFA5-E914-47DA-95CA-C5AB0DC85B11"
    token = base64.b64encode(hashlib.sha1(key, usedforsecurity=False).digest())
    accepted = [
        (b"Connection", b"Upgrade"),
        (b"Upgrade", b"websocket"),
        (b"Sec-WebSocket-Accept", token),
    ]
    protocol = spoken(headers)
    return [*accepted, (b"Sec-WebSocket-Protocol", protocol)] if protocol else accepted


class Frame(NamedTuple):
    """A frame of a client, and the bytes that it came as."""

    opcode: int
    is_last: bool
    payload: bytes
    raw: bytes


class EarlyFrames:
    """What a client sends before there is a backend for it, frame by frame.

    Attributes:
        message: What there is of the first message.
        is_whole: Whether that is all of it.
        has_closed: Whether the client has closed the WebSocket.
    """

    def __init__(self) -> None:
        self.message = bytearray()
        self.is_whole = self.has_closed = False
        self._count = 0
        self._opcode = TEXT
        self._is_amid = False  # a message in several frames
        self._first_bytes = 0  # of the frames of the first message
        self._held = bytearray()  # whole frames, for the backend
        self._rest = bytearray()  # the beginning of one

    def feed(self, data: bytes) -> bytes:
        """Take what was received; returns what the client gets for it: pongs, or a Close.

        Raises:
            BadRequest: These are no frames of a client.
            BodyTooLarge: The first message is too large.
        """
        self._rest += data
        answer = b""
        while not self.has_closed and (each := self._next()) is not None:
            answer += self._take(each)
        if not self.is_whole and len(self._held) + len(self._rest) > MOST_HELD_BYTES:
            raise BodyTooLarge(MOST_FIRST_BYTES)
        return answer

    @property
    def is_coming(self) -> bool:
        """Whether there is something of a message."""
        return bool(self._held or self._rest)

    def replace_first(self, message: bytes) -> None:
        """Have the backend get this in place of the first message."""
        new = frame(self._opcode, message, os.urandom(4))
        self._held[: self._first_bytes] = new
        self._first_bytes = len(new)

    def take(self) -> bytes:
        """All that is for the backend, as it came; nothing from then on."""
        held = bytes(self._held + self._rest)
        self._held, self._rest = bytearray(), bytearray()
        return held

    def _take(self, each: Frame) -> bytes:
        self._count += 1
        if self._count > MOST_FRAMES:
            raise BadRequest(f"More than {MOST_FRAMES} frames before the model is there")
        if each.opcode == PING:
            return frame(PONG, each.payload)
        if each.opcode == PONG:
            return b""
        if each.opcode == CLOSE:
            self.has_closed = True
            return frame(CLOSE, each.payload[:2])
        if self._is_amid != (each.opcode == CONTINUATION):
            raise BadRequest("A WebSocket's message begins amid another, or goes on without one")
        self._is_amid = not each.is_last
        self._held += each.raw
        if not self.is_whole:
            if len(self.message) + len(each.payload) > MOST_FIRST_BYTES:
                raise BodyTooLarge(MOST_FIRST_BYTES)
            self._opcode = each.opcode or self._opcode
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
        if rest[0] & 0x70 or not rest[1] & 0x80 or opcode not in (0, 1, 2, 8, 9, 10):
            raise BadRequest("Not a frame of a WebSocket's client, or of an extension")
        if is_control and (length > MOST_CONTROL_BYTES or not rest[0] & 0x80):
            raise BadRequest("A WebSocket's control frame is too long, or in pieces")
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


# ---- What a client hears of an error ----


def close_code(status: int) -> int:
    """The code of a Close frame for an HTTP status (section 7.4.1, and IANA's registry)."""
    if status == 413:
        return 1009
    if status in (429, 503, 504):
        return 1013  # try again later
    return 1008 if status < 500 else 1011


def error_message(answer: bytes) -> bytes:
    """The body of an error as an event of the realtime API."""
    said = answer.removeprefix(b"{").removeprefix(b'"type":"error",')  # as Anthropic's has it
    return b'{"type":"error",' + said


def close_payload(status: int) -> bytes:
    """What a Close frame holds for an HTTP status."""
    return close_code(status).to_bytes(2, "big")
