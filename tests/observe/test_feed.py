"""The feed: what is told, to whom, and how much of it is kept; on the virtual clock."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest
import trio
import trio.testing
from msgspec.structs import replace
from trio.testing import MockClock

from llmux.observe.feed import (
    GRACE_S,
    IDLE_TICK_S,
    KEEP_ALIVE,
    KEEP_ALIVE_S,
    MOST_REMEMBERED,
    PIECE_BYTES,
    REMEMBERED_S,
    RING_BYTES,
    TICK_S,
    Feed,
    Reader,
)
from llmux.observe.schemas import Message, PhaseChange, SwitchRecord


def hello() -> Message:
    return Message(message="hello")


@asynccontextmanager
async def running(feed: Feed) -> AsyncIterator[None]:
    async with trio.open_nursery() as nursery:
        nursery.start_soon(feed.run)
        await trio.testing.wait_all_tasks_blocked()
        yield
        nursery.cancel_scope.cancel()


def events(piece: bytes) -> list[tuple[str, str, object]]:
    """Each event's id, name and data."""
    found = []
    for event in piece.decode().split("\n\n")[:-1]:
        fields = dict(line.split(": ", 1) for line in event.split("\n"))
        found.append((fields.get("id", ""), fields["event"], json.loads(fields["data"])))
    return found


def change(feed: Feed, model: str = "a") -> PhaseChange:
    return PhaseChange(at=feed.clock.now(), model=model, state="waking", left="asleep")


async def read(reader: Reader) -> list[tuple[str, str, object]]:
    return events(await anext(reader))


async def test_a_reader_is_told_how_things_are_and_then_what_happens(
    autojump_clock: MockClock,
) -> None:
    feed = Feed()
    async with running(feed):
        reader = feed.reading(hello)
        assert await read(reader) == [(f"{feed.boot}-1", "status", {"message": "hello"})]
        feed.tell("phase", change(feed))
        feed.tell("phase", change(feed, "b"))
        began = trio.current_time()
        (id_a, name, _), (id_b, _, told) = await read(reader)
        assert (id_a, id_b, name) == ("", f"{feed.boot}-2", "phase")
        assert isinstance(told, dict)
        assert told["model"] == "b"
        assert trio.current_time() - began <= TICK_S


async def test_who_comes_back_goes_on_where_it_was(autojump_clock: MockClock) -> None:
    feed = Feed()
    async with running(feed):
        reader = feed.reading(hello)
        await anext(reader)
        for model in ("a", "b", "c"):
            feed.tell("phase", change(feed, model))
            await trio.sleep(1.5 * TICK_S)
        seen = (await read(reader))[-1][0]  # all three batches
        assert seen == f"{feed.boot}-4"
        await reader.aclose()
        feed.tell("phase", change(feed, "d"))  # meanwhile
        await trio.sleep(GRACE_S / 2)
        ((last, _, told),) = await read(feed.reading(hello, f"{feed.boot}-4"))
        assert (last, told["model"]) == (f"{feed.boot}-5", "d")  # type: ignore[index]
        again = await read(feed.reading(hello, f"{feed.boot}-2"))
        assert [data["model"] for _, _, data in again] == ["b", "c", "d"]  # type: ignore[index]


async def test_nobody_goes_on_across_what_was_not_kept(autojump_clock: MockClock) -> None:
    """While nobody read, nothing was kept: who comes back must not think that nothing happened."""
    feed = Feed()
    async with running(feed):
        reader = feed.reading(hello)
        await anext(reader)
        feed.tell("phase", change(feed, "seen"))
        last = (await read(reader))[-1][0]
        await reader.aclose()
        await trio.sleep(2 * GRACE_S)
        feed.tell("phase", change(feed, "missed"))
        await anext(feed.reading(hello))  # somebody else comes first
        assert (await read(feed.reading(hello, last)))[0][1] == "status"


HUGE = "BOOT-" + "9" * 5000


@pytest.mark.parametrize(
    "last", ["", "strange-0", "nonsense", "BOOT-99", "BOOT--1", "BOOT-1x", HUGE]
)
async def test_who_cannot_go_on_is_told_how_things_are(
    last: str, autojump_clock: MockClock
) -> None:
    feed = Feed()
    async with running(feed):
        await anext(feed.reading(hello))
        reader = feed.reading(hello, last.replace("BOOT", feed.boot))
        assert (await read(reader))[0][1] == "status"


async def test_nobody_is_told_what_was_said_before_its_status(autojump_clock: MockClock) -> None:
    feed = Feed()
    async with running(feed):
        first = feed.reading(hello)
        await anext(first)
        feed.tell("phase", change(feed, "early"))
        second = feed.reading(hello)  # its status knows of it
        feed.tell("phase", change(feed, "late"))
        assert (await read(second))[0][1] == "status"
        assert [data["model"] for _, _, data in await read(second)] == ["late"]  # type: ignore[index]


async def test_one_that_falls_behind_is_dropped_and_costs_nothing(
    autojump_clock: MockClock,
) -> None:
    feed = Feed()
    async with running(feed):
        slow, quick = feed.reading(hello), feed.reading(hello)
        await anext(slow)
        await anext(quick)
        long = Message(message="x" * 1_000_000)
        for _ in range(10):
            feed.tell("long", long)
            await trio.sleep(1.5 * TICK_S)
            assert len(await anext(quick)) > 1_000_000
            assert feed._ring_bytes <= RING_BYTES + 1_100_000
        assert (await read(slow))[0][1] == "lagged"
        with pytest.raises(StopAsyncIteration):
            await anext(slow)


async def test_one_that_has_much_to_read_gets_it_in_pieces(autojump_clock: MockClock) -> None:
    feed = Feed()
    async with running(feed):
        reader = feed.reading(hello)
        await anext(reader)
        for _ in range(20):
            feed.tell("long", Message(message="x" * (PIECE_BYTES // 4)))
            await trio.sleep(1.5 * TICK_S)
        pieces: list[bytes] = []
        while sum(len(events(piece)) for piece in pieces) < 20:
            pieces.append(await anext(reader))
        assert len(pieces) > 2
        assert all(len(piece) < 2 * PIECE_BYTES for piece in pieces)


async def test_a_silent_feed_says_so(autojump_clock: MockClock) -> None:
    feed = Feed()
    async with running(feed):
        reader = feed.reading(hello)
        await anext(reader)
        began = trio.current_time()
        assert await anext(reader) == KEEP_ALIVE
        assert trio.current_time() - began == pytest.approx(KEEP_ALIVE_S)
        feed.tell("phase", change(feed))
        assert len(await read(reader)) == 1  # nothing was lost


async def test_readers_end_with_the_feed(autojump_clock: MockClock) -> None:
    feed = Feed()
    async with running(feed):
        reader = feed.reading(hello)
        await anext(reader)
        feed.tell("phase", change(feed))
        await trio.sleep(1.5 * TICK_S)
        feed.stop()
        assert len(await read(reader)) == 1
        with pytest.raises(StopAsyncIteration):
            await anext(reader)


async def test_what_changes_all_the_time_is_looked_up_only_while_somebody_reads(
    autojump_clock: MockClock,
) -> None:
    feed = Feed()
    looked: list[float] = []
    counts = {"a": (0, 0)}
    feed.watch_counts(lambda: dict(counts))
    feed.look_up(lambda: looked.append(trio.current_time()))
    async with running(feed):
        await trio.sleep(100)
        assert looked == []
        reader = feed.reading(hello)
        assert len(looked) == 1  # so that the first batch does not tell what the status says
        await anext(reader)
        counts["a"] = (2, 1)
        ((_, name, told),) = await read(reader)
        assert (name, told["models"]) == ("counts", {"a": [2, 1]})  # type: ignore[index]
        del counts["a"]
        ((_, _, told),) = await read(reader)
        assert told["models"] == {"a": [0, 0]}  # type: ignore[index]
        await reader.aclose()
        await trio.sleep(2 * GRACE_S)
        looked.clear()
        feed.tell("phase", change(feed))
        await trio.sleep(100)
        assert looked == []
        assert feed._ring_bytes == 0
        assert feed._pending == []


async def test_an_hour_is_remembered(autojump_clock: MockClock) -> None:
    feed = Feed()
    counts = {"a": (0, 0)}
    feed.watch_counts(lambda: dict(counts))
    async with running(feed):
        feed.tell("phase", change(feed, "old"))
        counts["a"] = (1, 0)
        await trio.sleep(REMEMBERED_S)
        feed.tell("phase", change(feed, "new"))
        begun = SwitchRecord(id=1, group="g", source=None, target="a", started=feed.clock.now())
        feed.tell("switch", begun)
        feed.tell("switch", replace(begun, ended=feed.clock.now()))
        counts["a"] = (5, 0)
        await trio.sleep(2 * IDLE_TICK_S)
        history = feed.memory.history(feed.clock.now(), REMEMBERED_S, feed.last_event_id)
        assert [each.model for each in history.phases] == ["new"]
        assert [each.ended is None for each in history.switches] == [False]
        assert [each.models for each in history.counts] == [{"a": (5, 0)}]
        for _ in range(MOST_REMEMBERED + 10):
            feed.tell("phase", change(feed))
        assert len(feed.memory.phases) == MOST_REMEMBERED
