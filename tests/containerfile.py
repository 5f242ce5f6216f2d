"""What `Containerfile` and `deploy/compose` say, read for the tests."""

from __future__ import annotations

import json
import re
import shlex
from functools import cached_property
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parent.parent
COMPOSE = ROOT / "deploy" / "compose"


class Containerfile:
    """The instructions of a Containerfile, in order.

    Attributes:
        instructions: Each with its keyword, and its argument on one line.
    """

    def __init__(self, text: str) -> None:
        lines = [line for line in text.splitlines() if not line.lstrip().startswith("#")]
        joined = "\n".join(lines).replace("\\\n", "")
        found = (re.match(r"([A-Z]+) (.*)", line) for line in joined.splitlines() if line.strip())
        self.instructions = [(match[1], " ".join(match[2].split())) for match in found if match]

    def all(self, keyword: str) -> list[str]:
        return [argument for key, argument in self.instructions if key == keyword]

    def last(self, keyword: str) -> str:
        return self.all(keyword)[-1]

    def words(self, keyword: str) -> list[str]:
        """The command of an instruction in JSON form, the last one of its kind."""
        argument = self.last(keyword)
        return [str(word) for word in json.loads(argument[argument.index("[") :])]

    @cached_property
    def environment(self) -> dict[str, str]:
        """What the image sets with ENV."""
        pairs = (word.partition("=") for argument in self.all("ENV") for word in argument.split())
        return {name: value for name, _, value in pairs}

    @cached_property
    def sources(self) -> list[str]:
        """What COPY takes from the build's context."""
        copies = (shlex.split(argument) for argument in self.all("COPY"))
        return [word for words in copies if not words[0].startswith("--") for word in words[:-1]]


def read_containerfile() -> Containerfile:
    return Containerfile((ROOT / "Containerfile").read_text())


def blocks(document: Path, language: str) -> list[str]:
    """The code blocks of a document in that language."""
    return re.findall(rf"^```{language}\n(.*?)^```", document.read_text(), re.MULTILINE | re.DOTALL)


def commands(document: Path, start: str) -> list[list[str]]:
    """The shell commands of a document's blocks that start with this, in words."""
    lines = "".join(blocks(document, "sh")).replace("\\\n", "").splitlines()
    return [shlex.split(line, comments=True) for line in lines if line.startswith(start)]


def health_command(service: dict[str, Any]) -> list[str]:
    """What a compose service's health check runs."""
    kind, *words = service["healthcheck"]["test"]
    assert kind == "CMD"
    return [str(word) for word in words]
