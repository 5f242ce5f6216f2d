"""A short form of `bench.residency`."""

from __future__ import annotations

from statistics import geometric_mean

import pytest

from bench.residency.__main__ import main
from bench.residency.cases import Run, grid
from bench.residency.report import ratios

SYSTEMS = grid(400, seed=1)[::23]  # in each axis, all of its values


def test_the_rule_beats_lru_in_a_part_of_the_grid() -> None:
    runs = [Run(system, name, 1) for system in SYSTEMS for name in ("lru", "adaptive", "alone")]
    found = {run: run.figures() for run in runs}
    to_lru = ratios(found, SYSTEMS, "adaptive", 1, "mean")
    # In runs as short as these, the first wakes of all models count for much.
    assert geometric_mean(to_lru) < 0.75
    assert max(to_lru) < 1.4
    to_alone = ratios(found, SYSTEMS, "adaptive", 1, "mean", to="alone")
    assert geometric_mean(to_alone) < 0.45


def test_the_table_is_printed(capsys: pytest.CaptureFixture[str]) -> None:
    main(["--quick", "--requests", "60", "--hooks", "1", "--jobs", "1", "--policies", "adaptive"])
    assert "12 systems, hooks at a time: 1" in capsys.readouterr().out
