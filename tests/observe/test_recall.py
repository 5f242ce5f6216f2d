"""What the journal says of earlier runs, for the history of the last hour."""

from __future__ import annotations

from functools import partial
from pathlib import Path

import msgspec
import pytest
import trio

from llmux.observe.feed import Feed
from llmux.observe.journal import Entry, Journal, Phase, Request, Started, Stopped, Switch
from llmux.observe.memory import Recalled
from llmux.observe.recall import recall
from llmux.observe.schemas import Counts, PhaseChange, Run
from tests.lanes import running_lane

NOW = 1_000_000.0
GROUPS = {"a": "gpu", "b": "gpu"}


def started(at: float, boot: str) -> Started:
    return Started(at, "fifo", GROUPS, {}, 300, 0, boot=boot)


def write(path: Path, *entries: Entry, end: bytes = b"") -> Journal:
    path.write_bytes(msgspec.json.Encoder().encode_lines(entries) + end)
    return Journal(path)


def recalled(path: Path, *entries: Entry, end: bytes = b"") -> Recalled:
    return recall(write(path, *entries, end=end), NOW, GROUPS)


def switch(started: float, ended: float, target: str = "b") -> Switch:
    return Switch("a", target, started, ended, 0.5, 1.5, "success", "worth it")


def test_a_run_lasts_from_its_start_to_its_last_entry(tmp_path: Path) -> None:
    found = recalled(
        tmp_path / "j",
        started(NOW - 900, "one"),
        Phase(NOW - 890, "a", "waking", "asleep"),
        Stopped(NOW - 800),
        started(NOW - 700, "two"),  # killed: no end is recorded
        Request("a", NOW - 650, NOW - 640, 200, NOW - 650, 1),
        started(NOW - 645, "two"),  # a reload
        started(NOW - 300, "three"),
        Stopped(NOW - 200),
    )
    assert found.runs == [
        Run(started=NOW - 900, ended=NOW - 800),
        Run(started=NOW - 700, ended=NOW - 640),
        Run(started=NOW - 300, ended=NOW - 200),
    ]
    assert found.phases == [
        PhaseChange(at=NOW - 890, model="a", state="waking", left="asleep"),
    ]


def test_switches_have_negative_ids_and_their_group(tmp_path: Path) -> None:
    found = recalled(
        tmp_path / "j",
        started(NOW - 900, "one"),
        switch(NOW - 800, NOW - 798),
        switch(NOW - 700, NOW - 698, target="removed"),
        switch(NOW - 600, NOW - 598),
    )
    assert [(each.id, each.group, each.started) for each in found.switches] == [
        (-2, "gpu", NOW - 800),
        (-1, "gpu", NOW - 600),
    ]
    assert found.switches[0].source == "a"
    assert found.switches[0].drain_secs == 0.5


def test_counts_follow_from_the_requests(tmp_path: Path) -> None:
    found = recalled(
        tmp_path / "j",
        started(NOW - 900, "one"),
        Request("a", NOW - 100, NOW - 90, 200, NOW - 95, 1),
        Request("a", NOW - 98, NOW - 97, 504),  # it left the line
        Request("b", NOW - 80.4, NOW - 80.3, 200, NOW - 80.4, 1),  # over within one interval
    )
    assert found.counts == [
        Counts(at=NOW - 99, models={"a": (0, 1)}),
        Counts(at=NOW - 97, models={"a": (0, 2)}),
        Counts(at=NOW - 96, models={"a": (0, 1)}),
        Counts(at=NOW - 94, models={"a": (1, 0)}),
        Counts(at=NOW - 89, models={"a": (0, 0)}),
    ]


def test_only_the_last_hour_counts_and_nothing_of_this_run(tmp_path: Path) -> None:
    found = recalled(
        tmp_path / "j",
        started(NOW - 9000, "old"),
        switch(NOW - 8000, NOW - 7999),
        Stopped(NOW - 7000),
        started(NOW - 5000, "long"),
        Phase(NOW - 4000, "a", "awake", "waking"),
        switch(NOW - 3000, NOW - 2999),
        started(NOW, "this"),
        Phase(NOW + 1, "b", "waking", "asleep"),
    )
    assert found.runs == [Run(started=NOW - 5000, ended=NOW - 2999)]
    assert found.phases == []
    assert [each.started for each in found.switches] == [NOW - 3000]


@pytest.mark.parametrize("end", [b'{"event":"phase","at":99', b"\0" * 100, b'{"event":"new"}\n'])
def test_a_torn_end_is_skipped(tmp_path: Path, end: bytes) -> None:
    found = recalled(tmp_path / "j", started(NOW - 9, "one"), switch(NOW - 8, NOW - 7), end=end)
    assert len(found.switches) == 1


def test_nothing_is_known_without_a_journal(tmp_path: Path) -> None:
    nothing = Recalled([], [], [], [])
    assert recall(Journal(None), NOW, GROUPS) == nothing
    assert recall(Journal(tmp_path / "none"), NOW, GROUPS) == nothing
    assert recalled(tmp_path / "empty") == nothing


async def test_it_comes_before_what_this_run_remembers(tmp_path: Path) -> None:
    feed = Feed()
    feed.started_at = NOW
    journal = write(tmp_path / "j", started(NOW - 9, "one"), switch(NOW - 8, NOW - 7))
    feed.memory.phases.append(PhaseChange(at=NOW + 1, model="a", state="waking", left="asleep"))
    async with trio.open_nursery() as nursery:
        nursery.start_soon(feed.recall, partial(recall, journal, NOW, GROUPS))
        await trio.testing.wait_all_tasks_blocked()
        await feed.wait_recalled()
    history = feed.memory.history(NOW + 2, 60, "")
    assert [each.id for each in history.switches] == [-1]
    assert history.runs[0] == Run(started=NOW - 9, ended=NOW - 7)
    assert history.runs[-1].ended is None


@pytest.mark.parametrize("lane", ["fast", "asgi"])
async def test_the_history_survives_a_restart(tmp_path: Path, lane: str) -> None:
    for number in range(2):
        async with running_lane(lane, tmp_path) as site, site.client() as client:
            if number == 0:
                await client.post("/v1/chat/completions", json={"model": "a"})
                continue
            history = (await client.get("/control/history")).json()
            (switched,) = history["switches"]
            assert (switched["to"], switched["result"]) == ("a", "success")
            assert [each["state"] for each in history["phases"]][:2] == ["waking", "awake"]
            first, second = history["runs"]
            assert first["started"] < switched["started"] < first["ended"] <= second["started"]
            assert second["ended"] is None
