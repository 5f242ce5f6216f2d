"""A library that logs the same again and again fills no disk, and hides nothing."""

from __future__ import annotations

import logging
import resource
import socket
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest
import trio

from llmux.observe import repeats
from llmux.observe.repeats import Repeats
from tests.servers import ALL_FORMS, running_backends, running_llmux


class Clock:
    now = 100.0


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr("llmux.observe.repeats.time.monotonic", lambda: clock.now)
    return clock


@pytest.fixture
def lines() -> Iterator[list[str]]:
    """What the root logger shows of the tests' loggers."""
    shown: list[str] = []

    class Shows(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            shown.append(record.getMessage())

    handler = Shows()
    handler.addFilter(Repeats())
    logging.getLogger().addHandler(handler)
    yield shown
    logging.getLogger().removeHandler(handler)


def fail(logger: logging.Logger, error: Exception) -> None:
    logger.error("accept failed", exc_info=error)


def test_what_repeats_is_shown_once_and_counted(clock: Clock, lines: list[str]) -> None:
    library = logging.getLogger("some.library")
    for _ in range(50):
        fail(library, OSError(24, "Too many open files"))
        clock.now += 0.1
    assert lines == ["accept failed"]
    clock.now += 10
    library.warning("else")
    assert lines[1:] == [
        "accept failed: OSError: [Errno 24] Too many open files (49 times more in 10 s)",
        "else",
    ]
    fail(library, OSError(24, "Too many open files"))
    assert lines[3:] == ["accept failed"]


def test_lines_that_differ_are_all_shown(clock: Clock, lines: list[str]) -> None:
    library, other = logging.getLogger("some.library"), logging.getLogger("other.library")
    fail(library, OSError(24, "Too many open files"))
    fail(library, OSError(23, "Too many open files in system"))
    fail(other, OSError(24, "Too many open files"))
    library.warning("accept failed")
    for number in range(5):
        library.warning("port %d", number)
    assert len(lines) == 9


def test_llmuxs_own_lines_are_all_shown(clock: Clock, lines: list[str]) -> None:
    for name in ("llmux", "llmux.hooks"):
        for _ in range(3):
            logging.getLogger(name).warning("hook_failed")
    logging.getLogger("llmuxish").warning("hook_failed")
    logging.getLogger("llmuxish").warning("hook_failed")
    assert len(lines) == 7


def test_no_more_is_remembered_than_a_bound(clock: Clock, lines: list[str]) -> None:
    library = logging.getLogger("some.library")
    for number in range(3 * repeats.MOST_KINDS):
        library.warning("n %d", number)
        library.warning("n %d", number)
    (handler,) = [h for h in logging.getLogger().handlers if any(h.filters)][-1:]
    assert len(handler.filters[0]._seen) <= repeats.MOST_KINDS  # type: ignore[union-attr]


def children_of(pid: int) -> list[int]:
    return [int(each) for each in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


@pytest.mark.parametrize("form", ALL_FORMS)
async def test_a_server_without_descriptors_logs_little(tmp_path: Path, form: str) -> None:
    async with running_backends(tmp_path, "a") as rack:
        async with running_llmux(rack.write_config(), form) as llmux:
            pids = [llmux.process.pid, *children_of(llmux.process.pid)]
            for pid in pids:
                _, hard = resource.prlimit(pid, resource.RLIMIT_NOFILE)
                resource.prlimit(pid, resource.RLIMIT_NOFILE, (40, hard))
            host, _, port = llmux.url.removeprefix("http://").partition(":")
            with ExitStack() as stack:
                for _ in range(60):
                    stack.enter_context(socket.create_connection((host, int(port)), timeout=5))
                await trio.sleep(3.5)
                size = sum(map(len, llmux.lines))
            for pid in pids:
                resource.prlimit(pid, resource.RLIMIT_NOFILE, (1024, hard))
            assert size < 20_000, f"{size} bytes"
            async with llmux.client() as client:
                assert (await client.get("/health")).status_code == 200
