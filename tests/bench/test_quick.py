"""The comparison of two commits; nothing is measured here."""

from __future__ import annotations

from pathlib import Path

import pytest

from bench.contestants import check_source
from bench.processes import CannotRun
from bench.proxy.samples import Round
from bench.proxy.workloads import ROWS
from bench.quick import BASE, HEAD, ROOT, checked_out, git, line, parse_arguments, verdict
from tests.bench.test_bench import sample

REQUESTS = next(row for row in ROWS if row.key == "requests")


def a_round(base: int, head: int) -> Round:
    return {"posts": {BASE: sample(base, 100.0), HEAD: sample(head, 100.0)}}


def test_a_line_has_both_medians_their_spread_and_the_ratio() -> None:
    rounds = [a_round(100, 110), a_round(200, 260), a_round(120, 144)]
    assert line(REQUESTS, rounds) == [
        "requests/s, 16 connections",
        "60.00", "50.00 to 100", "72.00", "55.00 to 130", "1.20", "1.10 to 1.30", "higher",
    ]  # fmt: skip


def test_a_figure_differs_if_it_does_in_every_round() -> None:
    assert verdict([1.01, 1.2]) == "higher"
    assert verdict([0.9, 0.99]) == "lower"
    assert verdict([0.9, 1.01]) == "no difference shown"


def test_figures_that_were_not_counted_have_no_line() -> None:
    instructions = next(row for row in ROWS if row.key == "request_instructions")
    assert line(instructions, [a_round(1, 1)]) == []


def test_the_base_is_the_commit_before_unless_another_is_named() -> None:
    assert parse_arguments([]).base == "HEAD~1"
    assert parse_arguments(["--base", "v1"]).base == "v1"


def test_a_revision_is_checked_out_and_removed(tmp_path: Path) -> None:
    folder = tmp_path / "source"
    with checked_out("HEAD", folder) as source:
        check_source(source)
        assert str(source) in git("worktree", "list")
    assert not folder.exists()
    assert str(folder) not in git("worktree", "list")


def test_an_unknown_revision_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(CannotRun, match="worktree"), checked_out("nowhere", tmp_path / "source"):
        pass


def test_a_tree_without_llmux_of_its_own_is_an_error(tmp_path: Path) -> None:
    check_source(ROOT)
    with pytest.raises(CannotRun, match="imports llmux from"):
        check_source(tmp_path)
