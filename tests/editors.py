"""What an editor makes of a config's first line."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

_MODELINE = re.compile(r"^#\s+yaml-language-server\s*:\s*\$schema=(\S+)$")
"""As yaml-language-server 1.25 reads it (`isModeline`)."""


def schema_of_modeline(line: str) -> dict[str, Any]:
    """Return the schema that a modeline names; raises AssertionError if there is none."""
    found = _MODELINE.match(line)
    assert found is not None, line
    url = urlsplit(found[1])
    assert (url.scheme, url.netloc, url.query, url.fragment) == ("file", "", "", "")
    schema: dict[str, Any] = json.loads(Path(unquote(url.path)).read_text())
    return schema
