"""How near adaptive comes to the best that can be done; the whole table: `python -m tests.optimum`."""

from __future__ import annotations

import pytest

from tests.optimum import System, compare, evaluate, exhaustive, geometric_mean, optimum

SYSTEMS = [
    System.of(load=load, ratio=ratio, switch_s=switch_s, slots=slots)
    for load, ratio, switch_s, slots in [
        (0.4, 1.0, 1.0, 1),
        (0.6, 4.0, 1.0, 1),
        (0.4, 4.0, 5.0, 2),
        (0.6, 1.0, 5.0, 2),
    ]
]


@pytest.mark.parametrize("system", SYSTEMS, ids=str)
def test_the_optimum_is_what_its_simulation_shows(system: System) -> None:
    found = compare(system, [], requests=40_000)
    assert found.best_simulated_s == pytest.approx(found.best.wait_s, rel=0.05)


@pytest.mark.slow
@pytest.mark.parametrize("system", SYSTEMS, ids=str)
def test_the_optimum_is_better_than_other_policies(system: System) -> None:
    first = exhaustive(system)
    best = optimum(system)
    assert best.wait_s <= evaluate(system, (first, first)).wait_s * (1 + 1e-6)
    for n, row in enumerate(best.leaves[0]):
        for more in (-1, 1):  # leave each model a little sooner or later
            other = [list(each) for each in best.leaves[0]]
            firsts = [q for q, go in enumerate(row) if go]
            if firsts and 1 <= firsts[0] + more < system.cut_off:
                other[n] = [q >= firsts[0] + more for q in range(system.size)]
                assert best.wait_s <= evaluate(system, (other, best.leaves[1])).wait_s + 1e-6


@pytest.mark.slow
def test_adaptive_is_near_the_optimum() -> None:
    ratios = [compare(system, ["adaptive"], 20_000).ratio("adaptive") for system in SYSTEMS]
    assert geometric_mean(ratios) <= 1.10
    assert max(ratios) <= 1.25
