"""A `state_dir` that cannot be written is told in one line, and stops nothing that runs."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import pytest
import trio
from structlog.testing import capture_logs

from llmux.config import ModelConfig
from llmux.hooks.shell import ShellHooks
from llmux.observe.events import Events
from llmux.server.statelock import state_lock
from llmux.switching.awake import AwakeRecord
from tests.servers import (
    ALL_FORMS,
    chat,
    running_backends,
    running_llmux,
    start_in_vain,
)

CHAT = "/v1/chat/completions"


@pytest.mark.parametrize("form", ALL_FORMS)
@pytest.mark.parametrize("place", ["file/state", "file", "/proc/nowhere/state"])
async def test_at_the_start_one_line_says_what_to_set(
    form: str, place: str, tmp_path: Path
) -> None:
    (tmp_path / "file").touch()
    async with running_backends(tmp_path, "a") as rack:
        _, lines = await start_in_vain(rack.write_config(state_dir=place), form)
    told = [line for line in lines if "state_dir" in line]
    assert len(told) == 1, lines
    assert place in told[0]
    assert "set state_dir in the config" in told[0]
    assert not any("Traceback" in line for line in lines)


def test_a_full_disk_does_not_keep_llmux_from_starting(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_args: object) -> int:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "pwrite", full)
    with state_lock(tmp_path, None):
        pass


def test_the_record_says_so_once_until_it_works_again(tmp_path: Path) -> None:
    blocked = tmp_path / "state"
    blocked.write_text("")
    record = AwakeRecord(blocked / "awake.json")
    with capture_logs() as events:
        for _ in range(3):
            record.note("a", "awake")
            record.note("a", None)
    assert [each["event"] for each in events] == ["awake_not_written"]
    assert "state_dir" in events[0]["hint"]
    blocked.unlink()
    record.note("a", "awake")
    shutil.rmtree(blocked)
    blocked.write_text("")
    with capture_logs() as events:
        record.note("a", None)
    assert [each["event"] for each in events] == ["awake_not_written"]


async def test_hooks_say_so_once(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    model = ModelConfig(name="m", port=1, wake="true", sleep="true", alive="true")
    shell = ShellHooks({"m": model}, directory=tmp_path, log_dir=tmp_path / "file", events=Events())
    with capture_logs() as events:
        for _ in range(3):
            await shell.of("m").run("wake")
    assert [each["event"] for each in events].count("hook_log_unusable") == 1


@pytest.mark.parametrize("form", ALL_FORMS)
async def test_one_that_goes_while_llmux_runs_stops_nothing(form: str, tmp_path: Path) -> None:
    async with running_backends(tmp_path, "a", "b") as rack:
        async with running_llmux(rack.write_config(), form) as llmux, llmux.client() as client:
            assert (await client.post(CHAT, json=chat("a"))).status_code == 200
            shutil.rmtree(tmp_path / "state")
            (tmp_path / "state").touch()  # nobody, not even root, can write below it
            for model in "baba":
                assert (await client.post(CHAT, json=chat(model))).status_code == 200
            await trio.sleep(1.1)
        for event, most in (
            ("awake_not_written", 1),
            ("journal_failed", 1),
            ("hook_log_unusable", 2),
        ):
            assert 1 <= sum(event in line for line in llmux.lines) <= most
        assert not any("Traceback" in line for line in llmux.lines)
