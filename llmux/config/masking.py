"""Keep secrets out of logs: replace them in every text before it is written."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterable

from llmux.config.keys import MASK

LEAST_CHARACTERS = 6
"""Shorter texts are no secrets, and would be masked in every other line."""


class Masker:
    """Replaces secrets in texts; without secrets it costs one comparison.

    Attributes:
        longest: Length of the longest secret in characters, 0 without any.
    """

    def __init__(self) -> None:
        self.longest = 0
        self._latest: frozenset[str] = frozenset()
        self._pattern: re.Pattern[str] | None = None

    def use(self, values: Iterable[str]) -> None:
        """Mask these from now on, and the previous ones: texts from before may still come."""
        latest = frozenset(
            form
            for value in values
            if len(value) >= LEAST_CHARACTERS
            # As is, in JSON, and in a Python repr.
            for form in (value, json.dumps(value)[1:-1], repr(value)[1:-1])
        )
        # The longest first, for one may be the beginning of another.
        forms = sorted(latest | self._latest, key=len, reverse=True)
        self._latest = latest
        self.longest = len(forms[0]) if forms else 0
        self._pattern = re.compile("|".join(map(re.escape, forms))) if forms else None

    def mask(self, text: str) -> str:
        """Return the text with secrets replaced."""
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
"""The masker of this process: it has one log, so there is one masker."""


def header_secrets(headers: Iterable[str]) -> Iterable[str]:
    """Yield the secrets in header values: the value, and the credential without its scheme."""
    for value in headers:
        yield value
        _, blank, credential = value.partition(" ")
        if blank:
            yield credential.strip()


def variable_secrets(names: Iterable[str]) -> Iterable[str]:
    """Yield the secrets in environment variables: the whole value, and each key in it."""
    for name in names:
        text = os.environ.get(name, "")
        yield text
        yield from re.split(r"[,\s]+", text)
