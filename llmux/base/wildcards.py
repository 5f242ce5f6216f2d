"""Patterns with asterisks, for names and paths. An asterisk stands for any text, also for none."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from itertools import combinations

from llmux.base.names import LATEST, MAX_NAME_BYTES

STAR = "*"


def is_pattern(text: str) -> bool:
    return STAR in text


def expression(pattern: str, *, within_segments: bool = False) -> str:
    """Return a regular expression for `fullmatch` and the flag DOTALL.

    Each piece between two asterisks is matched at its first place, in an atomic group: no other
    place leaves more room for the rest. So there is no backtracking over pieces, and a client
    cannot make matching slow.

    Args:
        pattern: Pattern with or without asterisks.
        within_segments: True if an asterisk matches no slash.
    """
    any_text = "[^/]*" if within_segments else ".*"
    first, *rest = map(re.escape, _pieces(pattern))
    if not rest:
        return first
    *middle, last = rest
    return first + "".join(f"(?>{any_text}?{piece})" for piece in middle) + any_text + last


def literals(pattern: str) -> int:
    """Count the characters of a pattern that stand for themselves."""
    return len(pattern) - pattern.count(STAR)


def overlap(one: str, other: str) -> bool:
    """Return whether some text matches both patterns."""
    first, second = _pieces(one), _pieces(other)
    if not (_agree(first[0], second[0]) and _agree(first[-1][::-1], second[-1][::-1])):
        return False
    one, other = STAR.join(first), STAR.join(second)
    # reached[j]: some text matches both the part of `one` walked so far and other[:j].
    reached = _past_stars([True] + [False] * len(other), other)
    for letter in one:
        if letter == STAR:
            after = list(reached)
            for j in range(len(other)):
                after[j + 1] = after[j + 1] or after[j]
        else:
            after = [False] * len(reached)
            for j, wanted in enumerate(other):
                if wanted == STAR:
                    after[j + 1] = after[j + 1] or reached[j + 1] or reached[j]
                    after[j] = after[j] or reached[j]
                elif wanted == letter:
                    after[j + 1] = after[j + 1] or reached[j]
        reached = _past_stars(after, other)
    return reached[-1]


def _past_stars(reached: list[bool], pattern: str) -> list[bool]:
    """Step over asterisks, which may stand for nothing."""
    for j, letter in enumerate(pattern):
        if letter == STAR and reached[j]:
            reached[j + 1] = True
    return reached


def _agree(one: str, other: str) -> bool:
    return one.startswith(other) or other.startswith(one)


def _pieces(pattern: str) -> list[str]:
    """Split at asterisks; several in a row count as one."""
    return re.sub(r"\*+", STAR, pattern).split(STAR)


class Patterns:
    """Looks up the owner of a name: that of the matching pattern with the most literal characters.

    Args:
        owners: Owner by pattern.
    """

    def __init__(self, owners: Mapping[str, str]) -> None:
        ordered = sorted(owners.items(), key=lambda each: literals(each[0]), reverse=True)
        self._whole = [
            (re.compile(expression(pattern), re.DOTALL), owner) for pattern, owner in ordered
        ]
        self._in_paths = [
            (pattern.count("/"), re.compile(expression(pattern, within_segments=True)), owner)
            for pattern, owner in ordered
        ]
        self.most_slashes = max((pattern.count("/") for pattern in owners), default=0)

    def find(self, name: str) -> str | None:
        """Return the owner of a name; None for a name that is too long."""
        if _is_overlong(name):
            return None
        return next((owner for found, owner in self._whole if found.fullmatch(name)), None)

    def find_in_path(self, name: str) -> str | None:
        """Return the owner of a name in a path, where an asterisk does not match a slash."""
        if not name or _is_overlong(name):
            return None
        slashes = name.count("/")
        return next(
            (
                owner
                for count, found, owner in self._in_paths
                if count == slashes and found.fullmatch(name)
            ),
            None,
        )


def _is_overlong(name: str) -> bool:
    return len(name.encode("utf-8", "surrogatepass")) > MAX_NAME_BYTES


class Names(dict[str, str]):
    """Model names by every name that clients may use: model names, aliases, and alias patterns.

    As a dict it has the exact names, which win against patterns.

    Args:
        names: Model name by name or pattern.
    """

    def __init__(self, names: Mapping[str, str]) -> None:
        super().__init__({name: model for name, model in names.items() if name == model})
        aliases = {name: model for name, model in names.items() if name != model}
        self.update({name: model for name, model in aliases.items() if not is_pattern(name)})
        wild = {name: model for name, model in aliases.items() if is_pattern(name)}
        self.patterns = Patterns(wild) if wild else None

    def find(self, name: str) -> str | None:
        """Return the model with a name or alias, or None.

        A name is the same with and without the tag `latest`, as for Ollama's clients, some of which
        add it.
        """
        model = self.get(name)
        if model is None:
            model = self.get(with_other_tag(name))
        if model is None and self.patterns is not None:
            return self.patterns.find(name)
        return model

    def known_as(self, name: str) -> str | None:
        """Return the name that the rest of a path stands for, or None.

        Surplus slashes are ignored, unless a name has them.
        """
        if name in self:
            return name
        bare = _bare(name)
        written = next((each for each in self if _bare(each) == bare), None)
        if written is not None:
            return written
        return bare if self.find(bare) is not None else None

    def find_as_rest(self, name: str) -> str | None:
        """Return the model that the rest of a path stands for, or None."""
        known = self.known_as(name)
        return None if known is None else self.find(known)


def with_other_tag(name: str) -> str:
    """Return a name without the tag `latest`, or with it if the name has no tag."""
    if name.endswith(LATEST):
        return name.removesuffix(LATEST)
    return name if ":" in name.rpartition("/")[2] else name + LATEST


def _bare(name: str) -> str:
    return re.sub("/{2,}", "/", name).strip("/")


def ambiguities(owners: Iterable[tuple[str, str]]) -> Iterator[tuple[str, str]]:
    """Yield pairs of patterns with different owners of which neither wins for some name.

    Args:
        owners: Pairs of pattern and owner.
    """
    by_length: dict[int, list[tuple[str, str]]] = {}
    for pattern, owner in owners:
        by_length.setdefault(literals(pattern), []).append((pattern, owner))
    for alike in by_length.values():
        for (one, owner), (other, another) in combinations(alike, 2):
            if owner != another and overlap(one, other):
                yield one, other
