"""Relative links of the documents lead to files and headings that exist, as on GitHub."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
FOLDERS = ("bench", "deploy", "docs", "hooks")

LINK = re.compile(
    r'\]\(([^)\s]+)(?: "[^"]*")?\)|<(?:img|a)\b[^>]*? (?:src|href)="([^"]+)"|^\[[^\]]+\]: +(\S+)',
    re.MULTILINE,
)
"""The target of a link or image, of an HTML element, of a reference."""


def documents() -> list[Path]:
    below = (path for folder in FOLDERS for path in (ROOT / folder).rglob("*.md"))
    return sorted([*ROOT.glob("*.md"), *below])


def prose(text: str) -> str:
    """A document without its blocks of code."""
    return re.sub(r"^( *)(```|~~~).*?^\1\2 *$", "", text, flags=re.DOTALL | re.MULTILINE)


def anchors(text: str) -> Iterator[str]:
    """The anchors that GitHub gives to headings, and those that the text itself sets."""
    seen: Counter[str] = Counter()
    for heading in re.findall(r"^#{1,6} +(.+?)(?: +#+)?$", prose(text), re.MULTILINE):
        words = re.sub(r"\[([^\]]*)\]\([^)]*\)", r"\1", heading).lower()
        anchor = re.sub(r"[^\w\- ]", "", words).replace(" ", "-")
        yield f"{anchor}-{seen[anchor]}" if seen[anchor] else anchor
        seen[anchor] += 1
    yield from re.findall(r'<a (?:id|name)="([^"]+)"', text)


@cache
def anchors_of(path: Path) -> frozenset[str]:
    return frozenset(anchors(path.read_text()) if path.is_file() else ())


def links(text: str) -> list[str]:
    """The relative links of a document."""
    plain = re.sub(r"`[^`\n]*`", "", prose(text))
    found = (next(filter(None, match.groups())) for match in LINK.finditer(plain))
    return [link for link in found if not re.match(r"[a-z]+:|//", link)]


def dead_links(text: str, folder: Path, own: frozenset[str]) -> list[str]:
    dead = []
    for link in links(text):
        name, _, anchor = link.partition("#")
        target = folder / name
        known = own if not name else anchors_of(target) if target.suffix == ".md" else None
        if (name and not target.exists()) or (anchor and known is not None and anchor not in known):
            dead.append(link)
    return dead


@pytest.mark.parametrize("path", documents(), ids=lambda path: path.relative_to(ROOT).as_posix())
def test_links_lead_somewhere(path: Path) -> None:
    assert dead_links(path.read_text(), path.parent, anchors_of(path)) == []


def test_documents_of_all_folders_are_read() -> None:
    names = {path.relative_to(ROOT).as_posix() for path in documents()}
    assert {"README.md", "SECURITY.md", "docs/guarantees.md", "docs/inside/faults.md"} <= names
    assert sum(len(links(path.read_text())) for path in documents()) > 200


def test_dead_links_are_noticed(tmp_path: Path) -> None:
    (tmp_path / "b.md").write_text("# What's `so`?\n\n# One\n\n# One\n```\n# not this\n```\n")
    text = (
        "[a](b.md#whats-so) [b](b.md#one-1) [c](#own) [d](https://x/#y) `[e](gone.md)`\n"
        "[f](gone.md) [g](b.md#not-this) [h](#other) <img alt='' src=\"gone.svg\">\n\n[i]: gone.txt\n"
    )
    dead = ["gone.md", "b.md#not-this", "#other", "gone.svg", "gone.txt"]
    assert dead_links(text, tmp_path, frozenset({"own"})) == dead
