"""Findings: their severity, their order, and their text."""

from __future__ import annotations

import textwrap
from collections.abc import Iterable, Iterator
from typing import Literal

import msgspec

from llmux.cli.terminal.failures import shown

Severity = Literal["problem", "warning", "note", "ok"]

ORDER: tuple[Severity, ...] = ("problem", "warning", "note", "ok")

INDENT = " " * 9

LONGEST_WHY = 500
"""Characters of a reason that are printed: the last lines of a hook may be many."""

BEGINNING = 100
"""Of these, characters from the beginning; the cause stands in the last lines of a hook."""


class Finding(msgspec.Struct, frozen=True):
    """One thing that was looked at.

    Attributes:
        severity: problem: requests fail or hang for it; warning: they may; note: worth knowing; ok.
        about: What was looked at: config, hooks, ports, ...
        what: What is so, in one line.
        why: What it does, or where it comes from.
        do: The remedy, as a command where there is one.
    """

    severity: Severity
    about: str
    what: str
    why: str = ""
    do: str = ""


class Report(msgspec.Struct, frozen=True):
    """All findings, for programs.

    Attributes:
        version: The version of llmux that has looked.
        url: Where it looked for a running llmux; null: unknown.
        config: The config file; null: there is none.
        problems: Number of problems.
        warnings: Number of warnings.
        findings: The findings, the worst first.
    """

    version: str
    url: str | None
    config: str | None
    problems: int
    warnings: int
    findings: list[Finding]


def ordered(findings: Iterable[Finding]) -> list[Finding]:
    """Return the findings, the worst first, otherwise in their order."""
    return sorted(findings, key=lambda each: ORDER.index(each.severity))


def number(count: int, noun: str) -> str:
    """Return a number of things in words: `1 request`, `2 requests`."""
    return f"{count} {noun}{'' if count == 1 else 's'}"


def counted(findings: Iterable[Finding], severity: Severity) -> int:
    return sum(each.severity == severity for each in findings)


def lines(findings: Iterable[Finding], width: int) -> Iterator[str]:
    """Yield the lines for people: what is wrong, and at the end what is not.

    Args:
        findings: In order.
        width: Of a line, in characters; commands are not broken.
    """
    fine, listed = [], list(findings)
    following = [*(each.do for each in listed[1:]), ""]
    for each, next_do in zip(listed, following, strict=False):
        if each.severity == "ok":
            fine.append(each.what)
            continue
        yield from _wrapped(f"{each.severity:<8} {_plain(each.about)}: {_plain(each.what)}", width)
        if each.why:
            yield from _wrapped(INDENT + _cut(_lines_apart(each.why)), width)
        if each.do and each.do != next_do:  # once, below all that it is for
            yield f"{INDENT}-> {_plain(each.do)}"
    if fine:
        yield from _wrapped(f"{'ok':<8} {'; '.join(_plain(each) for each in fine)}", width)


def _plain(text: str) -> str:
    return shown(" ".join(text.split()))


def _lines_apart(text: str) -> str:
    return " | ".join(_plain(line) for line in text.splitlines() if line.strip())


def _cut(text: str) -> str:
    if len(text) <= LONGEST_WHY:
        return text
    return f"{text[:BEGINNING].rstrip()} ... {text[BEGINNING - LONGEST_WHY :].lstrip()}"


def _wrapped(text: str, width: int) -> list[str]:
    return textwrap.wrap(
        text, width, subsequent_indent=INDENT, break_long_words=False, break_on_hyphens=False
    )
