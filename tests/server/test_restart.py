"""llmux is killed at every instant of a switch, and started again: never two models awake."""

from __future__ import annotations

import json
import os
import signal
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from functools import partial
from pathlib import Path

import httpx
import pytest
import trio
from trio.testing import MockClock

from llmux.hooks.orphans import MARK_VARIABLE, end_marked, marked
from llmux.switching.awake import AwakeRecord, Entry
from llmux.switching.model import Phase
from tests.fakes import FakeHooks, Rig
from tests.servers import LlmuxProcess, Rack, chat, running_backends, running_llmux

CHAT = "/v1/chat/completions"

# ---- The record ----


def test_the_record_is_what_was_noted(tmp_path: Path) -> None:
    path = tmp_path / "state" / "awake.json"
    record = AwakeRecord(path)
    record.load(["a", "b"])
    record.note("a", "awake")
    record.note("b", "unsure")
    after = AwakeRecord(path)
    after.load(["a", "b"])
    assert after.entry("a") == Entry("awake")
    found = after.entry("b")
    assert found is not None
    assert found.state == "unsure"
    assert found.mark == record.mark("b") != ""
    record.note("a", None)
    record.note("b", None)
    assert json.loads(path.read_text()) == {"models": {}}
    assert path.stat().st_mode & 0o777 == 0o600
    assert [each.name for each in path.parent.iterdir()] == ["awake.json"]


def test_of_a_broken_record_any_model_may_be_awake(tmp_path: Path) -> None:
    path = tmp_path / "awake.json"
    path.write_text('{"models": {"a"')
    record = AwakeRecord(path)
    record.load(["a", "b"])
    assert record.entry("a") == record.entry("b") == Entry("unsure")


def test_models_that_the_config_has_no_more_are_left_alone(tmp_path: Path) -> None:
    path = tmp_path / "awake.json"
    path.write_text('{"models": {"gone": {"state": "awake"}, "a": {"state": "awake"}}}')
    record = AwakeRecord(path)
    record.load(["a"])
    assert record.entry("gone") is None
    assert record.entry("a") == Entry("awake")


def test_what_is_left_of_other_models_stays_in_the_record(tmp_path: Path) -> None:
    path = tmp_path / "awake.json"
    path.write_text('{"models": {"gone": {"state": "unsure", "mark": "m"}}}')
    record = AwakeRecord(path)
    record.load(["a"])
    assert record.left_marks() == ["m"]
    record.note("a", "awake")
    record.note("a", None)
    again = AwakeRecord(path)
    again.load(["gone"])
    assert again.entry("gone") == Entry("unsure", "m")


async def test_a_model_that_comes_back_may_be_awake_since_before(
    tmp_path: Path, autojump_clock: MockClock
) -> None:
    path = tmp_path / "awake.json"
    path.write_text('{"models": {"b": {"state": "awake", "mark": ""}}}')
    record = AwakeRecord(path)
    record.load(["a"])
    rig = Rig(("a",), record=record)
    rig.hooks.awake.add("b")
    async with rig.running():
        rig.switcher.add("b")
        await rig.ask("a")
        assert rig.hooks.awake == {"a"}
        await rig.ask("b")
        assert rig.hooks.awake == {"b"}


def test_a_record_that_cannot_be_written_stops_nothing(tmp_path: Path) -> None:
    blocked = tmp_path / "file"
    blocked.write_text("")
    AwakeRecord(blocked / "awake.json").note("a", "awake")


# ---- Taking over, on a fake GPU ----


def left_behind(path: Path, **entries: Entry) -> AwakeRecord:
    record = AwakeRecord(path / "awake.json")
    for name, entry in entries.items():
        record.note(name, entry.state)
    again = AwakeRecord(path / "awake.json")
    again.load(["a", "b"])
    return again


async def test_a_model_that_is_awake_is_adopted(autojump_clock: MockClock, tmp_path: Path) -> None:
    hooks = FakeHooks(awake={"a"}, seconds={("a", "alive"): 2})
    rig = Rig(hooks=hooks, record=left_behind(tmp_path, a=Entry("awake")))
    async with rig.running():
        assert await rig.ask("a") == pytest.approx(2, abs=0.1)
        assert hooks.calls == [("a", "alive")]
        await rig.ask("b")
        assert hooks.calls == [("a", "alive"), ("a", "sleep"), ("b", "wake")]


async def test_a_model_that_does_not_answer_is_put_to_sleep_before_another_wakes(
    autojump_clock: MockClock, tmp_path: Path
) -> None:
    hooks = FakeHooks(failing={("a", "alive"): 1}, awake={"a"})
    rig = Rig(hooks=hooks, record=left_behind(tmp_path, a=Entry("awake")))
    async with rig.running():
        await rig.ask("b")
    assert hooks.calls == [("a", "alive"), ("a", "sleep"), ("b", "wake")]


async def test_two_that_may_be_awake_are_both_put_to_sleep_before_a_third(
    autojump_clock: MockClock, tmp_path: Path
) -> None:
    hooks = FakeHooks()
    record = left_behind(tmp_path, a=Entry("unsure"), b=Entry("unsure"))
    rig = Rig(("a", "b", "c"), hooks=hooks, record=record)
    async with rig.running():
        await rig.ask("c")
    assert hooks.calls == [("a", "sleep"), ("b", "sleep"), ("c", "wake")]
    assert record.entry("a") is record.entry("b") is None
    assert record.entry("c") == Entry("awake")


async def test_the_record_is_written_before_and_after_each_hook(
    autojump_clock: MockClock, tmp_path: Path
) -> None:
    record = AwakeRecord(tmp_path / "awake.json")
    seen: list[tuple[str, str, str | None, str | None]] = []

    class Watching(FakeHooks):
        async def _take(self, key, model, hook):  # type: ignore[no-untyped-def]
            after = AwakeRecord(tmp_path / "awake.json")
            after.load(["a", "b"])
            states = [entry.state if (entry := after.entry(n)) else None for n in "ab"]
            seen.append((model, hook, *states))
            await super()._take(key, model, hook)

    rig = Rig(hooks=Watching(), record=record)
    async with rig.running():
        await rig.ask("a")
        await rig.ask("b")
        assert rig.switcher.models["a"].phase is Phase.ASLEEP
    assert seen == [
        ("a", "wake", "unsure", None),
        ("a", "alive", "unsure", None),
        ("a", "sleep", "unsure", None),
        ("b", "wake", None, "unsure"),
        ("b", "alive", None, "unsure"),
    ]
    assert record.entry("b") == Entry("awake")


# ---- Processes that a killed llmux left ----


async def test_what_has_a_mark_is_ended_with_its_children(tmp_path: Path) -> None:
    script = "trap '' TERM; setsid sleep 300 & echo started; sleep 300"
    process = await trio.lowlevel.open_process(
        ["sh", "-c", script],
        env={**os.environ, MARK_VARIABLE: "0123abcd"},
        start_new_session=True,
    )
    while len(marked("0123abcd")) < 3:
        await trio.sleep(0.01)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(process.wait)  # as init would, or it stays a zombie
        await end_marked("0123abcd", kill_after_s=0.3)
    assert marked("0123abcd") == []
    assert process.returncode == -signal.SIGKILL


# ---- The whole thing, killed for real ----

STEPS = {
    # Each hook stops at `<model>.<hook>.<step>` if such a file exists.
    "wake": "stop 1; : > $LLMUX_MODEL.awake; stop 2",
    "sleep": "stop 1; rm -f $LLMUX_MODEL.awake; stop 2",
}

PREAMBLE = (
    'stop() { f=$LLMUX_MODEL.$LLMUX_HOOK.$1; if [ -e "$f" ]; then : > "$f.here"; '
    'while [ -e "$f" ]; do sleep 0.02; done; fi; }; echo "$LLMUX_MODEL $LLMUX_HOOK" >> hooks.log; '
)

INSTANTS = [
    "a.sleep.1", "a.sleep.2", "b.wake.1", "b.wake.2", "draining", "serving", "woken",
]  # fmt: skip


@asynccontextmanager
async def killed(rack: Rack, config: Path) -> AsyncIterator[tuple[LlmuxProcess, httpx.AsyncClient]]:
    async with (
        running_llmux(config, ends_with=-signal.SIGKILL) as llmux,
        llmux.client() as client,
    ):
        yield llmux, client
        llmux.process.kill()
        await llmux.process.wait()


@pytest.mark.parametrize("instant", INSTANTS)
async def test_killed_at_any_instant_of_a_switch(tmp_path: Path, instant: str) -> None:
    async with running_backends(tmp_path, "a", "b") as rack:
        hooks = {hook: PREAMBLE + script for hook, script in STEPS.items()}
        config = rack.write_config(models={"a": hooks, "b": hooks})
        stop = tmp_path / instant
        if instant[1] == ".":
            stop.touch()
        async with killed(rack, config) as (killed_one, client), trio.open_nursery() as nursery:
            assert (await client.post(CHAT, json=chat("a"))).status_code == 200

            async def ask(model: str, **fields: object) -> None:
                with suppress(httpx.HTTPError):  # killed
                    await client.post(CHAT, json=chat(model, **fields))

            if instant == "draining":
                nursery.start_soon(partial(ask, "a", stream=True, chunks=1000, interval=0.05))
                await trio.sleep(0.2)
            if instant != "serving":
                nursery.start_soon(ask, "b")
            if instant[1] == ".":
                with trio.fail_after(10):
                    while not (tmp_path / f"{instant}.here").exists():
                        await trio.sleep(0.01)
            else:
                await trio.sleep(0.3)
            killed_one.process.kill()  # first: a drain would end with its client
            nursery.cancel_scope.cancel()
        # A hook that stood there at the kill would go on now, if it were still there.
        stop.unlink(missing_ok=True)
        log = len(rack.hook_log)
        async with running_llmux(config) as llmux, llmux.client() as client:
            for model in "ba" * 2:
                answer = await client.post(CHAT, json=chat(model))
                assert (answer.status_code, answer.json().get("served_by")) == (200, model)
                assert [name for name in "ab" if rack.backends[name].awake.exists()] == [model]
        if instant in {"serving", "draining"}:
            assert rack.hook_log[log] == "a sleep", "a was awake: adopted, and left for b"
        if instant == "woken":
            assert rack.hook_log[log] == "b sleep", "b was awake: adopted, and asked at once"
