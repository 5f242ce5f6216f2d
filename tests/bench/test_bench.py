"""The bench's tables and its reading of results; nothing is measured here."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import msgspec
import pytest
import yaml

from bench import decision
from bench.contestants import LLAMA_SWAP, Stage, starters
from bench.decision import (
    AWAKE,
    SHARES,
    SITUATIONS,
    WAITING,
    WITH_ROOM,
    decision_in,
    decision_with_room,
)
from bench.echo import ANSWER, ANSWER_BYTES
from bench.native import Load
from bench.processes import CannotRun
from bench.proxy.figures import Figure, summarize
from bench.proxy.measure import DIRECT
from bench.proxy.report import headroom, report, table
from bench.proxy.samples import Sample
from bench.proxy.targets import TARGETS, Target
from bench.switch import Switch, line, percentile
from bench.table import number, render
from llmux.policy import LookAgain, SwitchTo

PRINTED = (
    b'{"requests": 100, "errors": 0, "reconnects": 0, "chunks": 0.0, "seconds": 2.0, '
    b'"latency_p50_us": 162, "latency_p99_us": 211, "first_chunk_p50_us": 162, '
    b'"first_chunk_p99_us": 211, "gap_p50_us": null, "gap_p99_us": null}'
)


def sample(requests: int, cpu_us: float = 0.0) -> Sample:
    load = msgspec.json.decode(PRINTED, type=Load)
    return Sample(msgspec.structs.replace(load, requests=requests), cpu_us)


def test_columns_are_aligned_and_the_first_is_text() -> None:
    table = render([("name", "n"), ("a", "1"), ("long name", "1,000")])
    assert table.splitlines() == [
        "name           n",
        "---------  -----",
        "a              1",
        "long name  1,000",
    ]


@pytest.mark.parametrize(
    ("value", "text"), [(None, "-"), (0.98, "0.980"), (1.5, "1.50"), (69000.4, "69,000")]
)
def test_numbers_have_three_figures(value: float | None, text: str) -> None:
    assert number(value) == text


def test_figures_are_medians_and_ratios_are_medians_of_each_rounds_ratio() -> None:
    rounds = [
        {"posts": {DIRECT: sample(900), "nginx": sample(nginx), "llmux": sample(llmux, 50.0)}}
        for nginx, llmux in ((100, 50), (200, 60), (100, 40))
    ]
    figures = summarize(rounds)
    assert figures["requests"]["llmux"] == Figure(25.0, 0.4)
    assert figures["request_cpu"][DIRECT] == Figure(None, None)
    assert "4.50" not in headroom(figures)
    assert "9.00 x the best proxy (nginx)" in headroom(figures)
    assert "25.00 (0.400)" in report(figures, rounds)


def test_a_target_is_judged_by_its_ratio_or_against_another_contestant() -> None:
    figures = {"requests": {"llmux": Figure(30.0, 0.3), "echo": Figure(10.0, 0.1)}}
    assert Target("t", "requests", "llmux", 0.25, "nginx").judge(figures)[1:] == ("0.300", "ok")
    assert Target("t", "requests", "llmux", 5, "echo").judge(figures)[1:] == ("3.00", "SHORT")
    assert TARGETS[2].judge(figures)[1:] == ("-", "not measured")


def test_the_spread_of_rounds_is_shown_below_the_medians() -> None:
    rounds = [
        {"posts": {DIRECT: sample(900), "nginx": sample(100), "llmux": sample(llmux, 50.0)}}
        for llmux in (50, 60, 40)
    ]
    figures = summarize(rounds)
    assert figures["requests"]["llmux"].spread() == "20.00 to 30.00"
    assert figures["requests"]["nginx"].spread() == "50.00 to 50.00"
    lines = table(figures)
    assert lines[0] == ["median (ratio to nginx)", DIRECT, "nginx", "llmux"]
    assert lines[2] == ["  min to max", "450 to 450", "50.00 to 50.00", "20.00 to 30.00"]
    assert Target("t", "requests", "llmux", 0.25, "nginx").line(figures) == (
        "t", "0.500", "0.400 to 0.600", "ok",
    )  # fmt: skip


def test_ratios_to_any_contestant_are_those_of_each_round() -> None:
    rounds = [
        {"posts": {DIRECT: sample(900), "rust": sample(rust), "llmux": sample(llmux)}}
        for rust, llmux in ((100, 50), (200, 60), (100, 40))
    ]
    line = Target("t", "requests", "llmux", 0.5, "rust").line(summarize(rounds))
    assert line == ("t", "0.400", "0.300 to 0.500", "SHORT")
    assert table(summarize(rounds))[0][0] == "median (nginx took no part)"


def test_instructions_have_a_line_where_they_were_counted() -> None:
    counted = replace(sample(100, 50.0), instructions=2e6)
    rounds = [{"posts": {DIRECT: sample(900), "nginx": counted, "llmux": counted}}]
    assert summarize(rounds)["request_instructions"]["llmux"] == Figure(20.0, 1.0)
    titles = [line[0] for line in table(summarize(rounds))]
    assert "thousand instructions per request" in titles
    rounds = [{"posts": {DIRECT: sample(900), "llmux": sample(100, 50.0)}}]
    titles = [line[0] for line in table(summarize(rounds))]
    assert "thousand instructions per request" not in titles


def test_binaries_that_are_given_take_part(tmp_path: Path) -> None:
    assert "rust" not in starters()
    found = starters(rust=tmp_path / "llmux", llama_swap=tmp_path / "llama-swap")
    assert list(found)[-2:] == ["rust", "llama-swap"]
    stage = Stage(tmp_path, 8001, 1000)
    with pytest.raises(CannotRun, match="llama-swap is no program"):
        found["llama-swap"](stage)
    config = yaml.safe_load(stage.write("llama-swap.yaml", LLAMA_SWAP).read_text())
    assert config["models"]["m"]["concurrencyLimit"] == 100_000
    assert config["models"]["m"]["proxy"] == "http://127.0.0.1:8001"


def test_a_line_of_switches_shows_what_is_added_to_the_hooks() -> None:
    cells = line(1, [Switch(whole_s=0.010, hooks_s=0.004)] * 3)
    assert cells[:6] == ["1", "3", "10.00", "10.00", "4.00", "6.00"]
    assert percentile([1.0, 2.0, 3.0], 50) == 2.0


def test_the_echo_answers_what_the_backend_answers() -> None:
    assert len(ANSWER) == ANSWER_BYTES == 300


@pytest.mark.parametrize("awake", AWAKE)
def test_decisions_in_shared_memory_are_of_the_kinds_named(awake: int) -> None:
    stays, closes = (decision_with_room(how, awake, WAITING)() for how in WITH_ROOM)
    assert isinstance(stays, LookAgain)
    assert isinstance(closes, SwitchTo)
    assert closes.rule == "close"
    assert closes.evict


def test_decisions_of_each_kind_are_timed(capsys: pytest.CaptureFixture[str]) -> None:
    for share in SHARES:
        stays, closes, overdue = (decision_in(how, 8, share, WAITING)() for how in SITUATIONS)
        assert isinstance(stays, LookAgain)
        assert isinstance(closes, SwitchTo)
        assert closes.rule == "close"
        assert isinstance(overdue, LookAgain)
    short = ["--waiting", "5", "--repeats", "1", "--times", "1"]
    decision.main(["--models", "2", "3", "--awake", "5", *short])
    rows = [row.split() for row in capsys.readouterr().out.splitlines()]
    assert [len(row) for row in rows if row[:1] == ["5"]] == [3]
    assert [len(row) for row in rows if row[:1] in (["2"], ["3"])] == [7, 7]
