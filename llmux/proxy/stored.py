"""Which model has made what: responses, files, batches, threads and their kin, by their ids.

A request for such an object names no model: only the server that made it knows it. So the ids are
read off the answers. An id stands in the first bytes of a body or in the first event, which a
connection keeps anyway (`llmux.upstream.seen`), or at the end of a short one: nothing is looked at
while it is relayed. Only what a backend itself says counts: the ids at the top of its answer.
"""

from __future__ import annotations

import re
import zlib
from collections import OrderedDict
from collections.abc import Iterator
from urllib.parse import unquote_to_bytes

import msgspec

from llmux.http.chunks import without_chunk_heads
from llmux.http.paths import segments
from llmux.http.syntax import Headers
from llmux.openai.headers import header
from llmux.openai.streams import EVENT_STREAM, media_type

MOST_ID_BYTES = 256
"""A longer id is none: OpenAI's have about 50 bytes, vLLM's less."""

LOOK_BYTES = 16384
"""How much of an answer's end is looked at."""

INFLATED_BYTES = 4096
"""How much is made of a compressed beginning."""

_COLLECTIONS = (
    b"responses", b"chat/completions", b"conversations", b"files", b"uploads", b"batches",
    b"messages/batches", b"threads", b"assistants", b"vector_stores", b"fine_tuning/jobs", b"evals",
    b"containers", b"videos", b"skills",
)  # fmt: skip
"""Below `/v1/`: of OpenAI and Anthropic, and of what speaks like them."""

_NO_IDS = frozenset({b"runs", b"input_tokens", b"compact", b"alpha"})
"""What follows such a collection and is a verb, or one more collection."""

_IN_COLLECTION = re.compile(
    rb"/+(?:openai/+)?v1/+(?:%b)(?P<below>/[^?]*)?(?:\?.*)?"
    % b"|".join(each.replace(b"/", b"/+") for each in _COLLECTIONS),
    re.DOTALL,
)

_CHAT = b"/v1/chat/completions"


def id_of(target: bytes) -> str:
    """The id of the stored object that a path is about; empty if it is about none."""
    found = _IN_COLLECTION.fullmatch(target)
    parts = segments(found["below"] or b"") if found else []
    if not parts or parts[0] in _NO_IDS:
        return ""
    return unquote_to_bytes(parts[0]).decode("utf-8", "replace")


def makes_stored(method: bytes, target: bytes, *, stores: bool) -> bool:
    """Whether the answer to a request may have the id of something that can be asked for later.

    Args:
        method: The request's.
        target: Its path and query.
        stores: Whether its body says `"store": true`, without which no chat is stored.
    """
    if method != b"POST":
        return False
    if target == _CHAT:
        return stores
    found = _IN_COLLECTION.fullmatch(target)
    return found is not None and (stores or b"/chat/" not in target[: found.start("below")])


def tells_again(method: bytes, target: bytes) -> bool:
    """Whether an answer repeats an earlier one, so that its tokens were counted before.

    Args:
        method: The request's.
        target: Its path and query.
    """
    if method != b"POST":  # none of these APIs generates on another
        return True
    # To change or to cancel a response, a chat or a batch answers with the whole of it.
    return id_of(target) != "" and b"/threads/" not in target


class Stored:
    """A bounded memory: whoever was not asked for for the longest time is forgotten first.

    Attributes:
        most: How many ids it holds.
    """

    def __init__(self, most: int) -> None:
        self.most = most
        self._makers: OrderedDict[str, str] = OrderedDict()

    def __len__(self) -> int:
        return len(self._makers)

    def note(self, id: str, model: str) -> None:  # noqa: A002
        """A model has made this; an empty name is the fallback's.

        The first counts: some servers let clients choose an id, which must take it from nobody.
        """
        self._makers.setdefault(id, model)
        self._makers.move_to_end(id)
        while len(self._makers) > self.most:
            self._makers.popitem(last=False)

    def maker(self, id: str) -> str | None:  # noqa: A002
        """The model that has made this; None if nobody knows."""
        model = self._makers.get(id)
        if model is not None:
            self._makers.move_to_end(id)
        return model


# ---- Finding ids ----


class _Top(msgspec.Struct):
    id: object = None


_decode = msgspec.json.Decoder(_Top).decode

# A string, or what opens or closes something; all else of JSON is between them.
_TOKEN = re.compile(rb'"(?:[^"\\]|\\.)*+"|[{}\[\]]', re.DOTALL)
_VALUE = re.compile(rb'\s*:\s*("(?:[^"\\]|\\.)*+")', re.DOTALL)

_PLACES = frozenset({
    (b'"id"',), (b'"response"', b'"id"'), (b'"conversation"', b'"id"'),
    (b'"response"', b'"conversation"', b'"id"'),
})  # fmt: skip


def ids_of(headers: Headers, opening: bytes, ending: bytes, *, is_chunked: bool) -> list[str]:
    """The ids that an answer says its object has; of a response also its conversation's.

    Args:
        headers: Of the answer.
        opening: The beginning of its body, as it came over the wire.
        ending: The end of its body, as it came over the wire.
        is_chunked: Whether there is the framing of chunks in both.
    """
    ending = ending[-LOOK_BYTES:]
    if is_chunked:
        opening, ending = without_chunk_heads(opening), without_chunk_heads(ending)
    opening = _inflated(opening, header(headers, b"content-encoding").lower())
    kind = media_type(headers)
    if kind == EVENT_STREAM:
        events = (line[5:] for line in opening.splitlines() if line.startswith(b"data:"))
        found = next((list(_ids_in(event)) for event in events), [])
    elif b"json" in kind:
        found = list(_ids_in(opening)) or _ids_at_end(ending)
    else:
        return []
    return [each for each in found if 0 < len(each.encode()) <= MOST_ID_BYTES]


def _inflated(data: bytes, encoding: bytes) -> bytes:
    """The beginning of what is compressed; nothing if it is in a way that is not known here."""
    if encoding in {b"", b"identity"}:
        return data
    if encoding not in {b"gzip", b"x-gzip", b"deflate"}:
        return b""
    try:
        return zlib.decompressobj(wbits=47 if encoding != b"deflate" else 15).decompress(
            data, INFLATED_BYTES
        )
    except zlib.error:
        return b""


def _ids_in(data: bytes) -> Iterator[str]:
    """The ids at the known places of a JSON object, of which the end may be missing."""
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
            return  # no object


def _text(raw: bytes) -> str:
    try:
        return str(msgspec.json.decode(raw, type=str))
    except (msgspec.DecodeError, UnicodeDecodeError):
        return ""


def _ids_at_end(ending: bytes) -> list[str]:
    """The id of an object whose beginning may be missing: llama.cpp has it behind the text."""
    start = ending.rfind(b'"id"')
    for text in (ending, b"{" + ending[start:] if start >= 0 else b""):
        try:
            said = _decode(text)
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
            continue
        return [said.id] if isinstance(said.id, str) else []
    return []
