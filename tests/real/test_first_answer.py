"""From the wheel alone to answers of two real llama.cpp servers: in at most 4 steps and 7 lines.

`python -m bench.first_answer` goes the same ways several times, and prints a table.
"""

from __future__ import annotations

from pathlib import Path

import pytest

from bench.first_answer.ways import Programs, install_wheel, travel
from bench.processes import CannotRun
from tests.real.site import gguf, program

SERVER = program("LLMUX_LLAMA_SERVER") or program("LLMUX_XLLAMACPP")

pytestmark = [
    pytest.mark.real,
    pytest.mark.skipif(SERVER is None, reason="not set: LLMUX_LLAMA_SERVER, LLMUX_XLLAMACPP"),
]

MOST_STEPS, MOST_LINES = 4, 7


@pytest.fixture(scope="module")
def programs(tmp_path_factory: pytest.TempPathFactory) -> Programs:
    try:
        commands = install_wheel(tmp_path_factory.mktemp("wheel"))
    except CannotRun as error:
        pytest.skip(f"needs a package index: {error}")
    assert SERVER is not None
    return Programs(commands, (gguf("tiny-a"), gguf("tiny-b")), Path(SERVER).resolve())


@pytest.mark.parametrize("recipe", ["process", "llama-cpp"])
def test_a_recipe(programs: Programs, tmp_path: Path, recipe: str) -> None:
    """One line is edited for each model, and the first answer needs one of them."""
    journey = travel(f"llmux, recipe {recipe}", programs, tmp_path)
    assert len(journey.steps) <= MOST_STEPS, journey.steps
    assert journey.lines <= MOST_LINES
    assert journey.edited == 2


def test_an_imported_config_of_llama_swap(programs: Programs, tmp_path: Path) -> None:
    journey = travel("llmux, imported from llama-swap", programs, tmp_path)
    assert len(journey.steps) <= MOST_STEPS, journey.steps
    assert journey.lines <= MOST_LINES
    assert journey.edited == 0
