"""Write a draft as YAML, with its notes as comments."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from textwrap import wrap
from typing import Any

from llmux.cli.importing.draft import Draft
from llmux.config import modeline

WIDTH = 100

# What YAML 1.1 or 1.2 reads as something else than text; other words need no quotes.
_WORD = re.compile(r"[A-Za-z_/][\w./+-]*")
_BREAKS = re.compile("[\x7f-\x9f\u2028\u2029\ufeff\ud800-\udfff]")
"""Characters that JSON takes as they are, and YAML does not."""

_NOT_TEXT = frozenset({"null", "true", "false", "yes", "no", "on", "off", "y", "n"})


def write_draft(draft: Draft) -> str:
    """Return the config as YAML."""
    lines = [modeline(), f"# Made by `{draft.source}`; `llmux check` says whether it works."]
    if draft.notes:
        lines += ["#", "# Not carried over:", *_comments(draft.notes, "")]
    for key, value in draft.values.items():
        lines += ["", *_entry(key, value, "")]
    lines += ["", "models:"]
    for name, model in draft.models.items():
        lines += [*_comments(model.notes, "  "), f"  {_scalar(name)}:"]
        for key, value in model.values.items():
            lines += _entry(key, value, "    ")
    return "\n".join(lines) + "\n"


def _comments(notes: list[str], indent: str) -> Iterator[str]:
    for note in notes:
        for number, line in enumerate(wrap(note, WIDTH - 6 - len(indent))):
            yield f"{indent}# {'  ' if number else '- '}{line}"


def _entry(key: str, value: Any, indent: str) -> Iterator[str]:
    if isinstance(value, Mapping) and value:
        inline = f"{indent}{_scalar(key)}: {_flow(value)}"
        if len(inline) <= WIDTH:
            yield inline
            return
        yield f"{indent}{_scalar(key)}:"
        for inner, item in value.items():
            yield from _entry(str(inner), item, f"{indent}  ")
    elif (
        isinstance(value, list)
        and len(f"{indent}{_scalar(key)}: {_flow(value)}") > WIDTH
        and all(isinstance(each, list) for each in value)
    ):
        yield f"{indent}{_scalar(key)}:"
        yield from (f"{indent}  - {_flow(each)}" for each in value)
    elif key == "command" and isinstance(value, str) and _folds(value, indent):
        yield f"{indent}{key}: >-"
        yield from (f"{indent}  {line}" for line in _folded(value))
    else:
        yield f"{indent}{_scalar(key)}: {_flow(value)}"


def _folds(command: str, indent: str) -> bool:
    """Return whether a command is too long for a line, and survives YAML's folding."""
    return len(command) + len(indent) > WIDTH - 10 and "\n" not in command


def _folded(command: str) -> list[str]:
    """Split a command before its options; YAML joins the lines with single spaces."""
    lines: list[str] = []
    for piece in re.split(r" (?=-)", command):
        if lines and len(lines[-1]) + len(piece) < WIDTH - 10:
            lines[-1] += f" {piece}"
        else:
            lines.append(piece)
    return lines


def _flow(value: Any) -> str:
    """Return a value in one line: JSON is YAML, and quotes all that needs it."""
    if isinstance(value, Mapping):
        return (
            "{" + ", ".join(f"{_scalar(key)}: {_flow(item)}" for key, item in value.items()) + "}"
        )
    if isinstance(value, list | tuple):
        return "[" + ", ".join(_flow(item) for item in value) + "]"
    return _scalar(value)


def _scalar(value: Any) -> str:
    if isinstance(value, str) and _WORD.fullmatch(value) and value.lower() not in _NOT_TEXT:
        return value
    text = json.dumps(value, ensure_ascii=False)
    return _BREAKS.sub(lambda match: f"\\u{ord(match[0]):04x}", text)
