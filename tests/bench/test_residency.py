"""A short form of `bench.residency`."""

from __future__ import annotations

from pathlib import Path
from statistics import geometric_mean

import pytest

from bench.residency import live
from bench.residency.__main__ import main
from bench.residency.cases import Run, grid
from bench.residency.report import ratios
from llmux.config import parse_config
from llmux.switching.memory import GroupMemory, memory_of

SYSTEMS = grid(400, seed=1)[::23]  # in each axis, all of its values


def test_the_rule_beats_lru_in_a_part_of_the_grid() -> None:
    runs = [Run(system, name, 1) for system in SYSTEMS for name in ("lru", "adaptive", "alone")]
    found = {run: run.figures() for run in runs}
    to_lru = ratios(found, SYSTEMS, "adaptive", 1, "mean")
    # In runs as short as these, the first wakes of all models count for much.
    assert geometric_mean(to_lru) < 0.75
    assert max(to_lru) < 1.4
    to_alone = ratios(found, SYSTEMS, "adaptive", 1, "mean", to="alone")
    assert geometric_mean(to_alone) < 0.45


def test_the_table_is_printed(capsys: pytest.CaptureFixture[str]) -> None:
    main(["--quick", "--requests", "60", "--hooks", "1", "--jobs", "1", "--policies", "adaptive"])
    assert "12 systems, hooks at a time: 1" in capsys.readouterr().out


# ---- Live ----


def memory(way: str) -> GroupMemory:
    config = parse_config(live.config_of(way, range(20_000, 20_006)), directory=Path())
    found = memory_of(config, "default")
    assert found is not None
    return found


@pytest.mark.parametrize(
    ("events", "found"),
    [
        (["chat wakes", "chat awake", "code wakes", "code awake"], ""),
        (["chat wakes", "code wakes"], ""),
        (["chat wakes", "draft wakes"], "draft wakes while chat wakes"),
        (["chat wakes", "chat awake", "vision wakes"], "vision wakes: {"),
        (["chat wakes", "chat awake", "chat sleeps", "chat asleep", "vision wakes"], ""),
        (["chat wakes", "chat awake", "chat sleeps", "vision wakes"], "vision wakes while chat"),
        (["chat wakes", "chat sleeps"], "chat sleeps while chat wakes"),
    ],
)
def test_books_by_the_log_of_hooks(events: list[str], found: str) -> None:
    pairs = [(model, event) for model, event in map(str.split, events)]
    broken = list(live.broken(pairs, memory("one on each resource")))
    assert [each[: len(found)] for each in broken[:1]] == ([found] if found else [])


def test_what_hooks_touch_is_what_models_name() -> None:
    assert memory("one hook at a time").touches["chat"] == {"gpu0", "gpu1"}
    assert memory("one on each resource").touches["chat"] == {"gpu0"}
    assert memory("all hooks overlap").overlapping_hooks


@pytest.mark.slow
@pytest.mark.parametrize("way", live.WAYS)
def test_live_figures_are_like_simulated_ones(way: str) -> None:
    found = live.compare(way, seed=1, requests=60)
    assert found.violations == []
    for name in ("mean", "wakes"):  # of so few requests: chance counts for much
        assert found.live[name] == pytest.approx(found.simulated[name], rel=0.5), found
