"""Secrets of the config do not get into logs: what is told is looked through before."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterable

from llmux.config.keys import MASK

LEAST_CHARACTERS = 6
"""Shorter texts are no secrets, and would stand in every other line."""


class Masker:
    """Replaces the secrets that it was told of; without any it costs a comparison.

    Attributes:
        longest: Characters of the longest one, 0 without any.
    """

    def __init__(self) -> None:
        self.longest = 0
        self._latest: frozenset[str] = frozenset()
        self._pattern: re.Pattern[str] | None = None

    def use(self, values: Iterable[str]) -> None:
        """Mask these from now on, and those of the time before, which may still be told of."""
        latest = frozenset(
            form
            for value in values
            if len(value) >= LEAST_CHARACTERS
            # As they are, as JSON, and as Python shows them.
            for form in (value, json.dumps(value)[1:-1], repr(value)[1:-1])
        )
        # The longest first, for one may be the beginning of another.
        forms = sorted(latest | self._latest, key=len, reverse=True)
        self._latest = latest
        self.longest = len(forms[0]) if forms else 0
        self._pattern = re.compile("|".join(map(re.escape, forms))) if forms else None

    def mask(self, text: str) -> str:
        """The text without them."""
        return text if self._pattern is None else self._pattern.sub(MASK, text)

    def whole(self, text: str) -> int:
        """Return how many characters of an unfinished text may be shown without its rest.

        No secret lies across that place.
        """
        if self._pattern is None:
            return len(text)
        end = max(0, len(text) - self.longest + 1)
        for found in self._pattern.finditer(text):
            if found.end() > end:
                return min(end, found.start())
        return end

    def mask_end(self, text: str) -> str:
        """Mask the end of a text, which may begin in the middle of a secret.

        Half a secret cannot be recognized, so the longest possible half is dropped.
        """
        if self._pattern is None:
            return text
        start = self.longest - 1
        for found in self._pattern.finditer(text):
            if found.end() > start:
                start = min(start, found.start())
                break
        return self.mask(text[start:])


MASKER = Masker()
"""That of this process, whose log is one."""


def header_secrets(headers: Iterable[str]) -> Iterable[str]:
    """What is secret of headers' values: the whole, and without the scheme before a credential."""
    for value in headers:
        yield value
        _, blank, credential = value.partition(" ")
        if blank:
            yield credential.strip()


def variable_secrets(names: Iterable[str]) -> Iterable[str]:
    """What is secret of the environment: the whole of some variables, and each key in them."""
    for name in names:
        text = os.environ.get(name, "")
        yield text
        yield from re.split(r"[,\s]+", text)
