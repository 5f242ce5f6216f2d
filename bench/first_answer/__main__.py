"""The way of a new user from an installed program to the first answers: steps, lines, seconds.

    python -m bench.first_answer --llama-server FILE --models FOLDER

`--llama-swap FILE` and `--ollama FILE` add theirs.

Each way runs in an empty folder, with an empty home. llmux is installed from its wheel into an
empty virtual environment. A step is a command typed or a file edited; the request is one, too, and
the installation is none. Lines are those of the config that are neither empty nor a comment.
Seconds are the machine's: nobody types or reads. They are from the first step to the first answer,
and of the first request for the second model.
"""

from __future__ import annotations

import argparse
import os
import platform
import statistics
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path

from bench.first_answer.journey import Journey
from bench.first_answer.ways import WAYS, Programs, install_wheel, travel
from bench.machine import cpu_model, say
from bench.processes import CannotRun, end_on_sigterm


def available(programs: Programs) -> list[str]:
    """The ways whose programs are there."""
    missing = {
        "llama-swap": programs.llama_swap is None,
        "llmux, imported from Ollama": programs.ollama is None,
        "Ollama": programs.ollama is None,
    }
    return [way for way in WAYS if not missing.get(way)]


def measure(programs: Programs, rounds: int, ways: Sequence[str]) -> dict[str, list[Journey]]:
    """Go each way several times, in turn."""
    found: dict[str, list[Journey]] = {way: [] for way in ways}
    for number in range(rounds):
        for way in ways:
            say(f"round {number + 1} of {rounds}: {way}")
            with tempfile.TemporaryDirectory(prefix="llmux-first-") as folder:
                found[way].append(travel(way, programs, Path(folder)))
    return found


def table(found: Mapping[str, Sequence[Journey]]) -> str:
    """A table in Markdown, with medians, lowest and highest."""
    heads = [
        "way",
        "steps",
        "lines",
        "by hand",
        "first answer, s",
        "second model, s",
        "what one types",
    ]
    rows = [heads, ["---", *["---:"] * 5, "---"]]
    for way, journeys in found.items():
        one = journeys[0]
        firsts = spread([journey.first_s for journey in journeys])
        seconds = spread([journey.second_s for journey in journeys])
        typed = "; ".join(f"`{shortened(step)}`" for step in one.steps)
        rows.append(
            [way, str(len(one.steps)), str(one.lines), str(one.edited), firsts, seconds, typed]
        )
    return "\n".join(f"| {' | '.join(row)} |" for row in rows)


def shortened(step: str) -> str:
    """A step without what only this machine needs."""
    words = step.split(" ")
    for option in ("--port", "--listen"):
        if option in words:
            del words[words.index(option) : words.index(option) + 2]
    return " ".join("URL" if word.startswith("http://") else word for word in words)


def spread(values: Sequence[float]) -> str:
    """Median, with the lowest and the highest value."""
    return f"{statistics.median(values):.1f} ({min(values):.1f}-{max(values):.1f})"


def main() -> None:
    """Measure, and print the table."""
    parser = argparse.ArgumentParser(prog="python -m bench.first_answer", description=__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("--llama-server", type=Path, required=True)
    parser.add_argument("--models", type=Path, required=True, help="has tiny-a.gguf, tiny-b.gguf")
    parser.add_argument("--llama-swap", type=Path)
    parser.add_argument("--ollama", type=Path)
    parser.add_argument("--rounds", type=int, default=5)
    options = parser.parse_args()
    end_on_sigterm()
    with tempfile.TemporaryDirectory(prefix="llmux-wheel-") as folder:
        try:
            say("installing the wheel")
            models = options.models.resolve()
            servers = (options.llama_server, options.llama_swap, options.ollama)
            programs = Programs(
                install_wheel(Path(folder)),
                (models / "tiny-a.gguf", models / "tiny-b.gguf"),
                *(file and file.resolve() for file in servers),
            )
            found = measure(programs, options.rounds, available(programs))
        except CannotRun as error:
            sys.exit(f"bench: {error}")
    print(table(found))
    print(f"\n{cpu_model()}, {os.cpu_count()} cores, Python {platform.python_version()}")


if __name__ == "__main__":
    main()
