"""By when each line is to be let in: invariant 7, from what a policy sees."""

from __future__ import annotations

from msgspec.structs import replace

from llmux.policy import GroupView, ModelView
from llmux.policy.deadlines import Deadlines
from llmux.policy.estimates import Measures
from llmux.policy.scene import OneAwake

MAX_WAIT_S = 300.0


def line(name: str, first_at: float, queued: int = 1) -> ModelView:
    return ModelView(name, queued=queued, oldest_arrival=first_at)


def late_at(*seen: tuple[float, list[ModelView]], drain_s: float = 60.0) -> float:
    """When the line of "b" is to be let in, after looks at several times; switches take 10 s."""
    measures = Measures()
    for name in "abcd":
        measures.costs.record(None, name, 10.0)
    measures.note_drained("a", 1, drain_s)
    deadlines = Deadlines(MAX_WAIT_S)
    active = ModelView("a")
    for now, views in seen:
        models = {view.name: view for view in (active, *views)}
        snapshot = GroupView(now, "a", 0.0, models, measures)
        deadlines.note(snapshot)
    only = replace(snapshot, models={name: models[name] for name in ("a", "b")})
    _, slack_s = deadlines.tightest(OneAwake(only))
    return now + slack_s + 10


C, D = line("c", 5.0), line("d", 7.0)


def test_the_first_in_line_waits_for_its_own_turn_and_those_of_older_lines() -> None:
    assert late_at((20, [line("b", 20.0)])) == 20 + 300 + 80
    assert late_at((20, [C, line("b", 20.0), line("d", 21.0)])) == 20 + 300 + 2 * 80
    assert late_at((20, [C, line("b", 20.0), D])) == 20 + 300 + 3 * 80
    assert late_at((20, [C, line("b", 20.0), D]), (30, [line("b", 20.0)])) == 20 + 300 + 3 * 80


def test_one_who_came_later_may_have_fewer_turns_and_less_time() -> None:
    first = 20, [C, line("b", 20.0), D]
    assert late_at(first, (90, [line("b", 20.0, 2)])) == 90 + 300 + 80
    assert late_at(first, (90, [line("b", 20.0, 2), D])) == 90 + 300 + 2 * 80
    assert late_at(first, (200, [line("b", 20.0, 2)])) == 20 + 300 + 3 * 80  # later anyway
    assert late_at(first, (90, [line("b", 20.0, 2)]), (95, [line("b", 20.0, 3), C])) == 90 + 380


def test_only_one_who_has_come_counts() -> None:
    two = 20, [C, line("b", 20.0, 2), D]
    assert late_at(two, (90, [line("b", 20.0, 2)])) == 20 + 300 + 3 * 80
    left = 80, [C, line("b", 20.0), D]
    assert late_at(two, left, (90, [line("b", 20.0, 2)])) == 90 + 380


def test_who_stands_behind_one_who_has_left_keeps_the_time() -> None:
    seen = (20, [C, line("b", 20.0), D]), (90, [line("b", 20.0, 3)])
    # The second came at 25, unnoticed as such; the third at 90, when nobody else waited.
    assert late_at(*seen, (95, [C, line("b", 25.0, 2), D])) == 90 + 380
    assert late_at(*seen, (95, [C, line("b", 94.0, 1), D])) == 94 + 300 + 3 * 80


def test_a_line_that_was_let_in_is_forgotten() -> None:
    seen = (20, [line("b", 20.0)]), (90, [line("c", 30.0)])
    assert late_at(*seen, (95, [line("c", 30.0), line("b", 95.0)])) == 95 + 300 + 2 * 80


def test_a_line_never_noticed_is_never_late() -> None:
    assert late_at((20, [ModelView("b", queued=1)])) == float("inf")
