"""The members of a JSON object: keys, values and where they are, without decoding the values."""

from __future__ import annotations

from typing import NamedTuple

from llmux.openai.jsonbody import MAX_RAW_BYTES, text_of_string
from llmux.openai.jsoncheck import end_of_blanks, end_of_key, end_of_value, not_json
from llmux.openai.scanning import MATCHES_BETWEEN_PAUSES, MAX_MATCHES, Pause, too_many


class Member(NamedTuple):
    """A member of an object, as offsets in the body.

    Attributes:
        key: Its key; empty if that has more than `MAX_RAW_BYTES`.
        start: Offset of the key's first quote.
        value: Offset of the value.
        stop: Offset of the value's end.
    """

    key: str
    start: int
    value: int
    stop: int


def read_members(body: bytes, start: int, pause: Pause) -> list[Member]:
    """Return the members of the object whose brace is at `start`, repeated keys included.

    Raises:
        NotJson: It is no JSON object.
        BadRequest: It has more than `MAX_MATCHES` members, or the search would take too long.
    """
    found: list[Member] = []
    at = end_of_blanks(body, start + 1, pause)
    if body[at : at + 1] == b"}":
        return found
    while True:
        if len(found) == MAX_MATCHES:
            raise too_many(MAX_MATCHES)
        if len(found) % MATCHES_BETWEEN_PAUSES == MATCHES_BETWEEN_PAUSES - 1:
            pause()
        key_end, value = end_of_key(body, at, pause)
        key = text_of_string(body[at:key_end]) if key_end - at <= MAX_RAW_BYTES else ""
        stop = end_of_value(body, value, pause)
        found.append(Member(key, at, value, stop))
        after = end_of_blanks(body, stop, pause)
        following = body[after : after + 1]
        if following == b"}":
            return found
        if following != b",":
            raise not_json(body, after, "Expecting ',' or '}'")
        at = end_of_blanks(body, after + 1, pause)
