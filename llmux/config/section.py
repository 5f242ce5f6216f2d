"""Sections of the config: mappings of the file whose keys are known.

The types of a section's fields hold the whole truth about its keys. `load.py` walks them beside the
data; `schema.py` makes the JSON Schema and the documentation of them.
"""

from __future__ import annotations

import functools
import json
import re
from collections.abc import Iterator, Mapping
from typing import Annotated, Any, TypeVar

import msgspec

Keys = tuple[Any, ...]
"""Path of a value in the file: mapping keys and list indexes, outermost first."""

T = TypeVar("T")

MOST_TEXT = 500
"""Maximum length of a path, or of the text of one mistake, which may quote the file."""

NOT_A_KEY = "not a key of the file"
"""Marks a field that the loader fills in and the file must not name."""

NotAKey = Annotated[T, NOT_A_KEY]


class Section(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A mapping of the file whose keys are known.

    The lines under "Attributes:" of a subclass are the descriptions in its JSON Schema.
    """

    @staticmethod
    def conflicts(given: Mapping[Any, Any]) -> Iterator[tuple[Keys, str]]:  # noqa: ARG004
        """Check values against each other that may be right one by one.

        Args:
            given: The section as the file has it, so that a mistake in it hides no conflict.

        Yields:
            Path below this section, and message.
        """
        yield from ()


@functools.cache
def file_keys(section: type[Section]) -> dict[str, Any]:
    """Return the section's keys in the file, each with its type."""
    fields = msgspec.structs.fields(section)
    return {f.name: f.type for f in fields if NOT_A_KEY not in getattr(f.type, "__metadata__", ())}


def show_keys(keys: Keys) -> str:
    """Format a path as people write it: `models.llama.aliases[0]`, `models["a.b"].port`."""
    shown = ""
    for key in keys:
        if len(shown) > MOST_TEXT:
            break
        if isinstance(key, str) and re.fullmatch(r"[\w/-]+", key):
            shown += f".{key}" if shown else key
        else:
            quoted = json.dumps(key) if isinstance(key, str) else repr(key)
            shown += f"[{quoted}]"
    return shown if len(shown) <= MOST_TEXT else f"{shown[:MOST_TEXT]}..."
