"""Policies are pure: a snapshot in, a decision out."""

from __future__ import annotations

import math
import sys
import types
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec import field
from msgspec.structs import astuple, replace

import llmux.policy
from llmux.config import PolicyConfig
from llmux.errors import ConfigError
from llmux.policy import (
    POLICIES,
    Decision,
    FifoPolicy,
    GroupView,
    LookAgain,
    ModelView,
    Stay,
    SwitchTo,
    load_policy,
)
from llmux.policy.ages import Ages
from llmux.policy.base import by_name
from llmux.policy.estimates import Measures


def decide(
    *views: ModelView,
    now: float = 100,
    active: str | None = None,
    since: float | None = None,
    **config: Any,
) -> Decision:
    snapshot = GroupView(
        now=now,
        active=active,
        active_since=since,
        models={
            **({active: ModelView(active)} if active else {}),
            **{view.name: view for view in views},
        },
    )
    return FifoPolicy(PolicyConfig(**config)).decide(snapshot)


def waiting(name: str, since: float, **more: Any) -> ModelView:
    return ModelView(name, queued=1, oldest_arrival=since, **more)


def test_nothing_to_do() -> None:
    assert decide(ModelView("a"), ModelView("b")) == Stay()
    assert decide(waiting("a", 90), active="a", since=0) == Stay()


def test_the_oldest_request_wins() -> None:
    decision = decide(waiting("a", 95), waiting("b", 90), active="c", since=0)
    assert decision == SwitchTo("b", "its oldest request waits 10.0 s", "oldest first")


def test_the_active_model_has_its_minimum() -> None:
    assert decide(waiting("b", 90), active="a", since=98, min_active_secs=5) == LookAgain(103)
    assert isinstance(decide(waiting("b", 90), active="a", since=95, min_active_secs=5), SwitchTo)


def test_a_failed_model_delays_only_itself() -> None:
    failed = waiting("a", 10, retry_at=130.0)
    assert decide(failed) == LookAgain(130)
    assert decide(failed, waiting("b", 90)) == SwitchTo(
        "b", "its oldest request waits 10.0 s", "oldest first"
    )
    assert decide(failed, waiting("b", 90, retry_at=110.0)) == LookAgain(110)
    cooling = decide(failed, waiting("b", 90), active="c", since=99, min_active_secs=5)
    assert cooling == LookAgain(104)


class OwnPolicy:
    def __init__(self, config: PolicyConfig) -> None:
        self.patience = config.options["patience"]

    def decide(self, snapshot: GroupView) -> Decision:
        return Stay()


@pytest.fixture
def own_module(monkeypatch: pytest.MonkeyPatch) -> None:
    module = types.ModuleType("own_policies")
    module.OwnPolicy = OwnPolicy  # type: ignore[attr-defined]
    module.dict = dict  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "own_policies", module)


@pytest.mark.usefixtures("own_module")
def test_a_policy_of_the_users_own() -> None:
    config = PolicyConfig(name="own_policies:OwnPolicy", options={"patience": 3})
    policy = load_policy(config)
    assert isinstance(policy, OwnPolicy)
    assert policy.patience == 3


@pytest.mark.usefixtures("own_module")
@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("fifoo", "unknown policy 'fifoo', did you mean 'fifo'? (one of: adaptive, fifo, "),
        ("nothing.like.it", "unknown policy 'nothing.like.it' (one of: "),
        ("no_such_module:X", "cannot import 'no_such_module:X': No module named"),
        ("own_policies:X", "cannot import 'own_policies:X': module 'own_policies' has no"),
        ("own_policies:OwnPolicy", "own_policies:OwnPolicy cannot be made: KeyError: 'patience'"),
        ("own_policies:dict", "own_policies:dict cannot be made: TypeError"),
    ],
)
def test_a_policy_that_cannot_be_had(name: str, message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        load_policy(PolicyConfig(name=name))
    (line,) = caught.value.mistakes
    assert line.startswith(f"policy.name: {message}")


def test_a_policy_beside_the_config(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "beside_the_config.py").write_text(
        "class Mine:\n    def __init__(self, config): pass\n    def decide(self, snapshot): ...\n"
    )
    monkeypatch.setattr(sys, "path", list(sys.path))
    policy = load_policy(PolicyConfig(name="beside_the_config:Mine"), tmp_path)
    assert type(policy).__name__ == "Mine"


def test_a_policy_without_decide(monkeypatch: pytest.MonkeyPatch) -> None:
    module = types.ModuleType("own_policies")
    module.Empty = lambda config: object()  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "own_policies", module)
    with pytest.raises(ConfigError, match="own_policies:Empty has no method `decide`"):
        load_policy(PolicyConfig(name="own_policies:Empty"))


# ---- Policies that weigh ----


def line(name: str, *arrivals: float, **more: Any) -> ModelView:
    ages = Ages()
    for arrived_at in arrivals:
        ages = ages.plus(arrived_at)
    oldest_arrival = min(arrivals, default=None)
    return ModelView(name, queued=len(arrivals), oldest_arrival=oldest_arrival, ages=ages, **more)


def known(
    cost_s: float = 10.0, *, models: str = "abc", busy: str = "", drain_s: float = 0
) -> Measures:
    """Every switch costs the same; a busy model has had 16 requests in the second before 100."""
    measures = Measures()
    for source in models:
        for target in models:
            if source != target:
                measures.costs.record(source, target, cost_s)
    for model in busy:
        for number in range(16):
            measures.note_arrival(model, 99 + number / 16)
    for model in models if drain_s else "":
        measures.note_drained(model, 1, drain_s)
    return measures


def ask(
    policy: str,
    *views: ModelView,
    measures: Measures | None = None,
    now: float = 100.0,
    active: str | None = "a",
    since: float = 0.0,
    **config: Any,
) -> Decision:
    snapshot = GroupView(
        now=now,
        active=active,
        active_since=None if active is None else since,
        models={view.name: view for view in views},
        measures=measures or Measures(),
    )
    return POLICIES[policy](PolicyConfig(name=policy, **config)).decide(snapshot)


def target_of(decision: Decision) -> str | None:
    return decision.model if isinstance(decision, SwitchTo) else None


@pytest.mark.parametrize("policy", POLICIES)
def test_every_policy_stays_where_nobody_waits_elsewhere(policy: str) -> None:
    assert ask(policy, line("a", 90.0), line("b")) == Stay()
    assert ask(policy, line("a"), line("b"), active=None) == Stay()


@pytest.mark.parametrize("policy", POLICIES)
def test_every_policy_begins_with_the_oldest(policy: str) -> None:
    views = [line("a", 95.0, 96.0, 97.0), line("b", 90.0), line("c")]
    assert target_of(ask(policy, *views, active=None, measures=known())) == "b"


@pytest.mark.parametrize("policy", POLICIES)
def test_every_policy_waits_for_a_failed_model_alone(policy: str) -> None:
    failed = line("b", 10.0, retry_at=130.0)
    later = line("c", 10.0, retry_at=140.0)
    assert ask(policy, line("a"), failed, later, active=None) == LookAgain(130.0)
    assert ask(policy, line("a"), failed, later) == LookAgain(130.0)
    assert target_of(ask(policy, line("a"), failed, line("c", 50.0), active=None)) == "c"
    assert target_of(ask(policy, line("a"), failed, retries_now(later))) == "c"


def retries_now(view: ModelView) -> ModelView:
    return replace(view, retry_at=100.0)


@pytest.mark.parametrize("policy", ["adaptive", "exhaustive", "cost_aware", "time_slice"])
def test_nobody_waits_longer_than_the_bound(policy: str) -> None:
    busy = line("a", in_flight=4)
    measures = known(busy="a")
    measures.note_served("a", 5, 1e-6)
    coalesce: dict[str, Any] = {"options": {"coalesce_secs": 1000}}
    stays = ask(policy, busy, line("b", 61.0), measures=measures, max_wait_secs=40, **coalesce)
    assert isinstance(stays, LookAgain)
    assert 100 < stays.at <= 101
    leaves = ask(policy, busy, line("b", 60.0), measures=measures, max_wait_secs=40, **coalesce)
    assert target_of(leaves) == "b"


@pytest.mark.parametrize("policy", POLICIES)
def test_min_active_secs_comes_before_all_else(policy: str) -> None:
    rest: dict[str, Any] = {"since": 95.0, "min_active_secs": 20, "max_wait_secs": 1}
    decision = ask(policy, line("a"), line("b", 1.0), measures=known(1.0), **rest)
    assert isinstance(decision, LookAgain), "ask may_leave_at (llmux/policy/choices.py)"
    assert 100 < decision.at <= 115
    assert target_of(ask(policy, line("a"), line("b", 1.0), now=115.0, **rest)) == "b"


# ---- exhaustive ----


def test_exhaustive_serves_all_that_is_in_flight() -> None:
    assert ask("exhaustive", line("a", in_flight=1), line("b", 90.0)) == LookAgain(390.0)
    assert target_of(ask("exhaustive", line("a"), line("b", 90.0))) == "b"


def test_exhaustive_with_slots_serves_all_that_wait_for_one() -> None:
    slots = {"has_slots": True, "in_flight": 2}
    assert ask("exhaustive", line("a", 99.0, **slots), line("b", 90.0)) == LookAgain(390.0)
    assert target_of(ask("exhaustive", line("a", **slots), line("b", 90.0))) == "b"


# ---- cost_aware ----


def test_cost_aware_serves_for_as_long_as_the_switch_costs() -> None:
    views = line("a"), line("b", *[99.0] * 5)
    assert ask("cost_aware", *views, measures=known(), since=95.0) == LookAgain(105.0)
    assert target_of(ask("cost_aware", *views, measures=known(), since=90.0)) == "b"


def test_cost_aware_gathers_a_line_that_is_worth_it() -> None:
    measures = known()  # 10 s, at half a request a second: 5
    assert ask("cost_aware", line("a"), line("b", *[99.5] * 4), measures=measures) == LookAgain(
        101.5
    )
    assert target_of(ask("cost_aware", line("a"), line("b", *[99.5] * 5), measures=measures)) == "b"
    assert target_of(ask("cost_aware", line("a"), line("b", 98.0), measures=measures)) == "b"
    options = {"coalesce_secs": 30, "amortization_factor": 0.1}
    decision = ask("cost_aware", line("a"), line("b", 99.5), measures=measures, options=options)
    assert target_of(decision) == "b"


def test_cost_aware_takes_the_oldest_of_those_that_are_overdue() -> None:
    views = line("a"), line("b", 50.0), line("c", 10.0)
    rest: dict[str, Any] = {"since": 95.0, "max_wait_secs": 20.0}
    assert target_of(ask("cost_aware", *views, measures=known(), **rest)) == "c"


# ---- time_slice ----


def test_time_slice_serves_until_idle_and_then_the_longest_line() -> None:
    others = line("b", 90.0), line("c", 95.0, 96.0)
    assert ask("time_slice", line("a", in_flight=1), *others) == LookAgain(390.0)
    assert ask("time_slice", line("a", 99.0), *others) == LookAgain(390.0)
    to_c = SwitchTo("c", "the longest line: 2 waiting", "longest line")
    assert ask("time_slice", line("a"), *others) == to_c


# ---- adaptive ----


def test_adaptive_explores_while_it_knows_nothing() -> None:
    assert target_of(ask("adaptive", line("a", in_flight=3), line("b", 100.0))) == "b"


def test_adaptive_closes_an_idle_model_for_anybody() -> None:
    decision = ask("adaptive", line("a"), line("b", 99.0), measures=known())
    assert decision == SwitchTo("b", "1 waiting, 1.0 s in all", "close")


def test_adaptive_stays_while_its_own_users_have_more_at_stake() -> None:
    # 16 requests in a second, away for 20 s: 16 * 20^3 / 3 = 206.6^2, of which 10 s are the switch.
    measures = known(busy="a")
    decision = ask("adaptive", line("a"), line("b", 99.0), measures=measures, max_wait_secs=1000)
    assert isinstance(decision, LookAgain)
    decision = ask("adaptive", line("a"), line("b", -97.0), measures=measures, max_wait_secs=1000)
    assert target_of(decision) == "b"


def test_adaptive_takes_a_drain_for_part_of_the_switch() -> None:
    rest: dict[str, Any] = {"max_wait_secs": 1000}
    views = line("a", in_flight=1), line("b", 0.0)
    assert target_of(ask("adaptive", *views, measures=known(busy="a"), **rest)) is None
    drains = known(busy="a", drain_s=100)
    assert target_of(ask("adaptive", *views, measures=drains, **rest)) == "b"


def test_adaptive_stays_open_while_one_more_request_costs_little() -> None:
    measures = known()
    measures.note_served("a", 4, 2.0)  # half a second each
    busy = line("a", in_flight=3)
    # Away for 20 s: 20^2 / (2 * 0.5) = 400 s of waiting are enough.
    assert isinstance(ask("adaptive", busy, line("b", 90.0), measures=measures), LookAgain)
    crowd = line("b", *[60.0] * 10)
    assert target_of(ask("adaptive", busy, crowd, measures=measures)) == "b"
    assert target_of(ask("adaptive", busy, line("b", *[100.0] * 40), measures=measures)) == "b"
    assert target_of(ask("adaptive", line("a"), line("b", 90.0), measures=measures)) == "b"


def test_adaptive_knows_from_absences_what_it_means_to_be_turned_away() -> None:
    measures = known()
    measures.note_served("a", 4, 2.0)
    measures.note_closed("a", 10)
    measures.note_open(
        "a", 12, 10
    )  # away for 2 s only: 2^2 / (2 * 0.5) = 4 s of waiting are enough
    decision = ask("adaptive", line("a", in_flight=3), line("b", 90.0), measures=measures)
    assert target_of(decision) == "b"


def test_adaptive_goes_where_most_suffering_is_ended_for_each_second_of_switching() -> None:
    measures = known()
    for _ in range(30):
        measures.costs.record("a", "c", 100.0)
    views = line("a"), line("b", 90.0, 91.0), line("c", 80.0, 81.0, 82.0)
    assert target_of(ask("adaptive", *views, measures=measures)) == "b"
    assert target_of(ask("adaptive", *views, measures=known())) == "c"


@pytest.mark.parametrize("value", [math.nan, math.inf, -1])
@pytest.mark.parametrize("option", ["coalesce_secs", "amortization_factor"])
def test_cost_aware_takes_no_odd_numbers(option: str, value: float) -> None:
    with pytest.raises(ConfigError, match=f"options.{option} must be a number from 0 on"):
        load_policy(PolicyConfig(name="cost_aware", options={option: value}))


def test_adaptive_has_a_least_turn_though_others_wait_too_long() -> None:
    measures = known(busy="a")
    measures.note_closed("a", 0)
    measures.note_open("a", 50, 0)
    overdue = line("b", 90.0)
    # The round trip of 20 s is more than 0.3 of the 50 s that it was away.
    early = ask("adaptive", line("a"), overdue, measures=measures, since=80.1, max_wait_secs=1)
    assert isinstance(early, LookAgain)
    late = ask("adaptive", line("a"), overdue, measures=measures, since=79.9, max_wait_secs=1)
    assert target_of(late) == "b"
    measures.note_closed("a", 100)
    measures.note_open("a", 210, 100)  # on average, 50 + 0.3 * 60 = 68 s; 0.3 of that is 20.4
    early = ask("adaptive", line("a"), overdue, measures=measures, since=79.9, max_wait_secs=1)
    assert isinstance(early, LookAgain)


def test_adaptive_lets_no_crowd_go_before_one_who_has_waited_too_long() -> None:
    # Idle, but not yet awake for a round trip of 20 s, so that the bound does not decide.
    views = line("a"), line("b", 50.0), line("c", *[90.0] * 9)
    rest: dict[str, Any] = {"measures": known(), "since": 85.0}
    # Over c it would be b's turn in 10 + 10 + 10 s, after 80; it may wait for 2 * 10 s and these:
    assert target_of(ask("adaptive", *views, max_wait_secs=60.1, **rest)) == "c"
    assert target_of(ask("adaptive", *views, max_wait_secs=59.9, **rest)) == "b"


def goes_to(
    *then: ModelView,
    seen_at_40: Sequence[ModelView],
    seen_at_50: Sequence[ModelView] = (),
    measures: Measures,
    since: float,
    **config: Any,
) -> str | None:
    """Where the adaptive policy goes at 90 from "a", having seen other lines at 40 and 50."""
    policy = load_policy(PolicyConfig(**config))

    def decide_at(now: float, views: Sequence[ModelView], active_since: float) -> Decision:
        models = {view.name: view for view in [line("a"), *views]}
        return policy.decide(GroupView(now, "a", active_since, models, measures))

    decide_at(40.0, seen_at_40, 0.0)
    if seen_at_50:
        decide_at(50.0, seen_at_50, 0.0)
    return target_of(decide_at(90.0, then, since))


def test_adaptive_lets_others_go_first_while_there_is_time_for_it() -> None:
    # Two others had older requests when b's came: it may wait for 40 + 3 * 2 * 10 s.
    then = line("b", 40.0), line("c", *[80.0] * 9)
    older = line("d", 39.0), line("e", 39.0)
    rest: dict[str, Any] = {"measures": known(), "since": 75.0, "max_wait_secs": 40}
    assert goes_to(*then, seen_at_40=[then[0], *older], **rest) == "c"
    assert goes_to(*then, seen_at_40=then[:1], **rest) == "b"


def test_adaptive_heeds_who_came_later_and_may_wait_for_fewer_turns() -> None:
    # The first of b's line came behind two others, and may wait for 40 + 3 * 20 s; the second at
    # 50, when these were gone, for 40 + 20 s: 20 more than the switch takes, as much as a turn of c.
    first, both, crowd = line("b", 40.0), line("b", 40.0, 50.0), line("c", *[80.0] * 19)
    older = line("d", 39.0), line("e", 39.0)
    rest: dict[str, Any] = {"measures": known(), "since": 75.0}
    seen: dict[str, Any] = {"seen_at_40": [first, *older]}
    assert goes_to(both, crowd, **seen, **rest, max_wait_secs=40) == "c"
    assert goes_to(both, crowd, **seen, seen_at_50=[both], **rest, max_wait_secs=49.9) == "b"
    assert goes_to(both, crowd, **seen, seen_at_50=[both], **rest, max_wait_secs=50) == "c"
    # It may wait for as many turns if the others still stand there.
    still = [both, *older]
    assert goes_to(both, crowd, **seen, seen_at_50=still, **rest, max_wait_secs=40) == "c"
    # And it may if the first has left the line.
    second = line("b", 50.0)
    at_50: dict[str, Any] = {"seen_at_50": [both]}
    assert goes_to(second, crowd, **seen, **at_50, **rest, max_wait_secs=49.9) == "b"


def test_adaptive_heeds_the_one_with_the_least_time_not_the_oldest() -> None:
    # b came behind two others, d at 45 behind b alone: it may wait for 35 + 2 * 20 s, until 120.
    # That is 20 s more than the switch takes, as much as a turn of c; b has 15 s more.
    b, d, crowd = line("b", 40.0), line("d", 45.0), line("c", *[80.0] * 19)
    older = line("e", 39.0), line("c", 39.0)
    rest: dict[str, Any] = {"measures": known(models="abcd"), "since": 75.0}
    assert goes_to(b, crowd, seen_at_40=[b, *older], **rest, max_wait_secs=34.9) == "c"
    assert goes_to(b, d, crowd, seen_at_40=[b, *older], **rest, max_wait_secs=34.9) == "d"
    assert goes_to(b, d, crowd, seen_at_40=[b, *older], **rest, max_wait_secs=35) == "c"


def test_adaptive_goes_to_the_one_with_the_least_time_if_the_overdue_would_make_it_late() -> None:
    # b is overdue, and would keep the GPU for 10 + 30 + 10 s; d, not overdue yet, may wait for 33.
    b, d = line("b", 40.0), line("d", 45.0)
    older = line("e", 39.0), line("c", 39.0)
    rest: dict[str, Any] = {"measures": known(models="abcd", busy="a"), "since": 60.0}
    rest |= {"max_wait_secs": 48, "min_active_secs": 30}
    assert goes_to(b, d, seen_at_40=[b, *older], **rest) == "d"


def test_policies_say_why_they_stay() -> None:
    def why(policy: str, *views: ModelView, **rest: Any) -> str:
        decision = ask(policy, *views, **rest)
        assert not isinstance(decision, SwitchTo)
        return decision.why

    waits, busy = line("b", 99.9), line("a", in_flight=1)
    failed = line("b", 90.0, retry_at=130.0)
    short: dict[str, Any] = {"since": 98.0, "min_active_secs": 5}
    for policy in POLICIES:
        assert why(policy, line("a"), line("b")) == "", "nobody waits"
        assert "is not due" in why(policy, line("a"), failed, active=None)
    for policy in ("fifo", "exhaustive", "time_slice", "adaptive"):
        measures = known()
        measures.note_arrival("a", 99.0)
        assert "min_active_secs" in why(policy, line("a"), waits, measures=measures, **short)
    for policy in ("exhaustive", "time_slice"):
        assert why(policy, busy, waits) == "it still has work"
    assert "worth the switch" in why("cost_aware", busy, waits, measures=known(), since=95.0)
    assert "leaving would cost" in why("adaptive", line("a"), waits, measures=known(busy="a"))
    batch = known()
    batch.note_served("a", 10, 1.0)
    assert "hardly delays" in why("adaptive", line("a", in_flight=9), waits, measures=batch)
    assert "policy.gate" in why("adaptive", line("a", backend_queued=3), waits, measures=known())
    late = line("b", 80.0)
    turn: dict[str, Any] = {"measures": known(busy="a", drain_s=5), "since": 95.0}
    assert "has just begun" in why("adaptive", busy, late, max_wait_secs=1, **turn)


def test_adaptive_knows_how_long_drains_of_so_many_take() -> None:
    # One request takes 5 s to drain, or 10; eight have taken 40. It may wait for 1 + 20 + 40 s.
    measures = known(busy="a")
    measures.note_drained("a", 1, 5)
    measures.note_drained("a", 8, 40)
    rest: dict[str, Any] = {"measures": measures, "since": 85.0, "max_wait_secs": 1}
    assert ask("adaptive", line("a", in_flight=1), line("b", 60.0), **rest) == LookAgain(101.0)
    assert target_of(ask("adaptive", line("a", in_flight=8), line("b", 60.0), **rest)) == "b"
    # Over c it is b's turn 20 s later, and when c has drained; b may wait for 50 + 20 + 40 s.
    for c_takes_s, goes in ((5, "c"), (5.1, "b")):
        measures = known()
        measures.note_drained("b", 1, 40)
        measures.note_drained("c", 19, c_takes_s)
        views = line("a"), line("b", 50.0), line("c", *[80.0] * 19)
        rest = {"measures": measures, "since": 85.0, "max_wait_secs": 30}
        assert target_of(ask("adaptive", *views, **rest)) == goes


@pytest.mark.parametrize(
    ("frozen", "config"),
    [({}, {"min_active_secs": 60}), ({"freezes": True, "in_flight": 1}, {"max_wait_secs": 9})],
)
def test_adaptive_knows_how_long_a_turn_lasts(
    frozen: dict[str, Any], config: dict[str, Any]
) -> None:
    # Both have waited for too long; b may wait until 96, and c would stay for 60 or for 20 s. With
    # frozen requests b may wait for two such stays, too.
    crowd = [39.5] * 9
    rest: dict[str, Any] = {"measures": known(2.0), "since": 0.0, "max_wait_secs": 49}
    b, older = line("b", 39.0), line("d", 38.0)
    short, long = line("c", *crowd), line("c", *crowd, **frozen)
    assert goes_to(b, short, seen_at_40=[older, b, short], **rest) == "c"
    assert goes_to(b, long, seen_at_40=[older, b, long], **rest | config) == "b"


def test_adaptive_looks_again_when_a_failed_model_may_be_tried() -> None:
    # At 0.1 a second, 16 s of suffering are enough to close: b's line will have them in 5.3 s.
    measures = known()
    for number in range(16):
        measures.note_arrival("a", 10.0 * number - 60)
    failed = line("c", 99.0, retry_at=100.4)
    busy = ask("adaptive", line("a"), line("b", 99.0), measures=measures)
    assert isinstance(busy, LookAgain)
    assert busy.at > 100.4
    decision = ask("adaptive", line("a"), line("b", 99.0), failed, measures=measures)
    assert decision == LookAgain(100.4)


def test_adaptive_ends_a_turn_early_for_one_who_would_be_late() -> None:
    # With a drain of 5 s it may wait for 1 + 20 + 5 s, and 5 + 10 are left until it is let in.
    measures = known(busy="a", drain_s=5)
    rest: dict[str, Any] = {"measures": measures, "since": 85.0, "max_wait_secs": 1}
    busy = line("a", in_flight=1)
    assert ask("adaptive", busy, line("b", 90.0), **rest) == LookAgain(101.0)
    assert target_of(ask("adaptive", busy, line("b", 89.0), **rest)) == "b"
    # But not before it has been awake for as long as the switch takes.
    rest["since"] = 95.0
    assert target_of(ask("adaptive", busy, line("b", 80.0), **rest)) is None
    rest["since"] = 90.0
    assert target_of(ask("adaptive", busy, line("b", 80.0), **rest)) == "b"


def test_adaptive_does_not_leave_a_backend_that_has_a_line_of_its_own() -> None:
    full = line("a", in_flight=9, backend_queued=3)
    assert ask("adaptive", full, line("b", 50.0), measures=known()) == LookAgain(100.25)
    almost = ask("adaptive", full, line("b", 59.9), measures=known(), max_wait_secs=40.2)
    assert isinstance(almost, LookAgain)
    assert almost.at == pytest.approx(100.1)
    assert (
        target_of(ask("adaptive", full, line("b", 59.0), measures=known(), max_wait_secs=40)) == "b"
    )


def test_adaptive_soon_notices_that_a_burst_is_over() -> None:
    measures = known()
    for number in range(16):
        measures.note_arrival("a", 100 + number / 1000)
    decision = ask("adaptive", line("a"), line("b", 100.02), measures=measures, now=100.03)
    assert isinstance(decision, LookAgain)
    assert decision.at < 101


# ---- All of them, whatever they see ----

times = st.one_of(st.sampled_from([0.0, 1.0, 99.999, 100.0]), st.floats(0, 100))


@st.composite
def views(draw: st.DrawFn, name: str) -> ModelView:
    arrivals = draw(st.lists(times, max_size=5))
    return line(
        name,
        *arrivals,
        in_flight=draw(st.integers(0, 3)),
        backend_queued=draw(st.integers(0, 1)),
        retry_at=draw(st.sampled_from([float("-inf"), 0.0, 100.0, 100.001, 160.0])),
        has_slots=draw(st.booleans()),
    )


@st.composite
def measured(draw: st.DrawFn) -> Measures:
    measures = Measures()
    names = st.sampled_from("abc")
    seconds = st.sampled_from([0.0, 1e-3, 1.0, 40.0, 600.0])
    for source, target, cost_s in draw(st.lists(st.tuples(names, names, seconds), max_size=5)):
        measures.costs.record(source, target, cost_s)
    for model, now in draw(st.lists(st.tuples(names, times), max_size=20)):
        measures.note_arrival(model, now)
    for model, in_flight, took_s in draw(
        st.lists(st.tuples(names, st.integers(1, 9), seconds), max_size=5)
    ):
        measures.note_served(model, in_flight, took_s)
    for model, took_s in draw(st.lists(st.tuples(names, seconds), max_size=3)):
        measures.note_drained(model, 1, took_s)
        measures.note_closed(model, 0.0)
        measures.note_open(model, took_s, 0.0)
    return measures


@given(
    policy=st.sampled_from(sorted(POLICIES)),
    models=st.tuples(views("a"), views("b"), views("c")),
    measures=measured(),
    active=st.sampled_from([None, "a", "b"]),
    since=times,
    max_wait_secs=st.sampled_from([1e-3, 1.0, 50.0, 1e6]),
    min_active_secs=st.sampled_from([0.0, 5.0, 1e6]),
)
def test_every_decision_can_be_followed(
    policy: str,
    models: tuple[ModelView, ...],
    measures: Measures,
    active: str | None,
    since: float,
    max_wait_secs: float,
    min_active_secs: float,
) -> None:
    decision = ask(
        policy,
        *models,
        measures=measures,
        active=active,
        since=since,
        max_wait_secs=max_wait_secs,
        min_active_secs=min_active_secs,
    )
    waiting_elsewhere = [view for view in models if view.queued and view.name != active]
    ready = [view.name for view in waiting_elsewhere if view.retry_at <= 100]
    match decision:
        case SwitchTo(model):
            assert model in ready
        case LookAgain(at):
            assert 100 < at < float("inf")
        case Stay():
            assert not waiting_elsewhere


class CountedAges(Ages, frozen=True):
    """Counts the questions that it is asked, and cannot be walked over."""

    questions: list[str] = field(default_factory=list)

    @property
    def asked(self) -> int:
        return len(self.questions)

    def total(self, now: float) -> float:
        self.questions.append("total")
        return super().total(now)

    def squares(self, then: float) -> float:
        self.questions.append("squares")
        return super().squares(then)

    def squares_reach(self, wanted: float) -> float:
        self.questions.append("squares_reach")
        return super().squares_reach(wanted)


@pytest.mark.parametrize("policy", POLICIES)
@pytest.mark.parametrize("waiting_each", [1, 125])
def test_a_decision_costs_the_same_however_many_wait(policy: str, waiting_each: int) -> None:
    models = []
    for name in "abcdefgh":
        ages = Ages()
        for _ in range(waiting_each):
            ages = ages.plus(100.0)
        counted = CountedAges(*astuple(ages))
        models.append(ModelView(name, 4, waiting_each, 100.0, ages=counted))
    measures = known(models="abcdefgh", busy="a")
    measures.note_served("a", 5, 1e-6)
    ask(policy, *models, measures=measures)
    asked = [view.ages.asked for view in models if isinstance(view.ages, CountedAges)]
    assert len(asked) == 8
    assert max(asked) <= 3  # one for each part of the rule


def test_options_that_a_policy_does_not_have_are_mistakes() -> None:
    with pytest.raises(ConfigError) as wrong:
        load_policy(PolicyConfig(name="cost_aware", options={"coalesce_sec": 3}))
    assert "cost_aware has no 'coalesce_sec', did you mean 'coalesce_secs'?" in str(wrong.value)
    with pytest.raises(ConfigError, match=r"policy\.options: fifo has no 'x' \(it takes none\)"):
        load_policy(PolicyConfig(name="fifo", options={"x": 1}))


# ---- The interface ----


def view_of_two() -> GroupView:
    views = by_name([ModelView("a"), ModelView("b", queued=1, oldest_arrival=90.0)])
    return GroupView(100.0, "a", 0.0, views)


def test_a_policy_cannot_write_to_its_view() -> None:
    view = view_of_two()
    with pytest.raises(AttributeError):
        view.now = 0.0  # type: ignore[misc]
    with pytest.raises(AttributeError):
        view.models["b"].queued = 0  # type: ignore[misc]
    with pytest.raises(TypeError):
        view.models["c"] = ModelView("c")  # type: ignore[index]


def test_the_view_has_its_old_name_too() -> None:
    assert llmux.policy.Snapshot is GroupView


@pytest.mark.parametrize(
    ("use", "message"),
    [
        (lambda view: view.measures.costs.estimate("a", "b"), "'costs': use cost_s(), known_"),
        (lambda view: view.measures.note_arrival("a", 1), "'note_arrival': a policy only reads"),
        (lambda view: view.measures.forget("a"), "'forget': a policy only reads estimates"),
        (lambda view: view.models["a"].ages.total_reaches(1), "'total_reaches': ask total() at"),
        (lambda view: view.models["a"].ages.add(1), "'add': a view is a value"),
        (lambda view: view.measures.nonsense, "'Estimates' object has no attribute 'nonsense'"),
        (lambda view: view.models["a"].ages.nonsense, "'Ages' object has no attribute 'nonsense'"),
    ],
)
def test_what_is_gone_says_what_to_use(use: Callable[[Any], object], message: str) -> None:
    with pytest.raises(AttributeError) as gone:
        use(view_of_two())
    assert message in str(gone.value)


def test_a_switch_leaves_it_to_the_placement_what_sleeps() -> None:
    assert SwitchTo("a").evict == ()
