"""llmux's own log at `GET /control/log`: bounded, masked, and as standard error has it."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import trio

from llmux.config.masking import MASKER
from llmux.observe import logs, own_log
from llmux.observe.own_log import LONGEST_EVENT, MOST_EVENTS, LastLines, OwnLogReader
from tests.lanes import running_lane


@pytest.fixture(autouse=True)
def lines(monkeypatch: pytest.MonkeyPatch) -> LastLines:
    lines = LastLines()
    monkeypatch.setattr(own_log, "LAST_LINES", lines)
    monkeypatch.setattr(logs, "LAST_LINES", lines)
    return lines


@pytest.fixture
def _configured() -> Iterator[None]:
    root = logging.getLogger()
    handlers, level = root.handlers, root.level
    logs.configure()  # which replaces pytest's handlers; it adds them again for the test itself
    yield
    root.handlers, root.level = handlers, level


class Stream:
    def __init__(self, write: Callable[[str], object]) -> None:
        self.write = write

    def flush(self) -> None:
        pass


async def read(last: int = 100) -> str:
    return b"".join([piece async for piece in OwnLogReader(last=last, follow=bool)]).decode()


async def test_it_is_bounded(lines: LastLines) -> None:
    for number in range(MOST_EVENTS + 10):
        lines.add(f"event {number} " + "x" * 2 * LONGEST_EVENT)
    count, kept = lines.after(0)
    assert (count, len(kept)) == (MOST_EVENTS + 10, MOST_EVENTS)
    assert kept[0].startswith("event 10 ")
    assert {len(each) for each in kept} == {LONGEST_EVENT}
    assert [each[:10] for each in lines.after(count - 2)[1]] == ["event 2008", "event 2009"]
    assert lines.after(count)[1] == []
    assert (await read(1)).startswith("event 2009 ")
    assert await read(0) == ""


@pytest.mark.usefixtures("_configured")
async def test_secrets_are_masked(monkeypatch: pytest.MonkeyPatch) -> None:
    before = MASKER.mask("sk-new-9876543210")
    assert before == "sk-new-9876543210"
    logging.getLogger("some.library").warning("sk-old-1234567890 and sk-new-9876543210")
    MASKER.use(frozenset({"sk-new-9876543210"}))  # by a reload, since
    try:
        text = await read()
    finally:
        MASKER.use(frozenset())
    assert "some.library" in text or "sk-old" in text
    assert "sk-new-9876543210" not in text


@pytest.mark.usefixtures("_configured")
async def test_it_is_what_standard_error_gets(monkeypatch: pytest.MonkeyPatch) -> None:
    written: list[str] = []
    (handler,) = [one for one in logging.getLogger().handlers if isinstance(one, logs.Output)]
    monkeypatch.setattr(handler, "stream", Stream(written.append))
    logs.get_logger("llmux.test").warning("it_happened", model="a")
    assert "".join(written) == await read()
    assert "it_happened" in written[0]


async def test_colours_are_removed(lines: LastLines) -> None:
    lines.add("\x1b[2m2026\x1b[0m [\x1b[32m\x1b[1minfo\x1b[0m] \x1b[1mlistening\x1b[0m")
    assert await read() == "2026 [info] listening\n"


@pytest.mark.parametrize("lane", ["fast", "asgi"])
async def test_the_control_api_shows_and_follows_it(
    tmp_path: Path, lines: LastLines, lane: str
) -> None:
    lines.add("first")
    lines.add("second")
    async with running_lane(lane, tmp_path) as site, site.client() as client:
        assert (await client.get("/control/log?tail=1")).text.splitlines()[-1] == "second"
        assert (await client.get("/control/log?tail=x")).status_code == 400
        async with client.stream("GET", "/control/log?follow=true&tail=2") as answer:
            assert answer.headers["content-type"] == "text/plain; charset=utf-8"
            pieces = answer.aiter_lines()
            with trio.fail_after(10):
                assert [await anext(pieces), await anext(pieces)] == ["first", "second"]
                lines.add("third")
                assert await anext(pieces) == "third"


async def test_it_needs_the_control_key(tmp_path: Path) -> None:
    keys = ["steer-1234567890"]
    async with (
        running_lane("fast", tmp_path, control_keys=keys) as site,
        site.client() as client,
    ):
        assert (await client.get("/control/log")).status_code == 401
        headers = {"authorization": "Bearer steer-1234567890"}
        assert (await client.get("/control/log", headers=headers)).status_code == 200
