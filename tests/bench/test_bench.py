"""The bench's tables and its reading of results; nothing is measured here."""

from __future__ import annotations

import msgspec
import pytest

from bench import decision
from bench.decision import SHARES, SITUATIONS, WAITING, decision_in
from bench.echo import ANSWER, ANSWER_BYTES
from bench.native import Load
from bench.proxy.figures import Figure, summarize
from bench.proxy.measure import DIRECT
from bench.proxy.report import headroom, report
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


def test_a_line_of_switches_shows_what_is_added_to_the_hooks() -> None:
    cells = line(1, [Switch(whole_s=0.010, hooks_s=0.004)] * 3)
    assert cells[:6] == ["1", "3", "10.00", "10.00", "4.00", "6.00"]
    assert percentile([1.0, 2.0, 3.0], 50) == 2.0


def test_the_echo_answers_what_the_backend_answers() -> None:
    assert len(ANSWER) == ANSWER_BYTES == 300


def test_decisions_of_each_kind_are_timed(capsys: pytest.CaptureFixture[str]) -> None:
    for share in SHARES:
        stays, closes, overdue = (decision_in(how, 8, share, WAITING)() for how in SITUATIONS)
        assert isinstance(stays, LookAgain)
        assert isinstance(closes, SwitchTo)
        assert closes.rule == "close"
        assert isinstance(overdue, LookAgain)
    decision.main(["--models", "2", "3", "--waiting", "5", "--repeats", "1", "--times", "1"])
    rows = [row.split() for row in capsys.readouterr().out.splitlines()]
    assert [len(row) for row in rows if row[:1] in (["2"], ["3"])] == [7, 7]
