"""A short form of `bench.residency.slowed`."""

from __future__ import annotations

import math

import pytest

from bench.residency.slowed import Run, TakingTurns, main, systems
from llmux.simulate.backends import Job


def test_two_models_at_work_are_half_as_fast() -> None:
    gpu = TakingTurns()
    first, second = gpu.server(), gpu.server()
    first.add(Job("a", 0.0, 10.0), 0.0)
    second.add(Job("b", 4.0, 1.0), 4.0)  # 6 s of a's work are left
    assert (first.done_at, second.done_at) == (16.0, 6.0)
    second.pop(6.0)
    assert first.done_at == 11.0


def test_nine_requests_of_one_model_share_eight_slots() -> None:
    server = TakingTurns().server()
    for _ in range(9):
        server.add(Job("a", 0.0, 8.0), 0.0)
    assert server.done_at == pytest.approx(9.0)


@pytest.mark.parametrize("busy", [math.inf, 1])
def test_every_request_is_answered(busy: float) -> None:
    mean_s, p99_s = Run(systems(200, seed=1)[40], busy, "models").figures()
    assert 0 < mean_s < p99_s


def test_the_table_is_printed(capsys: pytest.CaptureFixture[str]) -> None:
    main(["--requests", "40", "--every", "12", "--jobs", "1"])
    assert "70%" in capsys.readouterr().out
