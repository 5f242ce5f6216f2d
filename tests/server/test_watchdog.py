"""What systemd is told: readiness, reloads, the end, and beats as long as all goes on."""

from __future__ import annotations

import signal
import socket
import uuid
from collections.abc import AsyncIterator, Iterator
from contextlib import suppress
from functools import partial
from pathlib import Path

import pytest
import trio
from structlog.testing import capture_logs
from trio.testing import MockClock, wait_all_tasks_blocked

from llmux.downstream.fast_departures import Departures
from llmux.downstream.pump import Pump
from llmux.observe.pauses import LEFT_OUT
from llmux.server.systemd import Watchdog, beat_s, notify_systemd
from tests.lanes import running_lane
from tests.servers import Rack, running_backends, running_llmux

BEAT = b"WATCHDOG=1"


@pytest.fixture
def systemd(monkeypatch: pytest.MonkeyPatch) -> Iterator[socket.socket]:
    """The socket of a manager, in the abstract namespace, where nothing is left over."""
    name = f"llmux-{uuid.uuid4().hex}"
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager:
        manager.bind(f"\0{name}")
        manager.settimeout(20)
        monkeypatch.setenv("NOTIFY_SOCKET", f"@{name}")
        yield manager


@pytest.fixture
async def rack(tmp_path: Path) -> AsyncIterator[Rack]:
    async with running_backends(tmp_path, "a") as rack:
        yield rack


# ---- When beats are expected ----


@pytest.mark.parametrize(
    ("environ", "expected"),
    [
        ({"WATCHDOG_USEC": "30000000"}, 10),
        ({"WATCHDOG_USEC": "30000000", "WATCHDOG_PID": "7"}, 10),
        ({"WATCHDOG_USEC": "30000000", "WATCHDOG_PID": "8"}, None),
        ({"WATCHDOG_USEC": "0"}, None),
        ({"WATCHDOG_USEC": "soon"}, None),
        ({"WATCHDOG_USEC": ""}, None),
        ({"WATCHDOG_USEC": "30000000", "NOTIFY_SOCKET": ""}, None),
        ({}, None),
    ],
)
def test_how_often(environ: dict[str, str], expected: float | None) -> None:
    assert beat_s({"NOTIFY_SOCKET": "/run/systemd/notify", **environ}, 7) == expected


def test_nobody_is_told_without_a_socket(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("NOTIFY_SOCKET", raising=False)
    notify_systemd("READY=1")
    monkeypatch.setenv("NOTIFY_SOCKET", "/nowhere/notify")
    notify_systemd("READY=1")


def test_a_beat_is_lost_rather_than_waited_for(systemd: socket.socket) -> None:
    for _ in range(10_000):  # more than any queue holds
        notify_systemd("WATCHDOG=1", may_be_lost=True)
    assert systemd.recv(100) == BEAT


# ---- Beats ----


async def test_beats_come_as_long_as_all_goes_on(
    autojump_clock: MockClock,
) -> None:
    sent: list[tuple[float, str]] = []
    stuck: dict[str, list[str]] = {"x": [], "y": []}
    began_at = trio.current_time()
    watchdog = Watchdog(10, lambda state: sent.append((trio.current_time() - began_at, state)))
    watchdog.watch(lambda: stuck["x"])
    watchdog.watch(lambda: stuck["y"])
    async with trio.open_nursery() as nursery:
        nursery.start_soon(watchdog.run)
        await trio.sleep(25)
        assert sent == [(0, "WATCHDOG=1"), (10, "WATCHDOG=1"), (20, "WATCHDOG=1")]
        stuck["y"] = ["the switcher of g: it has died"]
        with capture_logs() as logs:
            await trio.sleep(40)
        assert len(sent) == 3
        assert [(each["event"], each["stuck"]) for each in logs] == [
            ("watchdog_withheld", ["the switcher of g: it has died"])
        ]
        stuck["y"] = []
        await trio.sleep(10)
        assert [at for at, _ in sent[3:]] == [70]
        nursery.cancel_scope.cancel()


async def test_a_pause_delays_no_beat_once_it_is_over(
    autojump_clock: MockClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(LEFT_OUT, "seconds", 5.0)
    sent: list[float] = []
    began_at = trio.current_time()
    watchdog = Watchdog(10, lambda _: sent.append(trio.current_time() - began_at))
    async with trio.open_nursery() as nursery:
        nursery.start_soon(watchdog.run)
        await trio.sleep(4.5)
        LEFT_OUT.seconds += 22  # of systemd's 30, which have gone on
        await trio.sleep(11)
        assert sent == [0, 5, 15]
        nursery.cancel_scope.cancel()


async def test_where_none_are_expected_it_ends_at_once() -> None:
    await Watchdog(None).run()


@pytest.mark.parametrize("kind", [Pump, Departures])
async def test_a_task_that_does_not_run_has_no_pulse(kind: type[Pump | Departures]) -> None:
    relays = kind()
    assert relays.pulse.look()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(relays.run)
        await wait_all_tasks_blocked()
        assert relays.pulse.look()
        assert not relays.pulse.look()  # it has had no turn
        await wait_all_tasks_blocked(0.01)
        for _ in range(3):
            assert relays.pulse.look()
            await wait_all_tasks_blocked(0.01)
        nursery.cancel_scope.cancel()
    assert relays.pulse.look()
    assert relays.pulse.look()


async def test_the_tasks_of_the_lane_have_a_pulse(tmp_path: Path) -> None:
    async with running_lane("fast", tmp_path) as site:
        await wait_all_tasks_blocked(0.01)
        assert site.fast.standing_still() == []
        found = site.fast.standing_still()
        assert found == ["the task that relays bodies", "the task that notices departures"]
        await wait_all_tasks_blocked(0.01)
        assert site.fast.standing_still() == []


# ---- A real process ----


async def test_a_process_beats_while_it_runs_until_its_end(
    rack: Rack, systemd: socket.socket, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WATCHDOG_USEC", "150000")
    hold = rack.folder / "hold"
    hold.touch()
    wake = "touch begun; while test -e hold; do sleep 0.05; done; : > a.awake"
    config = rack.write_config(models={"a": {"wake": wake}})
    async with running_llmux(config) as llmux, trio.open_nursery() as nursery:
        await told(systemd, b"READY=1")
        await told(systemd, BEAT, BEAT, BEAT)

        llmux.process.send_signal(signal.SIGSTOP)
        await until_stopped(llmux.process.pid)
        drain(systemd)
        await trio.sleep(0.3)
        assert drain(systemd) == []
        llmux.process.send_signal(signal.SIGCONT)
        await told(systemd, BEAT, BEAT)

        llmux.process.send_signal(signal.SIGHUP)
        await told(systemd, b"RELOADING=1\nMONOTONIC_USEC=", b"READY=1", BEAT)

        async with llmux.client() as client:
            nursery.start_soon(partial(client.post, "/v1/x", json={"model": "a"}))
            while not await trio.Path(rack.folder / "begun").exists():
                await trio.sleep(0.01)
            llmux.process.send_signal(signal.SIGTERM)
            await told(systemd, b"STOPPING=1", BEAT, BEAT, BEAT)  # its hook may go on
            hold.unlink()
            assert await llmux.process.wait() == 0


@pytest.mark.slow
async def test_under_hypercorn_without_workers_it_beats(
    rack: Rack, systemd: socket.socket, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WATCHDOG_USEC", "150000")
    async with running_llmux(rack.write_config(), "hypercorn", "-w", "0"):
        await told(systemd, BEAT, BEAT)


async def told(systemd: socket.socket, *expected: bytes) -> None:
    """Receive until these beginnings of messages have come, in this order."""
    for begin in expected:
        with trio.fail_after(20):
            while not (await trio.to_thread.run_sync(systemd.recv, 100)).startswith(begin):
                pass


async def until_stopped(pid: int) -> None:
    with trio.fail_after(20):
        while "\nState:\tT" not in await trio.Path(f"/proc/{pid}/status").read_text():
            await trio.sleep(0.01)


def drain(systemd: socket.socket) -> list[bytes]:
    """What has come and was not received."""
    found = []
    systemd.setblocking(False)
    with suppress(BlockingIOError):
        while True:
            found.append(systemd.recv(100))
    systemd.settimeout(20)
    return found
