"""Sizes of memory as people write them: `80GiB`, `512MiB`, `4GB`, `1.5 GiB`."""

from __future__ import annotations

import re
from decimal import Decimal

MOST_BYTES = 1 << 60
"""Largest size."""

LEAST_LIKELY_BYTES = 1 << 20
"""A smaller number of bytes was probably meant in another unit."""

SIZE_PATTERN = r"^\s*[0-9]{1,15}(\.[0-9]{1,9})?\s*([kKmMgGtT][iI]?)?[bB]\s*$"
"""Regular expression of a size for the JSON Schema."""

_SIZE = re.compile(r"\s*([0-9]{1,15}(?:\.[0-9]{1,9})?)\s*([kmgt]?)(i?)b\s*", re.IGNORECASE)


def size_bytes(text: str) -> int:
    """Return the bytes of a size with a unit: of 1000 (kB, MB, GB, TB) or 1024 (KiB to TiB).

    Raises:
        ValueError: It is none.
    """
    found = _SIZE.fullmatch(text)
    if found is None or (found[3] and not found[2]):
        raise ValueError(
            f"expected a size such as 80GiB, 512MiB or 4GB, or a number of bytes, got {text!r}"
        )
    base = 1024 if found[3] else 1000
    return int(Decimal(found[1]) * base ** " kmgt".index(found[2].lower() or " "))


def size_text(size: int) -> str:
    """Return a size as people read it, with at most one decimal place: `80GiB`, `1.5GiB`."""
    amount, unit = float(size), "B"
    for larger in ("KiB", "MiB", "GiB", "TiB"):
        if amount < 1024:
            break
        amount, unit = amount / 1024, larger
    return f"{amount:.1f}".removesuffix(".0") + unit
