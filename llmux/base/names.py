"""Model names as clients send them: maximum length, equality, display."""

from __future__ import annotations

MAX_NAME_BYTES = 512
"""Maximum length of a model name in UTF-8. Names such as `org/repo:tag` have less than 100."""

MAX_SHOWN = 256
"""Maximum number of characters of a client's text in an answer or a log line."""


def shown(text: str, most: int = MAX_SHOWN) -> str:
    """Shorten a client's text for an answer or a log line.

    Args:
        text: Text as received, maybe megabytes of it.
        most: Number of characters to keep; an ellipsis stands for the rest.
    """
    return text if len(text) <= most else text[:most] + "…"


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
    return name.casefold().removesuffix(":latest")
