"""Forecasts: what is left of a switch, and what the policy does first.

`tests/bench/test_forecast_bench.py` is about how far off they are.
"""

from __future__ import annotations

import math
import threading
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pytest

from llmux.config import PolicyConfig
from llmux.policy import LineFirst, load_policy
from llmux.policy.estimates import Measures
from llmux.simulate.backends import Job, Sharing
from llmux.simulate.engine import Station
from llmux.simulate.forecast import MOST_EVENTS, Rollout, Scene, forecast_s, scene_of
from llmux.switching.core import NO_TRAITS, ModelState, Phase, Traits

NOW = 1000.0


def measured(costs: dict[tuple[str | None, str], float], **latencies: float) -> Measures:
    measures = Measures()
    for (source, target), seconds in costs.items():
        measures.note_switched(source, target, seconds, wake_s=0.8 * seconds)
    for model, seconds in latencies.items():
        measures.note_served(model, 1, seconds)
    return measures


COSTS: dict[tuple[str | None, str], float] = {
    (None, "a"): 5, (None, "b"): 6, ("a", "b"): 10, ("b", "a"): 10,
}  # fmt: skip


def model(name: str, traits: Traits = NO_TRAITS) -> Station:
    return Station(0, name, Sharing(lambda _: 1.0), traits)


def awake(station: Station, *, since: float = NOW - 50, in_flight: int = 0) -> Station:
    station.move_to(Phase.AWAKE, since)
    station.in_flight.in_use = in_flight
    return station


def wait_s(
    models: Iterable[ModelState],
    asked: str,
    *,
    policy: str = "fifo",
    target: str | None = None,
    measures: Measures | None = None,
    now: float = NOW,
) -> float | None:
    measures = measures or measured(COSTS, a=4, b=4)
    asks = LineFirst(load_policy(PolicyConfig(name=policy), Path()), PolicyConfig(), measures)
    return forecast_s(scene_of(models, asks, measures, now=now, target=target), asked)


def test_a_model_that_is_awake() -> None:
    assert wait_s([awake(model("a")), model("b")], "a") == 0


def test_a_cold_start_costs_its_hooks() -> None:
    assert wait_s([model("a"), model("b")], "b") == 6


def test_an_idle_model_makes_room_at_once() -> None:
    assert wait_s([awake(model("a")), model("b")], "b") == 10


def test_a_drain_comes_first() -> None:
    found = wait_s([awake(model("a"), in_flight=1), model("b")], "b")
    assert found == pytest.approx(10 + 4 * math.log(2))  # half of such requests take longer


def test_what_is_left_of_each_phase_of_a_switch() -> None:
    source, target = awake(model("a"), in_flight=1), model("b")
    source.move_to(Phase.DRAINING, NOW - 1)
    assert wait_s([source, target], "b", target="b") == pytest.approx(10 + 4 * math.log(2))
    source.in_flight.in_use = 0
    assert wait_s([source, target], "b", target="b") == 10
    source.move_to(Phase.SLEEPING, NOW)
    assert wait_s([source, target], "b", target="b", now=NOW + 3) == 7
    assert wait_s([source, target], "b", target="b", now=NOW + 30) == 1  # late, so soon
    source.move_to(Phase.ASLEEP, NOW + 2)
    target.move_to(Phase.WAKING, NOW + 2)
    wake_s = measured(COSTS).wake_s("b")
    assert wake_s is not None
    assert wait_s([source, target], "b", target="b", now=NOW + 3) == pytest.approx(wake_s - 1)
    # A request for the other model waits for this switch and the one back.
    back = wait_s([source, target], "a", target="b", now=NOW + 3)
    assert back == pytest.approx(wake_s - 1 + 10)


def test_a_request_behind_others_for_another_model_waits_for_their_turn() -> None:
    c = model("c")
    c.waiters.add(Job("c", NOW - 5, 0))
    costs = COSTS | {("a", "c"): 3, ("c", "b"): 7}
    found = wait_s([awake(model("a")), model("b"), c], "b", measures=measured(costs, c=2))
    assert found == pytest.approx(3 + 2 + 7)


def test_a_line_for_slots_is_served_first() -> None:
    limited = awake(model("a", Traits(max_in_flight=1)), in_flight=1)
    for age in (3, 2, 1):
        limited.waiters.add(Job("a", NOW - age, 0))
    found = wait_s([limited, model("b")], "a")
    assert found == pytest.approx(4 * math.log(2) + 3 * 4)


def test_frozen_requests_are_waited_for_by_nobody() -> None:
    frozen = awake(model("a", Traits(preserves_in_flight=True)), in_flight=2)
    frozen.move_to(Phase.DRAINING, NOW - 9)
    frozen.move_to(Phase.SLEEPING, NOW - 9)
    frozen.move_to(Phase.ASLEEP, NOW - 8)
    # They want their model back, and have for longer than the new request.
    assert wait_s([frozen, awake(model("b"))], "a") == 10


def test_a_failed_model_is_not_tried_before_its_time() -> None:
    failed = model("b")
    failed.retry_at = NOW + 20
    assert wait_s([awake(model("a")), failed], "b") == pytest.approx(20 + 10)


def test_the_policy_s_stay_is_included() -> None:
    measures = measured(COSTS, a=4, b=4)
    for index in range(16):
        measures.note_arrival("a", NOW - 8 + index / 2)
    busy = [awake(model("a"), since=NOW - 1, in_flight=8), model("b")]
    found = wait_s(busy, "b", policy="adaptive", measures=measures)
    soonest = wait_s(busy, "b", policy="fifo", measures=measures)
    assert found is not None
    assert soonest is not None
    assert found > soonest + 10  # adaptive stays with eight that are served for one that waits


def test_a_forecast_changes_nothing() -> None:
    measures = measured(COSTS, a=4, b=4)
    for index in range(16):
        measures.note_arrival("a", NOW - 8 + index / 2)
    policy = LineFirst(load_policy(PolicyConfig(), Path()), PolicyConfig(), measures)
    models = [awake(model("a"), in_flight=3), model("b")]
    models[1].waiters.add(Job("b", NOW - 2, 0))

    def state() -> Any:
        inner = {name: repr(value) for name, value in vars(policy._policy).items()}
        rates = measures.arrivals_per_s("a", NOW), measures.latency_s("a", 3)
        lines = [(m.phase, m.waiters.count, m.in_flight.in_use, m.entered_at) for m in models]
        return inner, rates, lines, repr(measures.costs), measures.longest_drain_s()

    before = state()
    assert forecast_s(scene_of(models, policy, measures, now=NOW, target=None), "b")
    assert state() == before


def test_a_long_forecast_says_at_least_how_long() -> None:
    measures = measured(COSTS, a=1, b=1)
    for index in range(16):
        measures.note_arrival("a", NOW - 0.016 + index / 1000)
    busy = [awake(model("a"), in_flight=100), model("b")]
    rollout = Rollout(scene(busy, "exhaustive", measures), "b")
    slices = sum(1 for _ in rollout.slices())
    assert slices * 25 >= MOST_EVENTS
    assert rollout.wait_s is not None
    assert 0.3 < rollout.wait_s < 3  # 1500 events at 2000 a second


def scene(models: Iterable[ModelState], policy: str, measures: Measures) -> Scene:
    asks = LineFirst(load_policy(PolicyConfig(name=policy), Path()), PolicyConfig(), measures)
    return scene_of(models, asks, measures, now=NOW, target=None)


class Uncopyable:
    def __init__(self) -> None:
        self._lock = threading.Lock()

    def decide(self, _view: Any) -> Any: ...


def test_a_policy_that_cannot_be_copied() -> None:
    measures = Measures()
    with pytest.raises(TypeError):
        scene_of(
            [], LineFirst(Uncopyable(), PolicyConfig(), measures), measures, now=0, target=None
        )
