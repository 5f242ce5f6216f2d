"""Who asks for a reload, when, and what is read: one at a time, off the loop, and none is lost."""

from __future__ import annotations

import json
import os
import signal
import threading
from collections.abc import Callable
from pathlib import Path

import pytest
import trio
from trio.testing import wait_all_tasks_blocked

from llmux.config import Config, parse_config
from llmux.errors import ConfigError, ShuttingDown
from llmux.observe.events import Events
from llmux.observe.schemas import Reloaded
from llmux.switching.reload import Reloader
from llmux.switching.switchboard import Switchboard
from tests.fakes import FakeHooks
from tests.servers import ALL_FORMS, running_backends, running_llmux

MODEL = {"port": 1, "wake": "up", "sleep": "down", "alive": "ping"}


def config_of(path: Path, **more: object) -> Config:
    data = {"state_dir": "s", "models": {"a": MODEL}, **more}
    return parse_config(data, path=path)


class Disk:
    """Stands for `load_config`: each reading waits, in its thread, until it is let go."""

    def __init__(self, path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.path = path
        self.threads: list[threading.Thread] = []
        self.go = threading.Semaphore(0)
        self.port = 3000
        self.breaks: Exception | None = None
        monkeypatch.setattr("llmux.switching.reload.load_config", self._load)
        config = config_of(path)
        self.reloader = Reloader(config, Switchboard(config, FakeHooks(), Events()))
        self.answers: list[Reloaded] = []

    def _load(self, path: Path) -> Config:
        assert path == self.path
        self.threads.append(threading.current_thread())
        port, breaks = self.port, self.breaks
        assert self.go.acquire(timeout=20)
        if breaks is not None:
            raise breaks
        return config_of(path, port=port)

    async def ask(self) -> None:
        self.answers.append(await self.reloader.reload())

    async def until(self, found: Callable[[], bool]) -> None:
        with trio.fail_after(20):
            while not found():
                await trio.sleep(0.005)


@pytest.fixture
def disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Disk:
    return Disk(tmp_path / "llmux.json", monkeypatch)


async def test_those_who_ask_while_the_file_is_read_have_it_read_once_more(disk: Disk) -> None:
    async with trio.open_nursery() as nursery:
        nursery.start_soon(disk.reloader.run)
        nursery.start_soon(disk.ask)
        await disk.until(lambda: len(disk.threads) == 1)
        assert disk.threads[0] is not threading.current_thread(), "not on the loop"
        disk.port = 4000  # what was read does not have it
        for _ in range(3):
            nursery.start_soon(disk.ask)
        disk.reloader.request()
        await wait_all_tasks_blocked()
        disk.go.release()
        await disk.until(lambda: len(disk.threads) == 2)
        assert (len(disk.answers), disk.reloader.config.port) == (1, 3000)
        disk.go.release()
        await disk.until(lambda: len(disk.answers) == 4)
        assert disk.reloader.config.port == 4000
        assert len(disk.threads) == 2
        nursery.cancel_scope.cancel()


async def test_one_who_leaves_takes_no_reload_along(disk: Disk) -> None:
    async with trio.open_nursery() as nursery:
        nursery.start_soon(disk.reloader.run)
        disk.port = 4000
        async with trio.open_nursery() as leaving:
            leaving.start_soon(disk.ask)
            await disk.until(lambda: len(disk.threads) == 1)
            leaving.cancel_scope.cancel()
        disk.go.release()
        await disk.until(lambda: disk.reloader.config.port == 4000)
        nursery.cancel_scope.cancel()


@pytest.mark.parametrize("error", [MemoryError("full"), RuntimeError("can't start new thread")])
async def test_what_cannot_be_foreseen_ends_nothing(disk: Disk, error: Exception) -> None:
    async with trio.open_nursery() as nursery:
        nursery.start_soon(disk.reloader.run)
        disk.breaks = error
        disk.go.release()
        await disk.ask()
        assert [each.ok for each in disk.answers] == [False]
        assert str(error) in disk.answers[-1].mistakes[0]
        disk.breaks = None
        disk.go.release()
        await disk.ask()
        assert [each.ok for each in disk.answers] == [False, True]
        nursery.cancel_scope.cancel()


async def test_nobody_waits_for_a_reload_that_will_not_come(disk: Disk) -> None:
    raised: list[Exception] = []

    async def ask() -> None:
        try:
            await disk.reloader.reload()
        except ShuttingDown as error:
            raised.append(error)

    async with trio.open_nursery() as asking:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(disk.reloader.run)
            asking.start_soon(ask)
            await disk.until(lambda: len(disk.threads) == 1)
            nursery.cancel_scope.cancel()
        with trio.fail_after(20):
            await ask()
    assert len(raised) == 2
    disk.go.release()


class Once:
    """A policy that can be made once more, and then not any more."""

    left = 0

    def __init__(self, config: object) -> None:
        if not Once.left:
            raise RuntimeError("no more")
        Once.left -= 1


def test_a_policy_that_cannot_be_made_for_each_group_changes_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    models = {"a": MODEL, "b": MODEL | {"port": 2, "group": "second"}}
    before = config_of(tmp_path / "f", models=models)
    board = Switchboard(before, FakeHooks(), Events())
    reloader = Reloader(before, board)
    told: list[Config] = []
    reloader.tell(told.append)
    monkeypatch.setattr(Once, "left", 1)
    policy = {"name": f"{__name__}:Once"}
    with pytest.raises(ConfigError):
        reloader.apply(config_of(tmp_path / "f", models={"a": models["a"]}, policy=policy))
    assert reloader.config is before
    assert told == []
    assert list(board.models) == ["a", "b"]


@pytest.mark.parametrize("form", ALL_FORMS)
async def test_requests_are_answered_while_a_large_config_is_read(
    tmp_path: Path, form: str
) -> None:
    """It took a second or more on the loop; then, two were answered at most, whatever its size."""
    async with running_backends(tmp_path, "a") as rack:
        config = rack.write_config()
        data = json.loads(config.read_text())
        data["policy"] = {"options": {}}
        async with running_llmux(config, form) as llmux, llmux.client() as client:
            assert (await client.get("/health")).status_code == 200

            async def answered_meanwhile(size: int) -> int:
                data["x-large"] = [{str(n): [n] * 5} for n in range(size)]
                config.write_text(json.dumps(data))
                answers: list[int] = []

                async def reload() -> None:
                    answers.append((await client.post("/control/reload")).status_code)

                asked = 0
                async with trio.open_nursery() as nursery:
                    nursery.start_soon(reload)
                    if form == "llmux":
                        os.kill(llmux.process.pid, signal.SIGHUP)
                    while not answers:
                        assert (await client.get("/health")).status_code == 200
                        asked += 1
                assert answers == [200]
                return asked

            # A machine that stalls answers few in one reading, but not in every one.
            for _ in range(10):
                if await answered_meanwhile(12_000) > 5:
                    break
            else:
                pytest.fail("no request was answered while the config was read")
