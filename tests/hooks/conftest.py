"""What the tests of all folders share."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from tests.hooks.bench import Bench

MakeBench = Callable[[str], Bench]


@pytest.fixture
def make_bench(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[MakeBench]:
    """Makes the bench of a folder; whatever its scripts leave is ended with the test."""
    with ExitStack() as stack:

        def make(name: str) -> Bench:
            return stack.enter_context(Bench(name, tmp_path, monkeypatch).until_ended())

        yield make
