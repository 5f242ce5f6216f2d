"""How far off expected waits are, in a few cases of the bench; and that the bench would tell."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from bench.forecast.__main__ import WITHIN, shares
from bench.forecast.asking import FLOOR_S, Asked, Asking
from bench.forecast.cases import Synthetic
from llmux.simulate.forecast import Rollout


@pytest.mark.parametrize(
    ("policy", "traffic"),
    [
        ("adaptive", Synthetic(0.5, 5, requests=800)),
        ("adaptive", Synthetic(1, 10, requests=800)),
        ("adaptive", Synthetic(1, 5, limit=4, requests=800)),
        ("fifo", Synthetic(0.5, 8, requests=800)),
        ("fifo", Synthetic(0.7, 3, models=8, requests=800)),
        ("exhaustive", Synthetic(0.5, 5, requests=800)),
        ("adaptive", Synthetic(1.5, 8, models=5, shares_memory=True, requests=800)),
        ("fifo", Synthetic(1, 3, models=5, shares_memory=True, requests=800)),
    ],
    ids=str,
)
def test_half_of_the_forecasts_are_within_30_percent(policy: str, traffic: Synthetic) -> None:
    found = traffic.run(policy, Asking(share=0.2))
    assert len(found) > 30
    error, _ = shares(found)
    assert error < WITHIN


def test_forecasts_are_as_often_too_long_as_too_short() -> None:
    """Of requests that all lasted as long as usual, drains would end too early: 12 % too long."""
    found = Synthetic(0.7, 3, models=8, requests=800).run("fifo", Asking(share=0.3))
    too_long = sum(each.expected_s > each.waited_s for each in found if each.expected_s)
    assert 0.3 < too_long / len(found) < 0.7


def test_an_error_is_relative_except_of_a_short_wait() -> None:
    assert Asked(15, 10).error == 0.5
    assert Asked(5, 10).error == 0.5
    assert Asked(FLOOR_S, 0).error == 1
    assert Asked(None, 10).error == 1
    error, within = shares([Asked(10, 10), Asked(12, 10), Asked(20, 10)])
    assert error == pytest.approx(0.2)
    assert within == 2 / 3


def test_a_forecast_without_the_policy_s_stay_is_found_out(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    traffic = Synthetic(1, 5, requests=800)
    honest, _ = shares(traffic.run("adaptive", Asking(share=0.2)))
    slices = Rollout.slices

    def at_once(rollout: Rollout) -> Iterator[None]:
        yield from slices(rollout)
        rollout.wait_s = 5.0

    monkeypatch.setattr(Rollout, "slices", at_once)
    guessed, _ = shares(traffic.run("adaptive", Asking(share=0.2)))
    assert honest < 0.3 < guessed
