"""The fenced blocks of the documentation, and what the comment before a block says of it."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parent.parent

PAGES = [
    ROOT / "README.md",
    *sorted(ROOT.glob("docs/**/*.md")),
    *sorted(ROOT.glob("hooks/*/README.md")),
]

SHELL = {"sh", "bash", "shell", "console"}

_BLOCK = re.compile(
    r"(?:^ *<!-- (?P<mark>[^\n]*) -->\n)?"
    r"^(?P<indent> *)```(?P<language>[\w-]*)\n(?P<code>.*?)^(?P=indent)```$",
    re.MULTILINE | re.DOTALL,
)


@dataclass(frozen=True)
class Block:
    """A fenced block.

    Attributes:
        page: Its file, relative to the repository.
        line: The line of its fence.
        language: As the fence says; empty if it does not.
        mark: The comment on the line before, without its brackets; empty if there is none.
        code: What is in it.
    """

    page: str
    line: int
    language: str
    mark: str
    code: str

    def __str__(self) -> str:
        return f"{self.page}:{self.line}"

    @property
    def is_shell(self) -> bool:
        return self.language in SHELL

    @property
    def script(self) -> str:
        """The commands: of a console block those behind its prompts."""
        if self.language != "console":
            return self.code
        return "".join(line[2:] for line in self.code.splitlines(True) if line.startswith("$ "))

    @property
    def is_excused(self) -> bool:
        """Whether it says why it cannot be run here."""
        return re.match(r"not run: \S", self.mark) is not None

    @property
    def serves(self) -> bool:
        """Whether it runs until it is stopped, and the blocks after it need it."""
        return self.mark == "serves"


def blocks(page: Path) -> Iterator[Block]:
    """The fenced blocks of a page, in order."""
    text = page.read_text()
    for found in _BLOCK.finditer(text):
        code = found["code"].replace(f"\n{found['indent']}", "\n").removeprefix(found["indent"])
        line = text.count("\n", 0, found.end("indent")) + 1
        name = page.relative_to(ROOT).as_posix()
        yield Block(name, line, found["language"], found["mark"] or "", code)
