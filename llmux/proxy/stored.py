"""Stored objects (responses, files, batches, threads, ...): which model made them, by their ids.

A request for such an object names no model, and only the server that made it knows it. So llmux
learns the ids from answers. An id is in the first bytes of a body or in its first event, or at the
end of a short body. Connections keep these bytes anyway (`llmux.upstream.seen`), so nothing is
searched while it is relayed. Only ids at the top level of an answer count: text that a model
generates must not claim any.
"""

from __future__ import annotations

import re
from collections import OrderedDict
from collections.abc import Iterator
from urllib.parse import unquote_to_bytes

import msgspec

from llmux.http.chunks import without_chunk_heads
from llmux.http.paths import segments
from llmux.http.syntax import Headers
from llmux.openai.headers import header
from llmux.openai.inflating import inflate_start
from llmux.openai.streams import EVENT_STREAM, event_data, media_type

MOST_ID_BYTES = 256
"""Limit for an id; longer ones are ignored. OpenAI's have about 50 bytes, vLLM's fewer."""

LOOK_BYTES = 16384
"""Bytes of an answer's end that are searched."""

INFLATED_BYTES = 4096
"""Limit for what is inflated of a compressed opening."""

_COLLECTIONS = (
    b"responses", b"chat/completions", b"conversations", b"files", b"uploads", b"batches",
    b"messages/batches", b"threads", b"assistants", b"vector_stores", b"fine_tuning/jobs", b"evals",
    b"containers", b"videos", b"skills",
)  # fmt: skip
"""Paths below `/v1/`, of OpenAI's and Anthropic's APIs."""

_NO_IDS = frozenset({b"runs", b"input_tokens", b"compact", b"alpha"})
"""Segments in the place of an id that are a verb, or another collection."""

_IN_COLLECTION = re.compile(
    rb"/+(?:openai/+)?v1/+(?:%b)(?P<below>/[^?]*)?(?:\?.*)?"
    % b"|".join(each.replace(b"/", b"/+") for each in _COLLECTIONS),
    re.DOTALL,
)

_CHAT = b"/v1/chat/completions"


def id_of(target: bytes) -> str:
    """Return the id of the stored object that a path names; empty if none."""
    found = _IN_COLLECTION.fullmatch(target)
    parts = segments(found["below"] or b"") if found else []
    if not parts or parts[0] in _NO_IDS:
        return ""
    return unquote_to_bytes(parts[0]).decode("utf-8", "replace")


def makes_stored(method: bytes, target: bytes, *, stores: bool) -> bool:
    """Return whether a request may create a stored object, whose id is in the answer.

    Args:
        method: Of the request.
        target: Its path and query.
        stores: True if its body says `"store": true`, without which no chat is stored.
    """
    if method != b"POST":
        return False
    if target == _CHAT:
        return stores
    found = _IN_COLLECTION.fullmatch(target)
    return found is not None and (stores or b"/chat/" not in target[: found.start("below")])


def repeats_answer(method: bytes, target: bytes) -> bool:
    """Return whether the answer repeats an earlier one, whose tokens were counted before.

    Args:
        method: Of the request.
        target: Its path and query.
    """
    if method != b"POST":  # none of these APIs generates with another method
        return True
    # A POST to a stored response, chat or batch (update, cancel) returns the whole object.
    return id_of(target) != "" and b"/threads/" not in target


class Stored:
    """The models that made stored objects, by id; the least recently used ids are forgotten.

    Attributes:
        most: Limit for the number of ids.
    """

    def __init__(self, most: int) -> None:
        self.most = most
        self._makers: OrderedDict[str, str] = OrderedDict()

    def __len__(self) -> int:
        return len(self._makers)

    def note(self, id: str, model: str) -> None:  # noqa: A002
        """Remember the model that made an object; an empty name stands for the fallback.

        The first maker stays: some servers let clients choose ids, and a chosen id must not take an
        object away from the model that has it.
        """
        self._makers.setdefault(id, model)
        self._makers.move_to_end(id)
        while len(self._makers) > self.most:
            self._makers.popitem(last=False)

    def maker(self, id: str) -> str | None:  # noqa: A002
        """Return the model that made an object; None if unknown."""
        model = self._makers.get(id)
        if model is not None:
            self._makers.move_to_end(id)
        return model


# ---- Finding ids ----


class _Top(msgspec.Struct):
    id: object = None


_decode = msgspec.json.Decoder(_Top).decode

# A string or a bracket; the rest of JSON can be skipped.
_TOKEN = re.compile(rb'"(?:[^"\\]|\\.)*+"|[{}\[\]]', re.DOTALL)
_VALUE = re.compile(rb'\s*:\s*("(?:[^"\\]|\\.)*+")', re.DOTALL)

_PLACES = frozenset({
    (b'"id"',), (b'"response"', b'"id"'), (b'"conversation"', b'"id"'),
    (b'"response"', b'"conversation"', b'"id"'),
})  # fmt: skip


def ids_of(headers: Headers, opening: bytes, ending: bytes, *, is_chunked: bool) -> list[str]:
    """Find the id of the object in an answer, and for a response also its conversation's.

    Args:
        headers: Of the answer.
        opening: The start of its body, as received.
        ending: The end of its body, as received.
        is_chunked: True if both contain the framing of chunks.
    """
    ending = ending[-LOOK_BYTES:]
    if is_chunked:
        opening, ending = without_chunk_heads(opening), without_chunk_heads(ending)
    coding = header(headers, b"content-encoding").lower()
    if coding not in {b"", b"identity"}:
        opening = inflate_start(opening, coding, INFLATED_BYTES)
    kind = media_type(headers)
    if kind == EVENT_STREAM:
        found = next((list(_ids_in(event)) for event in event_data(opening)), [])
    elif b"json" in kind:
        found = list(_ids_in(opening)) or _ids_at_end(ending)
    else:
        return []
    return [each for each in found if 0 < len(each.encode()) <= MOST_ID_BYTES]


def _ids_in(data: bytes) -> Iterator[str]:
    """Find the ids at `_PLACES` of a JSON object that may be cut off."""
    path: list[bytes] = []
    key = b""
    for found in _TOKEN.finditer(data):
        token = found[0]
        if token in {b"{", b"["}:
            path.append(key if token == b"{" else b"[")
            key = b""
        elif token in {b"}", b"]"}:
            if len(path) <= 1:
                return
            path.pop()
            key = b""
        elif path and path[-1] != b"[" and data[found.end() : found.end() + 8].lstrip()[:1] == b":":
            key = token
            if (*path[1:], key) in _PLACES and (value := _VALUE.match(data, found.end())):
                yield _text(value[1])
        elif not path:
            return  # not an object


def _text(raw: bytes) -> str:
    try:
        return str(msgspec.json.decode(raw, type=str))
    except (msgspec.DecodeError, UnicodeDecodeError):
        return ""


def _ids_at_end(ending: bytes) -> list[str]:
    """Find the id of an object whose start may be missing: llama.cpp puts it behind the text."""
    start = ending.rfind(b'"id"')
    for text in (ending, b"{" + ending[start:] if start >= 0 else b""):
        try:
            top = _decode(text)
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
            continue
        return [top.id] if isinstance(top.id, str) else []
    return []
