"""`llmux validate`: its steps on a fake GPU, and as a command with real hooks and servers."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import h11
import pytest
import trio
from click.testing import CliRunner
from trio.testing import MockClock

from bench.processes import free_port
from llmux.cli.main import main
from llmux.config import Config, HookName, load_config, parse_config
from llmux.errors import HookError
from llmux.hooks.orphans import marked
from llmux.observe.listeners import observed
from llmux.server.composition import shell_hooks
from llmux.server.statelock import state_lock
from llmux.switching.awake import AwakeRecord, Entry
from llmux.validate.run import MAX_ANSWER_BYTES, Asker, Step, Validation
from llmux.validate.verdicts import Answer, Question
from tests.fakes import FakeHooks
from tests.servers import CheckingBackend, Rack, _send, chat, running_llmux

CHAT = "/v1/chat/completions"
EMBEDDINGS = "/v1/embeddings"

Row = tuple[str, str, str]
"""Stage, step and result."""


def rows(steps: list[Step]) -> list[Row]:
    return [(step.stage, step.step, step.result) for step in steps]


def failures(steps: list[Step]) -> list[tuple[str, str]]:
    return [(f"{s.stage} {s.step}", s.detail) for s in steps if s.result == "FAIL"]


# ---- The steps, on a fake GPU ----

GPU = {"a": "gpu0", "b": "gpu0", "c": "gpu0", "elsewhere": "gpu1"}


def config_of(folder: Path, groups: dict[str, str]) -> Config:
    hooks = {"wake": "true", "sleep": "true", "alive": "true"}
    models = {name: {"port": 1, "group": group, **hooks} for name, group in groups.items()}
    return parse_config({"models": models, "state_dir": str(folder)}, directory=folder)


class Fake:
    """A validation of `a` on an in-memory GPU."""

    def __init__(self, folder: Path, hooks: FakeHooks | None = None, **found: Entry) -> None:
        self.path = folder / "awake.json"
        record = AwakeRecord(self.path)
        for name, entry in found.items():
            record.note(name, entry.state)
        self.hooks = hooks or FakeHooks()
        self.record = AwakeRecord(self.path)
        self.record.load(GPU)
        self.steps: list[Step] = []
        self.answers: Iterator[str] = iter(())
        config = config_of(folder, GPU)
        self.validation = Validation(config, "a", self.hooks, self.record, self._ask)

    async def _ask(self) -> Answer:
        assert self.hooks.awake == {"a"}
        return Answer("a", words=tuple(next(self.answers, "I am a").split()))

    async def run(self, cycles: int = 1) -> bool:
        with trio.fail_after(1_000_000):
            return await self.validation.run(cycles, self.steps.append)


async def test_every_step_has_its_row(autojump_clock: MockClock, tmp_path: Path) -> None:
    fake = Fake(tmp_path, FakeHooks(verifiers={"a"}, seconds={("a", "wake"): 3, ("a", "sleep"): 1}))
    assert await fake.run(cycles=2)
    cycle = [
        "sleep", "verify_asleep", "alive, asleep", "wake", "alive", "ask again", "compare",
    ]  # fmt: skip
    assert rows(fake.steps) == [
        *(
            ("start", step, "PASS")
            for step in ("sleep", "verify_asleep", "wake", "alive", "ask 1", "ask 2")
        ),
        *((number, step, "PASS") for number in "12" for step in cycle),
        ("end", "sleep", "PASS"),
        ("end", "verify_asleep", "PASS"),
    ]
    assert [step.seconds for step in fake.steps if step.step == "wake"] == [3, 3, 3]
    assert [step.seconds for step in fake.steps if step.step == "compare"] == [None, None]
    assert fake.hooks.awake == set()


async def test_what_may_be_awake_sleeps_first_but_not_on_other_gpus(
    autojump_clock: MockClock, tmp_path: Path
) -> None:
    found = {"b": Entry("awake"), "elsewhere": Entry("awake")}
    fake = Fake(tmp_path, FakeHooks(awake={"b"}), **found)
    assert await fake.run()
    assert fake.hooks.calls[:3] == [("b", "sleep"), ("a", "sleep"), ("a", "wake")]
    assert {model for model, _ in fake.hooks.calls} == {"a", "b"}
    assert fake.steps[0].detail == "b may be awake"
    assert json.loads(fake.path.read_text()) == {"models": {"elsewhere": {"state": "awake"}}}


async def test_the_record_is_true_while_each_hook_runs(
    autojump_clock: MockClock, tmp_path: Path
) -> None:
    seen: list[tuple[str, str, str | None, str | None, bool]] = []

    class Watching(FakeHooks):
        async def _take(self, key, model, hook):  # type: ignore[no-untyped-def]
            after = AwakeRecord(tmp_path / "awake.json")
            after.load(GPU)
            states = [entry.state if (entry := after.entry(n)) else None for n in "ab"]
            seen.append((model, hook, *states, bool(after.mark(model))))
            await super()._take(key, model, hook)

    fake = Fake(tmp_path, Watching(), b=Entry("unsure"))
    assert await fake.run()
    assert seen == [
        ("b", "sleep", None, "unsure", True),
        ("a", "sleep", "unsure", None, True),
        ("a", "wake", "unsure", None, True),
        ("a", "alive", "awake", None, False),
        ("a", "sleep", "unsure", None, True),
        ("a", "alive", None, None, False),
        ("a", "wake", "unsure", None, True),
        ("a", "alive", "awake", None, False),
        ("a", "sleep", "unsure", None, True),
    ]
    assert json.loads(fake.path.read_text()) == {"models": {}}


async def test_a_failed_wake_ends_it_asleep(autojump_clock: MockClock, tmp_path: Path) -> None:
    fake = Fake(tmp_path, FakeHooks(failing={("a", "wake"): 1}))
    assert not await fake.run()
    assert failures(fake.steps) == [("start wake", "exited with 1 | no such GPU")]
    assert fake.hooks.calls == [("a", "sleep"), ("a", "wake"), ("a", "sleep")]
    assert fake.record.entry("a") is None


async def test_a_model_that_is_not_alive_after_waking(
    autojump_clock: MockClock, tmp_path: Path
) -> None:
    fake = Fake(tmp_path, FakeHooks(failing={("a", "alive"): 1}))
    assert not await fake.run()
    assert failures(fake.steps) == [("start alive", "exited with 1 | no such GPU")]
    assert fake.hooks.awake == set()


async def test_a_sleep_hook_that_fails_where_nothing_is_known_to_be_awake(
    autojump_clock: MockClock, tmp_path: Path
) -> None:
    """As `curl .../sleep` does while no server runs yet."""
    fake = Fake(tmp_path, FakeHooks(failing={("a", "sleep"): 1}))
    assert await fake.run()
    assert rows(fake.steps)[0] == ("start", "sleep", "-")
    assert fake.steps[0].detail == "exited with 1 | no such GPU"


@pytest.mark.parametrize("other", ["a", "b"])
async def test_one_that_may_be_awake_must_be_put_to_sleep(
    autojump_clock: MockClock, tmp_path: Path, other: str
) -> None:
    fake = Fake(tmp_path, FakeHooks(failing={(other, "sleep"): -1}), **{other: Entry("awake")})
    assert not await fake.run()
    assert ("a", "wake") not in fake.hooks.calls
    entry = fake.record.entry(other)
    assert entry is not None
    assert entry.state == "unsure"


async def test_a_gpu_that_is_still_taken_fails(autojump_clock: MockClock, tmp_path: Path) -> None:
    hooks = FakeHooks(verifiers={"a"}, failing={("a", "verify_asleep"): -1})
    fake = Fake(tmp_path, hooks)
    assert not await fake.run()
    assert failures(fake.steps)[0][0] == "start verify_asleep"
    assert ("a", "wake") not in hooks.calls
    assert fake.record.entry("a") is not None


async def test_a_sleep_that_fails_though_the_gpu_is_free_fails(
    autojump_clock: MockClock, tmp_path: Path
) -> None:
    class Failing(FakeHooks):
        async def run(self, model: str, hook: HookName, **about: str) -> None:
            if hook == "sleep" and self.awake:
                self.awake.clear()
                raise HookError(model, hook, "exited with 1")
            await super().run(model, hook, **about)

    fake = Fake(tmp_path, Failing(verifiers={"a"}))
    assert not await fake.run()
    assert failures(fake.steps) == [("1 sleep", "exited with 1")]
    assert rows(fake.steps)[-1] == ("1", "verify_asleep", "PASS")
    assert fake.record.entry("a") is None


@pytest.mark.parametrize("verifiers", [set(), {"a"}])
async def test_an_alive_hook_that_says_yes_while_asleep_is_told(
    autojump_clock: MockClock, tmp_path: Path, verifiers: set[str]
) -> None:
    """As `curl /health` of a sleeping vLLM does; it does no harm while llmux alone switches."""

    class Yes(FakeHooks):
        async def run(self, model: str, hook: HookName, **about: str) -> None:
            if hook != "alive":
                await super().run(model, hook, **about)

    fake = Fake(tmp_path, Yes(verifiers=verifiers))
    assert await fake.run()
    (step,) = [step for step in fake.steps if step.result == "WARN"]
    assert step.step == "alive, asleep"
    assert ("nothing shows that it sleeps" in step.detail) is (not verifiers)


async def test_an_alive_hook_that_cannot_be_started_is_no_no(
    autojump_clock: MockClock, tmp_path: Path
) -> None:
    class Unstartable(FakeHooks):
        async def run(self, model: str, hook: HookName, **about: str) -> None:
            if hook == "alive" and not self.awake:
                raise HookError(model, hook, "could not be started", was_started=False)
            await super().run(model, hook, **about)

    fake = Fake(tmp_path, Unstartable())
    assert not await fake.run()
    assert failures(fake.steps) == [("1 alive, asleep", "could not be started")]


async def test_a_later_cycle_is_compared_with_the_first_answers(
    autojump_clock: MockClock, tmp_path: Path
) -> None:
    fake = Fake(tmp_path)
    fake.answers = iter(["I am a", "I am a", "I am a", "I am b"])
    assert not await fake.run(cycles=5)
    assert failures(fake.steps) == [("2 compare", "not as before: 'I am b', was 'I am a'")]
    assert fake.hooks.awake == set()


async def test_signals_end_the_checks_and_then_the_sleep(
    autojump_clock: MockClock, tmp_path: Path
) -> None:
    hooks = FakeHooks(seconds={("a", "wake"): 1000})
    fake = Fake(tmp_path, hooks)
    async with trio.open_nursery() as nursery:

        async def interrupt() -> None:
            await trio.sleep(10)
            hooks.gates["a", "sleep"] = trio.Event()  # never set
            os.kill(os.getpid(), signal.SIGINT)
            await trio.sleep(10)
            os.kill(os.getpid(), signal.SIGTERM)

        nursery.start_soon(interrupt)
        assert not await fake.run()
    assert failures(fake.steps) == [("start wake", "interrupted"), ("end sleep", "interrupted")]
    assert trio.current_time() < 1000
    assert fake.record.entry("a") is not None


async def test_a_sleep_at_the_end_that_is_broken_off_fails(
    autojump_clock: MockClock, tmp_path: Path
) -> None:
    class Interrupting(FakeHooks):
        async def run(self, model: str, hook: HookName, **about: str) -> None:
            await super().run(model, hook, **about)
            if self.calls.count(("a", "sleep")) == 3:
                for _ in range(2):
                    os.kill(os.getpid(), signal.SIGINT)
                    await trio.sleep(1)

    fake = Fake(tmp_path, Interrupting())
    assert not await fake.run()
    assert failures(fake.steps) == [("end sleep", "interrupted")]
    assert fake.record.entry("a") is not None


# ---- Real servers ----


@dataclass
class Speaker(CheckingBackend):
    """A server that answers as it is told: by how often it was woken, the request, its body."""

    says: Callable[[int, bytes], tuple[int, bytes]] = lambda _wakes, _body: (500, b"")

    async def _answer(self, stream: trio.SocketStream, parser: h11.Connection, body: bytes) -> None:
        wakes = self.awake.with_suffix(".wakes").read_text().count("\n")
        status, answer = self.says(wakes, body)
        if not status:
            await trio.sleep_forever()
        headers = [("content-length", str(len(answer)))]
        await _send(stream, parser, h11.Response(status_code=status, headers=headers))
        await _send(stream, parser, h11.Data(data=answer))
        self._finish()
        await _send(stream, parser, h11.EndOfMessage())


def introduce(name: str, _wakes: int, _body: bytes) -> tuple[int, bytes]:
    return 200, reply(name, f"I am {name}")


def reply(model: str, text: str) -> bytes:
    choice = {"message": {"role": "assistant", "content": text}}
    return json.dumps({"model": model, "choices": [choice]}).encode()


@asynccontextmanager
async def site(folder: Path, *names: str) -> AsyncIterator[Rack]:
    """Servers, and a config with `sh` hooks that count wakes."""
    speakers = {name: Speaker(name, folder / f"{name}.awake") for name in names or ("a",)}
    for name, speaker in speakers.items():
        speaker.says = partial(introduce, name)
    rack = Rack(folder, dict(speakers))
    async with trio.open_nursery() as nursery:
        for speaker in speakers.values():
            await nursery.start(speaker.serve)
        yield rack
        assert not rack.violations
        nursery.cancel_scope.cancel()


def counting(rack: Rack, **more: Any) -> dict[str, Any]:
    """What a config says of all models."""
    return {
        name: {
            "wake": f"{rack.model(name)['wake']}; echo >> {name}.wakes",
            "verify_asleep": f"test ! -e {name}.awake",
            **more,
        }
        for name in rack.backends
    }


async def validated(
    config: Config, *, path: str = CHAT, timeout_s: float = 10, model: str = "a"
) -> list[Step]:
    """All steps of one cycle."""
    record = AwakeRecord(config.state_dir / "awake.json")
    record.load(config.models)
    settings = config.models[model]
    question = Question(path, settings.upstream_model or model, "Who are you?")
    hooks = shell_hooks(config, observed(), record.mark)
    ask = Asker(settings, question, timeout_s).ask
    steps: list[Step] = []
    with trio.fail_after(20):
        passed = await Validation(config, model, hooks, record, ask).run(1, steps.append)
    assert passed is not bool(failures(steps))
    assert record.entry(model) is None
    return steps


def speaker(rack: Rack, name: str = "a") -> Speaker:
    backend = rack.backends[name]
    assert isinstance(backend, Speaker)
    return backend


async def test_a_sound_model_passes(tmp_path: Path) -> None:
    async with site(tmp_path) as rack:
        more = {"upstream_model": "org/a", "headers": {"Authorization": "Bearer x"}}
        config = load_config(rack.write_config(models=counting(rack, **more)))
        steps = await validated(config)
        assert not failures(steps)
        assert len(steps) == 15
        for request, body in rack.backends["a"].received:
            headers = dict(request.headers)
            assert (request.method, request.target) == (b"POST", CHAT.encode())
            assert headers[b"authorization"] == b"Bearer x"
            assert headers[b"content-type"] == b"application/json"
            asked = json.loads(body)
            assert asked["model"] == "org/a"
            assert asked["messages"][0]["content"] == "Who are you?"
        assert len(rack.backends["a"].received) == 3


AFTER_WAKING = {
    "garbage": (200, reply("a", "!" * 40), "ask again", "garbage, the same over and over"),
    "other weights": (200, reply("a", "I am b"), "compare", "not as before: 'I am b'"),
    "other name": (200, reply("b", "I am a"), "compare", "answers as 'b', and did as 'a'"),
    "empty": (200, reply("a", ""), "ask again", "an empty answer"),
    "error": (500, b"EngineDeadError", "ask again", "status 500: 'EngineDeadError'"),
    "redirect": (302, b"", "ask again", "status 302"),
    "not JSON": (200, b"<html>", "ask again", "'<html>'"),
    "endless": (200, b" " * (MAX_ANSWER_BYTES + 1), "ask again", "more than 4194304 bytes"),
    "hang": (0, b"", "ask again", "no answer within 0.3 s"),
}


@pytest.mark.parametrize("what", AFTER_WAKING)
async def test_what_goes_wrong_after_waking_is_caught(tmp_path: Path, what: str) -> None:
    status, answer, step, why = AFTER_WAKING[what]
    async with site(tmp_path) as rack:
        sound = (200, reply("a", "I am a"))
        speaker(rack).says = lambda wakes, _: sound if wakes == 1 else (status, answer)
        config = load_config(rack.write_config(models=counting(rack)))
        steps = await validated(config, timeout_s=0.3 if what == "hang" else 10)
        ((where, detail),) = failures(steps)
        assert where == f"1 {step}"
        assert why in detail
        assert not rack.backends["a"].awake.exists()


async def test_a_server_that_is_never_the_same_is_told_from_garbage(tmp_path: Path) -> None:
    texts = iter(["one two three four", "one two three five", "one two six four", "x y z v"] * 2)
    async with site(tmp_path) as rack:
        speaker(rack).says = lambda _wakes, _body: (200, reply("a", next(texts)))
        config = load_config(rack.write_config(models=counting(rack)))
        assert not failures(await validated(config))
        next(texts)
        (tmp_path / "a.wakes").unlink()
        speaker(rack).says = lambda wakes, _: (
            200,
            reply("a", next(texts) if wakes == 1 else "x y z v"),
        )
        assert [step for step, _ in failures(await validated(config))] == ["1 compare"]


async def test_a_server_that_does_not_listen(tmp_path: Path) -> None:
    hooks = {"wake": "true", "sleep": "true", "alive": "true"}
    models = {"a": {"port": free_port(), **hooks}}
    config = parse_config({"models": models, "state_dir": str(tmp_path)}, directory=tmp_path)
    ((step, detail),) = failures(await validated(config))
    assert step == "start ask 1"
    assert "refused" in detail.lower()


async def test_embeddings(tmp_path: Path) -> None:
    def embed(wakes: int, body: bytes, *, spoiled: bool) -> tuple[int, bytes]:
        assert json.loads(body) == {"model": "a", "input": "Who are you?"}
        numbers = [0.1, -0.3, 0.2] if spoiled and wakes > 1 else [0.1, 0.3, 0.2 + wakes / 10_000]
        return 200, json.dumps({"model": "a", "data": [{"embedding": numbers}]}).encode()

    async with site(tmp_path) as rack:
        config = load_config(rack.write_config(models=counting(rack)))
        speaker(rack).says = partial(embed, spoiled=False)
        steps = await validated(config, path=EMBEDDINGS)
        assert not failures(steps)
        assert "3 numbers: 0.1, 0.3" in steps[4].detail
        (tmp_path / "a.wakes").unlink()
        speaker(rack).says = partial(embed, spoiled=True)
        steps = await validated(config, path=EMBEDDINGS)
        assert [step for step, _ in failures(steps)] == ["1 compare"]


# ---- The command ----

VALIDATE = [sys.executable, "-m", "llmux", "validate"]


async def run_command(*arguments: str) -> tuple[int, str, str]:
    """Exit code, standard output and standard error."""
    with trio.fail_after(30):
        done = await trio.run_process(
            [*VALIDATE, *arguments], capture_stdout=True, capture_stderr=True, check=False
        )
    return done.returncode, done.stdout.decode(), done.stderr.decode()


async def test_the_command_prints_a_table(tmp_path: Path) -> None:
    async with site(tmp_path) as rack:
        models = counting(rack)
        config = rack.write_config(
            models={"a": {**models["a"], "aliases": ["gpt"], "upstream_model": "org/a"}}
        )
        code, output, errors = await run_command("gpt", "-c", str(config), "--prompt", "Well?")
        assert (code, errors) == (0, "")
        head, first, *_, last = output.splitlines()
        assert head.split() == ["stage", "step", "seconds"]
        assert first.split()[:2] == ["start", "sleep"]
        assert first.split()[3] == "PASS"
        assert last == "PASS: a, cycles: 1"
        for _, body in rack.backends["a"].received:
            assert json.loads(body)["model"] == "org/a"
            assert b"Well?" in body

        speaker(rack).says = lambda _wakes, _body: (200, reply("a", "!!!!!!!!"))
        code, output, errors = await run_command("-c", str(config), "a", "--json")
        assert (code, errors) == (1, "")
        found = json.loads(output)
        assert (found["model"], found["passed"]) == ("a", False)
        assert [step["step"] for step in found["steps"] if step["result"] == "FAIL"] == ["ask 1"]


async def test_the_command_and_llmux_keep_out_of_each_others_way(tmp_path: Path) -> None:
    async with site(tmp_path, "a", "b") as rack:
        config = rack.write_config(models=counting(rack))
        async with running_llmux(config) as llmux, llmux.client() as client:
            assert (await client.post(CHAT, json=chat("b"))).status_code == 200
            code, output, errors = await run_command("a", "-c", str(config))
            assert (code, output) == (2, "")
            assert f"(pid {llmux.process.pid}, config {config})" in errors
        # llmux has left b awake.
        log = len(rack.hook_log)
        code, output, _ = await run_command("a", "-c", str(config))
        assert code == 0, output
        assert rack.hook_log[log:] == [
            "b sleep", "a sleep", "a wake", "a sleep", "a wake", "a sleep",
        ]  # fmt: skip
        assert not any(backend.awake.exists() for backend in rack.backends.values())


STOPS = "if [ -e stop ]; then : > here; while [ -e stop ]; do sleep 0.02; done; fi"


@asynccontextmanager
async def stopped_in_wake(folder: Path, config: Path) -> AsyncIterator[trio.Process]:
    """A `llmux validate` whose wake hook stands still."""
    (folder / "stop").touch()
    process = await trio.lowlevel.open_process(
        [*VALIDATE, "a", "-c", str(config)], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    try:
        with trio.fail_after(20):
            while not (folder / "here").exists():
                await trio.sleep(0.01)
        yield process
    finally:
        if process.returncode is None:
            process.kill()
        (folder / "stop").unlink(missing_ok=True)
        await process.wait()


async def test_ctrl_c_leaves_the_model_asleep(tmp_path: Path) -> None:
    async with site(tmp_path) as rack:
        wake = f"{rack.model('a')['wake']}; {STOPS}"
        config = rack.write_config(models={"a": {"wake": wake}})
        async with stopped_in_wake(tmp_path, config) as process:
            assert rack.backends["a"].awake.exists()
            process.send_signal(signal.SIGINT)
            with trio.fail_after(20):
                assert await process.wait() == 1
        assert not rack.backends["a"].awake.exists()
        assert rack.hook_log == ["a sleep", "a wake", "a sleep"]
        assert json.loads((tmp_path / "state" / "awake.json").read_text()) == {"models": {}}


async def test_after_a_kill_llmux_wakes_no_second_model(tmp_path: Path) -> None:
    async with site(tmp_path, "a", "b") as rack:
        models = counting(rack)
        models["a"]["wake"] = f"{STOPS}; {models['a']['wake']}"  # it would wake after all
        config = rack.write_config(models=models)
        async with stopped_in_wake(tmp_path, config) as process:
            process.kill()
            await process.wait()
            async with running_llmux(config) as llmux, llmux.client() as client:
                assert (await client.post(CHAT, json=chat("b"))).status_code == 200
        assert rack.hook_log == ["a sleep", "a sleep", "b wake"]
        assert not rack.backends["a"].awake.exists()


async def test_after_a_kill_another_validation_ends_the_hook_that_was_left(tmp_path: Path) -> None:
    async with site(tmp_path, "a", "b") as rack:
        models = counting(rack)
        models["a"]["wake"] = f"{STOPS}; {models['a']['wake']}"
        config = rack.write_config(models=models)
        async with stopped_in_wake(tmp_path, config) as process:
            process.kill()
            await process.wait()
            record = AwakeRecord(tmp_path / "state" / "awake.json")
            record.load(["a"])
            assert marked(record.mark("a"))
            assert not failures(await validated(load_config(config), model="b"))
            assert not marked(record.mark("a"))
        assert rack.hook_log[:4] == ["a sleep", "a sleep", "b sleep", "b wake"]


# ---- What is wrong before it begins ----


@pytest.fixture
def config(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr("llmux.cli.validate._configure_logs", lambda: None)
    path = tmp_path / "llmux.json"
    hooks = {"wake": "true", "sleep": "true", "alive": "true"}
    models = {name: {"port": 1, **hooks} for name in ("a", "b")}
    path.write_text(json.dumps({"models": models, "state_dir": "state"}))
    return path


def complaint(*arguments: str) -> str:
    result = CliRunner().invoke(main, ["validate", *arguments])
    assert result.exit_code == 2
    assert result.stdout == ""
    return result.stderr


def test_an_unknown_model(config: Path) -> None:
    expected = f"no model 'x' in {config}; there is: a, b\n"
    assert complaint("x", "-c", str(config)) == expected


def test_a_bad_config(config: Path) -> None:
    config.write_text('{"models": {"a": {"port": "x"}}}')
    said = complaint("a", "-c", str(config))
    assert said.startswith(f"{config}:1:19: models.a.port: expected int")


def test_a_lock_that_is_held(config: Path) -> None:
    with state_lock(config.parent / "state", config):
        assert f"pid {os.getpid()}" in complaint("a", "-c", str(config))


def test_a_state_dir_that_cannot_be_made(config: Path) -> None:
    (config.parent / "state").write_text("")
    assert "state" in complaint("a", "-c", str(config))


@pytest.mark.parametrize(
    "option", [("--path", "/v1/rerank"), ("--cycles", "0"), ("--timeout", "0")]
)
def test_bad_options(config: Path, option: tuple[str, str]) -> None:
    assert option[0] in complaint("a", "-c", str(config), *option)
