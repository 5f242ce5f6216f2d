"""Model names as clients send them: maximum length, equality, likeness, display."""

from __future__ import annotations

from collections.abc import Iterable
from functools import lru_cache
from heapq import nlargest
from itertools import pairwise

MAX_NAME_BYTES = 512
"""Maximum length of a model name in UTF-8. Names such as `org/repo:tag` have less than 100."""

LATEST = ":latest"
"""The tag of an Ollama model's name that may be left out."""

MAX_SHOWN = 256
"""Maximum number of characters of a client's text in an answer or a log line."""


def shown(text: str, most: int = MAX_SHOWN) -> str:
    """Shorten a client's text for an answer or a log line.

    Args:
        text: Text as received, maybe megabytes of it.
        most: Number of characters to keep; an ellipsis stands for the rest.
    """
    return text if len(text) <= most else text[:most] + "…"


COMPARED = 64
"""Maximum number of characters of a name that are compared with those of another."""


def nearest(name: str, known: Iterable[str], most: int) -> list[str]:
    """Return at most `most` known names, the likest first, by the share of common letter pairs.

    Names that contain this one, or are contained in it, come before all others.
    """
    wanted = name[:COMPARED].casefold()
    pairs = _pairs(wanted)

    def likeness(one: str) -> tuple[bool, float]:
        other, others = _folded_pairs(one)
        holds = bool(wanted) and (wanted in other or other in wanted)
        return holds, len(pairs & others) / (len(pairs) + len(others))

    return nlargest(most, sorted(known), key=likeness)


@lru_cache(maxsize=4096)  # of known names only, which stay
def _folded_pairs(name: str) -> tuple[str, frozenset[str]]:
    folded_name = name[:COMPARED].casefold()
    return folded_name, _pairs(folded_name)


def _pairs(text: str) -> frozenset[str]:
    """Return all pairs of neighbouring letters, with those at the ends; never an empty set."""
    return frozenset(map("".join, pairwise(f" {text} ")))


def overlong(raw: bytes) -> str:
    """Return a stand-in for a raw name of more than `MAX_NAME_BYTES`.

    It has the same beginning, and is still longer than a name may be, so no model has that name.
    """
    return raw[: MAX_NAME_BYTES + 1].decode("utf-8", "replace")


def folded(name: str) -> str:
    """Return a canonical form of all spellings that a backend may take for one name.

    Ollama, which loads the models that bodies name, compares names without regard to case, and adds
    the tag `latest` where there is none.
    """
    return name.casefold().removesuffix(LATEST)
