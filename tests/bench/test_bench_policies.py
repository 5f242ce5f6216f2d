"""The bench of the policies: what it reads and reckons, and the direction of what it finds."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import pytest

from bench.policies import PARTS, Scale, main, page, policy_names, run_all, run_and_print
from bench.policy_cases.closed import Agents
from bench.policy_cases.grids import GridCase, grid_a, grid_b
from bench.policy_cases.setup import BASELINE, OriginalFifo
from bench.policy_cases.starvation import HOT_SLOTS, StarvationCase
from bench.policy_cases.traces import TraceCase, read_traces, traces
from bench.policy_cases.waits import allowed_waits
from bench.policy_random import RandomCase
from bench.policy_report import (
    ADAPTIVE,
    Results,
    Summary,
    WaitTargets,
    judge_waits,
    report_waits,
    summarize,
)
from llmux.policy import POLICIES, ModelView, Snapshot, Stay, SwitchTo
from llmux.simulate import Arrival, Outcome
from llmux.simulate.backends import Job


def test_adaptive_waits_much_less_than_the_original_on_a_handful_of_configurations() -> None:
    cases = grid_a(requests=800, seed=1)[2::37] + grid_b(requests=800, seed=1)[3::61]
    results = run_all("test", cases, [BASELINE, ADAPTIVE], jobs=1)
    assert summarize(results, ADAPTIVE).mean < 0.8
    assert summarize(results, BASELINE).mean == pytest.approx(1)


def test_the_grids_are_whole_and_each_configuration_has_a_seed_of_its_own() -> None:
    for grid, size in ((grid_a(10, seed=1), 180), (grid_b(10, seed=1), 216)):
        assert len({case.seed for case in grid}) == len({str(case) for case in grid}) == size


def test_a_quick_run_takes_the_same_few_of_the_whole_grid() -> None:
    few = Scale(quick=True).grid(grid_a)
    assert few == Scale(quick=True).grid(grid_a)
    assert len(few) == 12
    assert {str(case) for case in few} < {str(case) for case in grid_a(1, seed=1)}


def test_the_original_gives_up_tries_for_the_active_model_and_for_empty_lines() -> None:
    fifo = OriginalFifo()
    views = {
        name: ModelView(name, queued=queued) for name, queued in (("a", 1), ("b", 0), ("c", 1))
    }
    snapshot = Snapshot(now=1.0, active="a", active_since=0.0, models=views)
    for model in ("a", "b", "c"):
        fifo.note_queued(model)
    assert fifo.decide(snapshot) == SwitchTo("c")
    assert fifo.decide(snapshot) == Stay()


# ---- Traces ----

LENGTHS = "TIMESTAMP,ContextTokens,GeneratedTokens\n2023-11-16 18:00:0{at}.5000000,1000,{output}\n"


def test_services_without_a_column_for_models_are_one_model_each(tmp_path: Path) -> None:
    files = (tmp_path / "code.csv", tmp_path / "chat.csv")
    files[0].write_text(LENGTHS.format(at=2, output=20))
    files[1].write_text(LENGTHS.format(at=1, output=100))
    chat, code = read_traces(files, None)
    assert (chat.model, code.model) == ("chat", "code")
    assert code.at - chat.at == 1
    assert (chat.work_s, code.work_s) == pytest.approx((0.2 + 1.5, 0.2 + 0.3))


def test_a_trace_is_stretched_to_its_load(tmp_path: Path) -> None:
    path = tmp_path / "trace.csv"
    path.write_text("arrival_s,model,service_s\n10,a,4\n20,b,8\n30,a,4\n99,c,1\n")
    case = TraceCase("some", 1.0, load=0.5, files=(path,), requests=3)
    # 16 s of work for 8 slots, half of which are to be busy.
    assert case.arrivals() == [Arrival(0, "a", 4), Arrival(2, "b", 8), Arrival(4, "a", 4)]


def test_traces_that_are_not_there_are_left_out_with_a_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert traces(tmp_path, None) == []
    run_and_print(options(only=["traces"], traces=tmp_path))
    assert "traces: nothing in" in capsys.readouterr().out


HEAD = "arrival_s,model,service_s\n"


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (HEAD, ": needs two requests at different times"),
        (HEAD + "1,a,2\n", ": needs two requests at different times"),
        (HEAD + "1,a,2\n1,b,2\n", ": needs two requests at different times"),
        (HEAD + "1,a,0\n2,b,0\n", ": needs two requests at different times"),
        (HEAD + "1,a,2\n2,b\n", ":3: service_s is ''"),
        (HEAD + "1,a,2\nnan,b,1\n", ":3: arrival_s is 'nan'"),
        ("when\n1\n", ":1: there is no column TIMESTAMP"),
        (LENGTHS.format(at="x", output=5), ":2: Invalid isoformat string"),
        (LENGTHS.format(at=1, output=-5), ":2: a length of -5 tokens"),
    ],
)
def test_a_bad_trace_is_a_mistake_in_one_line_before_anything_is_run(
    content: str, message: str, tmp_path: Path
) -> None:
    path = tmp_path / "servegen_4models_24h_load0.3_seed0.csv"
    path.write_text(content)
    with pytest.raises(SystemExit) as ended:
        run_and_print(options(traces=tmp_path))
    assert str(ended.value.code).startswith(f"error: {path}{message}")
    assert "\n" not in str(ended.value.code)


# ---- Closed loop and starvation ----


def test_agents_that_stay_ask_the_same_model_again() -> None:
    job = Job("2", 0.0, 1.0)
    staying, roaming = Agents(1.0, 20.0, seed=1), Agents(0.0, 20.0, seed=1)
    assert {staying.follow(job, 9.0).model for _ in range(20)} == {"2"}
    assert len({roaming.follow(job, 9.0).model for _ in range(20)}) == 4


def test_who_stands_behind_other_models_may_wait_longer() -> None:
    outcome = Outcome(["a", "b", "c"])
    outcome.longest_drain_s = 5.0
    for model, arrived_at, admitted_at in (
        (0, 1.0, 9.0),
        (1, 2.0, 3.0),
        (2, 4.0, 8.0),
        (0, 5.0, 9.0),
    ):
        job = Job(outcome.names[model], arrived_at, 0.0)
        job.admitted_at = admitted_at
        outcome.add(model, job, admitted_at)
    # Each model: two switches of 10 s and the drain of 5 s. The third has "a" before it, and the
    # fourth "c"; "b" is served by then, and a line of one's own counts once.
    assert allowed_waits(outcome, 300.0, 10.0) == [325.0, 350.0, 350.0, 350.0]


def test_the_hot_model_leaves_room_and_cold_ones_are_rare() -> None:
    arrivals = list(StarvationCase(10.0, hours=1.0, seed=1).arrivals())
    hot = [arrival for arrival in arrivals if arrival.model == "hot"]
    assert len(arrivals) - len(hot) < 40
    assert sum(arrival.work_s for arrival in hot) / (3600 * HOT_SLOTS) == pytest.approx(
        0.7, abs=0.05
    )


BOUNDED = [name for name in POLICIES if name != "fifo"]
CROWDED = [
    "N 4, 10 s, one_hot, bursty, load 0.7",
    "N 8, 2 s, zipf, poisson, load 0.95",
    "N 8, 10 s, zipf, poisson, load 0.85",
    "N 8, 60 s, zipf, poisson, load 0.7",
    "N 8, 60 s, one_hot, bursty, load 0.3",
]


@pytest.mark.parametrize("policy", BOUNDED)
@pytest.mark.parametrize(
    "name", [CROWDED[0], *(pytest.param(name, marks=pytest.mark.slow) for name in CROWDED[1:])]
)
def test_nobody_starves_behind_a_crowd(name: str, policy: str) -> None:
    # Each had waits beyond invariant 7 while a model with a longer line could go before one whose
    # first request had waited for too long.
    (case,) = [case for case in grid_a(8000, seed=1) if str(case) == name]
    assert case.run(policy)["excess"] <= 0


@pytest.mark.parametrize("seed", [98, 976, 816, 774, 631])
def test_nobody_starves_who_came_when_fewer_waited_elsewhere(seed: int) -> None:
    # Each had waits beyond invariant 7, by up to 415 s, while only the first in line had a deadline.
    assert RandomCase(seed).run("adaptive")["excess"] <= 0


# ---- Reports ----


def test_a_target_is_met_or_short() -> None:
    found = Summary(mean=0.6, p99=0.7, worst=1.05, worst_case="there", harmed=0)
    verdicts = judge_waits("grid", found, WaitTargets(0.65, 0.6, 1.1))
    assert [verdict.is_met for verdict in verdicts] == [True, False, True]


def test_ratios_are_told_with_the_worst_place_and_by_axis() -> None:
    good, bad = (
        GridCase(models, 2.0, "zipf", "poisson", 0.5, 8, 8.0, 10, seed=1) for models in (2, 4)
    )
    base, half, twice = (
        {"mean": s, "p99": s, "max": s, "excess": s - 15} for s in (10.0, 5.0, 20.0)
    )
    results: Results = {
        good: {BASELINE: base, ADAPTIVE: half},
        bad: {BASELINE: base, ADAPTIVE: twice},
    }
    report = report_waits("grid", results, WaitTargets(0.65, 0.6))
    found = report.data["summary"][ADAPTIVE]
    assert found.mean == pytest.approx(1, rel=1e-3)
    assert (found.harmed, found.worst_case) == (1, str(bad))
    assert report.verdicts[-1].row() == [
        "grid: every wait within invariant 7", "-5.00 s to spare", "SHORT"
    ]  # fmt: skip
    assert "models 4" in page(report, verbose=True)
    assert "models 4" not in page(report, verbose=False)


@pytest.mark.parametrize("part", ["closed", "starvation", "random"])
def test_a_part_is_run_printed_and_saved(
    part: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "new" / "saved.json"
    run_and_print(options(only=[part], quick=True, save=path))
    printed = capsys.readouterr().out
    assert "target of adaptive" in printed
    assert '"seed": 1' in path.read_text()


def options(**given: object) -> argparse.Namespace:
    usual = {
        "only": [*PARTS], "policies": [ADAPTIVE], "requests": None, "quick": False, "seed": 1,
        "jobs": 1, "save": None, "traces": Path("nowhere"), "verbose": False,
    }  # fmt: skip
    return argparse.Namespace(**{**usual, **given})


def test_unknown_policies_are_refused() -> None:
    assert policy_names("original,adaptive,unbounded") == ["adaptive", "unbounded"]
    with pytest.raises(argparse.ArgumentTypeError, match="'best' is none of"):
        policy_names("best")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ("--jobs 0", "--jobs: '0' is not a whole number from 1 on"),
        ("--requests -5", "--requests: '-5' is not a whole number from 2 on"),
        ("--requests 0", "--requests: '0' is not a whole number from 2 on"),
        ("--requests 1", "--requests: '1' is not a whole number from 2 on"),
        ("--requests many", "--requests: 'many' is not a whole number from 2 on"),
    ],
)
def test_numbers_out_of_range_are_refused(
    arguments: str,
    message: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(sys, "argv", ["policies", *arguments.split()])
    with pytest.raises(SystemExit) as ended:
        main()
    assert ended.value.code == 2
    assert message in capsys.readouterr().err


def test_a_directory_to_save_to_is_refused_before_anything_is_run(tmp_path: Path) -> None:
    with pytest.raises(SystemExit, match=r"error: .*Is a directory"):
        run_and_print(options(save=tmp_path))
