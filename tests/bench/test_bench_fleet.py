"""A short form of `bench.fleet`."""

from __future__ import annotations

from dataclasses import replace

import pytest

from bench.fleet.__main__ import main
from bench.fleet.systems import ROUTERS, Run, System, as_live, grid, turning


def test_there_are_72_systems_and_24_that_turn() -> None:
    assert len(set(grid(10, seed=1))) == 72
    assert len(set(turning(10, seed=1))) == 24


def test_expected_waits_are_as_good_as_fixed_homes_and_better_where_they_are_bad() -> None:
    steady, _, _, turns = as_live(seed=1)
    turns = replace(turns, requests=240)

    def mean_s(system: System, router: str) -> float:
        return Run(system, router).figures()["mean"]

    assert mean_s(steady, "expected-wait") <= 1.15 * mean_s(steady, "fixed-homes")
    assert mean_s(steady, "expected-wait") <= 0.3 * mean_s(steady, "round-robin")
    assert mean_s(steady, "3 pickers") <= 1.2 * mean_s(steady, "expected-wait")
    assert mean_s(turns, "expected-wait") <= 0.5 * mean_s(turns, "fixed-homes")


@pytest.mark.parametrize("part", ["steady", "live"])
def test_a_table_is_printed(part: str, capsys: pytest.CaptureFixture[str]) -> None:
    names = ["hash", "fixed-homes"]
    main(["--quick", "--requests", "40", "--jobs", "1", "--only", part, "--routers", *names])
    printed = capsys.readouterr().out
    assert all(f"\n{name} " in printed for name in ["round-robin", *names])
    assert "\nscorers" not in printed
    assert set(names) < set(ROUTERS)
