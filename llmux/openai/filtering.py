"""Request filters: put fields into the JSON body of a request, or remove them, before it is sent.

Only the bytes of the fields concerned change. All others stay as the client wrote them: numbers of
any size, repeated keys, white space.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from llmux.base.wildcards import Patterns, is_pattern, with_other_tag
from llmux.openai.jsoncheck import end_of_blanks
from llmux.openai.members import Member, read_members
from llmux.openai.scanning import Pause, no_pause

BYTE_ORDER_MARK = b"\xef\xbb\xbf"


class Rules(NamedTuple):
    """The filter keys of one section of the config.

    Attributes:
        set: Values for fields that the client has not given, by key; a mapping is for the fields of
            an object.
        force: Values that replace the client's, in the same form.
        drop: Paths of fields to remove, with dots between the keys.
    """

    set: Mapping[str, Any]
    force: Mapping[str, Any]
    drop: Iterable[str]

    def __bool__(self) -> bool:
        return bool(self.set or self.force or self.drop)


NO_RULES = Rules({}, {}, ())


class Splice(NamedTuple):
    """Replaces the bytes of a body between two offsets."""

    start: int
    stop: int
    text: bytes


@dataclass
class Edits:
    """Changes to one object.

    Attributes:
        dropped: Keys to remove, in lower case: Ollama ignores their case.
        forced: JSON to put in place of the client's, by key.
        defaults: JSON to put in if the client gives none, by key.
        inner: Changes within objects, by key.
    """

    dropped: set[str] = field(default_factory=set)
    forced: dict[str, bytes] = field(default_factory=dict)
    defaults: dict[str, bytes] = field(default_factory=dict)
    inner: dict[str, Edits] = field(default_factory=dict)

    def add(self, rules: Rules) -> None:
        """Add rules, which win against those from before."""
        for path in rules.drop:
            self.drop(path.split("."))
        self.put(rules.set, is_forced=False)
        self.put(rules.force, is_forced=True)

    def drop(self, path: list[str]) -> None:
        """Remove the field at a path from now on."""
        key, *rest = path
        if rest:
            self._within(key).drop(rest)
            return
        self._forget(key)
        self.dropped.add(key.casefold())

    def put(self, values: Mapping[str, Any], *, is_forced: bool) -> None:
        """Put in these values from now on; a mapping with keys is for the fields of an object."""
        for key, value in values.items():
            if isinstance(value, dict) and value:
                self._within(key).put(value, is_forced=is_forced)
            else:
                self._forget(key)
                (self.forced if is_forced else self.defaults)[key] = json.dumps(value).encode()

    def _within(self, key: str) -> Edits:
        self.forced.pop(key, None)
        self.defaults.pop(key, None)
        return self.inner.setdefault(key, Edits())

    def _forget(self, key: str) -> None:
        """Remove earlier values for a key; what was to be dropped still is."""
        for values in (self.forced, self.defaults, self.inner):
            values.pop(key, None)

    def made(self) -> bytes:
        """Return the object of all values, for a body that has none."""
        return b"{%b}" % b",".join(b"%b:%b" % pair for pair in self._all_pairs())

    @property
    def puts(self) -> bool:
        """True if there are values for a body that has no such object."""
        return next(self._all_pairs(), None) is not None

    @property
    def forces(self) -> bool:
        """True if there is a value that replaces the client's."""
        return bool(self.forced) or any(each.forces for each in self.inner.values())

    def _all_pairs(self) -> Iterator[tuple[bytes, bytes]]:
        for key, value in (self.forced | self.defaults).items():
            yield json.dumps(key).encode(), value
        for key, edits in self.inner.items():
            if edits.puts:
                yield json.dumps(key).encode(), edits.made()

    def splices(self, body: bytes, start: int, pause: Pause) -> Iterator[Splice]:
        """Yield the changes to the object whose brace is at `start`, in order of their offsets."""
        members = read_members(body, start, pause)
        removed = {*self.dropped, *(key.casefold() for key in self.forced)}
        gone = [each.key.casefold() in removed for each in members]
        within: dict[int, Edits] = {}
        for index, each in enumerate(members):
            edits = None if gone[index] else self._edits_of(each.key)
            if edits is None:
                continue
            if body[each.value : each.value + 1] == b"{":
                within[index] = edits
            elif edits.forces:  # a number, say, where there must be an object
                gone[index] = True
        present = {each.key for each, is_gone in zip(members, gone, strict=True) if not is_gone}
        if added := self._added(present):
            comma = b"," if present else b""
            yield Splice(start + 1, start + 1, b",".join(added) + comma)
        is_first = True
        for index, each in enumerate(members):
            if gone[index]:
                yield _removal(members, index, is_first=is_first)
            else:
                is_first = False
                if index in within:
                    yield from within[index].splices(body, each.value, pause)

    def _edits_of(self, key: str) -> Edits | None:
        if not self.inner:
            return None
        folded = key.casefold()
        return next((edits for k, edits in self.inner.items() if k.casefold() == folded), None)

    def _added(self, present: set[str]) -> list[bytes]:
        """Return the members to put in: before the client's, for of two equal keys the last counts.

        That matters for keys that differ in case only, which are equal for Ollama alone.
        """
        wanted = self.forced | {k: v for k, v in self.defaults.items() if k not in present}
        made = {k: each.made() for k, each in self.inner.items() if k not in present and each.puts}
        return [b"%b:%b" % (json.dumps(k).encode(), v) for k, v in (wanted | made).items()]


def _removal(members: list[Member], index: int, *, is_first: bool) -> Splice:
    """Return the splice that removes a member and one comma.

    `is_first`: no member before this one stays.
    """
    start, stop = members[index].start, members[index].stop
    if not is_first:
        return Splice(members[index - 1].stop, stop, b"")
    return Splice(start, members[index + 1].start if index + 1 < len(members) else stop, b"")


class Filter:
    """Changes the bodies of requests; made of rules of which later ones win."""

    def __init__(self, *rules: Rules) -> None:
        self._edits = Edits()
        for each in rules:
            self._edits.add(each)

    def apply(self, body: bytes, pause: Pause = no_pause) -> bytes:
        """Return a JSON body with the changes made; any other body, or an array, is returned as is.

        Raises:
            BadRequest: It is no JSON, or has too many members to look through.
        """
        start = len(BYTE_ORDER_MARK) if body.startswith(BYTE_ORDER_MARK) else 0
        start = end_of_blanks(body, start, pause)
        if body[start : start + 1] != b"{":
            return body
        pieces: list[bytes | memoryview] = []
        rest = memoryview(body)
        end = 0
        for splice in self._edits.splices(body, start, pause):
            pieces += (rest[end : splice.start], splice.text)
            end = splice.stop
        return b"".join([*pieces, rest[end:]]) if pieces else body


class Filters:
    """The filters of one model, by the name that a request uses.

    Args:
        own: The model's rules.
        by_alias: Rules of aliases, which win against the model's; an alias may be a pattern.
    """

    def __init__(self, own: Rules, by_alias: Mapping[str, Rules]) -> None:
        self._own = Filter(own) if own else None
        self._by_name = {
            name: Filter(own, rules) if rules else self._own for name, rules in by_alias.items()
        }
        wild = {name: name for name in by_alias if is_pattern(name)}
        self._patterns = Patterns(wild) if wild else None

    def find(self, name: str) -> Filter | None:
        """Return the filter of requests that name the model so; None if nothing is to change."""
        for each in (name, with_other_tag(name)):  # as in `Names.find`
            if each in self._by_name:
                return self._by_name[each]
        pattern = self._patterns.find(name) if self._patterns is not None else None
        return self._own if pattern is None else self._by_name[pattern]
