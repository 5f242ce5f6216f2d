"""How near `adaptive` comes to the best that can be done with three models of which two fit.

The whole table: `python -m bench.residency.optimum`.
"""

from __future__ import annotations

from dataclasses import replace

import pytest

from bench.residency.optimum import Optimum, State, System, compare, main, simulated_wait_s

QUICK = System.of(load=0.2, shares=(1, 1, 1), wake_s=1.0, costs=(1, 1, 1))
UNLIKE = System.of(load=0.4, shares=(4, 2, 1), wake_s=1.0, costs=(2, 1, 1))


@pytest.fixture(scope="module")
def best() -> Optimum:
    return Optimum(UNLIKE)


def test_the_optimum_is_what_its_simulation_shows(best: Optimum) -> None:
    assert simulated_wait_s(UNLIKE, best, 8_000) == pytest.approx(best.wait_s, rel=0.1)


def test_adaptive_is_near_the_optimum_of_a_small_system() -> None:
    found = compare(QUICK, 4_000)
    assert 0.98 <= found.ratio("adaptive") <= 1.15


def test_the_optimum_of_a_system_that_needs_no_switch_is_that_of_separate_queues() -> None:
    # Model 2 is asked for so seldom that the others are queues of their own: M/M/1.
    found = Optimum(System((0.3, 0.2, 1e-6), (1.0, 1.0, 1.0), most=10))
    waits = [0.3 * 0.3 / (1 - 0.3), 0.2 * 0.2 / (1 - 0.2)]  # rate times wait
    assert found.wait_s == pytest.approx(sum(waits) / 0.5, rel=0.01)


def test_a_model_that_nobody_needs_leaves_for_one_that_waits(best: Optimum) -> None:
    assert best.choose(State((0, 0, 3), asleep=2)) == State((0, 0, 3), 2, leaving=1)
    assert best.choose(State((0, 0, 0), asleep=2)) is None


def test_more_room_for_requests_changes_little(best: Optimum) -> None:
    larger = Optimum(replace(UNLIKE, most=UNLIKE.most + 4))
    assert larger.wait_s == pytest.approx(best.wait_s, rel=0.01)


def test_the_table_is_printed(capsys: pytest.CaptureFixture[str]) -> None:
    main(["--only", "1", "--requests", "500", "--jobs", "1"])
    assert "geometric mean" in capsys.readouterr().out
