"""Time in which llmux did not run does not count."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest
import trio
import trio.testing

from llmux.config import HookTimeouts, ModelConfig
from llmux.errors import HookError
from llmux.hooks.shell import ShellHooks
from llmux.observe import pauses
from llmux.observe.events import Events
from llmux.observe.pauses import LEFT_OUT, PauseWatch
from tests.servers import ALL_FORMS, chat, running_backends, running_llmux

CHAT = "/v1/chat/completions"


class FakeClock:
    def __init__(self) -> None:
        self.offset = 0.0
        self.runs_s = 0.0

    def current_time(self) -> float:
        return self.offset + self.runs_s


@pytest.fixture
def clock() -> Iterator[FakeClock]:
    before = LEFT_OUT.seconds
    yield FakeClock()
    LEFT_OUT.seconds = before


@pytest.mark.parametrize(
    ("timeout", "slept_s", "counted_s"),
    [(1, 1.2, 1.2), (1, 0.1, 0.1), (1, 100, 1), (0.25, 3601, 0.25), (0, 0.1, 0.1)],
)
def test_what_a_wait_takes_too_long_is_left_out(
    clock: FakeClock, timeout: float, slept_s: float, counted_s: float
) -> None:
    watch = PauseWatch(clock)
    left_out_s = LEFT_OUT.seconds
    watch.before_io_wait(timeout)
    clock.runs_s += slept_s
    watch.after_io_wait(timeout)
    assert clock.current_time() == pytest.approx(counted_s)
    assert LEFT_OUT.seconds - left_out_s == pytest.approx(slept_s - counted_s)


def test_what_tasks_take_is_no_pause(clock: FakeClock) -> None:
    """Time would run backwards for them."""
    watch = PauseWatch(clock)
    watch.before_io_wait(1)
    clock.runs_s += 1
    watch.after_io_wait(1)
    clock.runs_s += 30
    watch.before_io_wait(0)
    watch.after_io_wait(0)
    assert clock.current_time() == 31


async def test_a_virtual_clock_is_left_alone(autojump_clock: trio.testing.MockClock) -> None:
    with trio.move_on_after(100):
        await pauses.leave_out_pauses()
    assert trio.current_time() == 100


async def test_a_hook_that_has_ended_before_it_is_killed_has_succeeded(tmp_path: Path) -> None:
    """The loop was held up until after the deadline; nobody could say that it has ended."""
    model = ModelConfig(
        name="m",
        port=1,
        wake="exit 0",
        sleep="exit 3",
        alive="true",
        hook_timeouts=HookTimeouts(wake=0.3, sleep=0.3),
    )
    shell = ShellHooks({"m": model}, directory=tmp_path, log_dir=tmp_path, events=Events())

    async def hold_up() -> None:
        await trio.sleep(0.01)
        time.sleep(0.6)  # noqa: ASYNC251 - the loop is to hang

    async with trio.open_nursery() as nursery:
        nursery.start_soon(hold_up)
        await shell.of("m").run("wake")
    async with trio.open_nursery() as nursery:
        nursery.start_soon(hold_up)
        with pytest.raises(HookError, match="exited with 3"):
            await shell.of("m").run("sleep")


@pytest.mark.parametrize("form", ALL_FORMS)
async def test_a_hook_and_a_request_outlast_a_stopped_process(form: str, tmp_path: Path) -> None:
    """Stopped for longer than any of their time-outs, hook included."""
    async with running_backends(tmp_path, "a") as rack:
        slow = "for i in 1 2 3 4 5 6 7 8 9 10; do sleep 0.1; done; echo $$ > pid; : > a.awake"
        model = rack.model("a", wake=slow, hook_timeouts={"wake": 2.5})
        config = rack.write_config(models={"a": model}, policy={"request_timeout_secs": 2.9})
        async with running_llmux(config, form) as llmux, llmux.client() as client:

            async def ask() -> None:
                answer = await client.post(CHAT, json=chat("a"))
                assert answer.status_code == 200, (answer.text, llmux.lines)

            async with trio.open_nursery() as nursery:
                nursery.start_soon(ask)
                await trio.sleep(0.5)
                stopped = [llmux.process.pid, *children(llmux.process.pid)]
                for pid in stopped:
                    with suppress(ProcessLookupError):
                        os.kill(pid, signal.SIGSTOP)
                await trio.sleep(4)
                for pid in reversed(stopped):
                    with suppress(ProcessLookupError):  # it was about to end
                        os.kill(pid, signal.SIGCONT)
        assert any("process_paused" in line for line in llmux.lines)


def children(pid: int) -> list[int]:
    """All processes below one."""
    found = []
    for entry in Path("/proc").glob("[0-9]*"):
        try:
            parent = int((entry / "stat").read_text().rpartition(") ")[2].split()[1])
        except (FileNotFoundError, ProcessLookupError):
            continue
        if parent == pid:
            found += [int(entry.name), *children(int(entry.name))]
    return found
