"""Model names as clients send them: how long one may be, when two are the same, how it is shown."""

from __future__ import annotations

MAX_NAME_BYTES = 512
"""Longest name of a model, in UTF-8. Names such as `org/repo:tag` have less than 100."""

MAX_SHOWN = 256
"""Characters of a client's own text that come back in an answer, or go into a log line."""


def shown(text: str, most: int = MAX_SHOWN) -> str:
    """A client's text, short enough to be told to anybody.

    Args:
        text: As received, maybe megabytes of it.
        most: Characters that are kept; an ellipsis stands for the rest.
    """
    return text if len(text) <= most else text[:most] + "…"


def overlong(raw: bytes) -> str:
    """What stands for a raw name of more than `MAX_NAME_BYTES`.

    It begins as that does and has more bytes than a name may have, so no model is called so.
    """
    return raw[: MAX_NAME_BYTES + 1].decode("utf-8", "replace")


def folded(name: str) -> str:
    """The same for all spellings that a backend may take for one name.

    Ollama, which loads the models that bodies name, compares names without regard to case, and adds
    the tag `latest` where there is none.
    """
    return name.casefold().removesuffix(":latest")
