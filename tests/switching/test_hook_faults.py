"""Hooks that fail in every way, through a real switcher: what runs next, and who hears of it.

What a single run of a hook does is in `test_hooks.py`; here it is about the switch around it.
"""

from __future__ import annotations

import errno
import os
import resource
import signal
import subprocess
import sys
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest
import trio
from structlog.testing import capture_logs

from llmux.config import HookName, HookTimeouts, ModelConfig, PolicyConfig
from llmux.errors import HookError
from llmux.hooks import log_file
from llmux.hooks.shell import ShellHooks
from llmux.observe.listeners import observed
from llmux.observe.metrics import Metrics
from llmux.policy import FifoPolicy
from llmux.switching.model import Phase
from llmux.switching.switcher import Switcher
from tests.servers import FORMS, Rack, chat, running_backends, running_llmux

CHAT = "/v1/chat/completions"
MIB = 1 << 20
PATIENCE_S = 10.0
"""Far more than anything here takes; so that a broken test ends."""

NOTE = 'echo "$LLMUX_MODEL $LLMUX_HOOK" >> ran; '
WAKE = ": > $LLMUX_MODEL.awake"
SLEEP = "rm -f $LLMUX_MODEL.awake"


class Site:
    """A folder with the models a and b: real hooks, and the switcher that runs them."""

    def __init__(self, folder: Path, **models: dict[str, Any]) -> None:
        self.folder = folder
        own: dict[str, Any] = {
            "port": 1,
            "wake": NOTE + WAKE,
            "sleep": NOTE + SLEEP,
            "alive": "true",
        }
        configs = {name: ModelConfig(name=name, **own | models.get(name, {})) for name in "ab"}
        events, settings = observed(Metrics()), PolicyConfig()
        self.hooks = ShellHooks(
            configs, directory=folder, log_dir=folder / "logs", events=events, kill_after_s=0.2
        )
        policy = FifoPolicy(settings)
        self.switcher = Switcher("ab", self.hooks, policy, events, settings=settings)

    @property
    def ran(self) -> list[str]:
        """Every hook that has noted that it runs, as `model hook`, in order."""
        path = self.folder / "ran"
        return path.read_text().splitlines() if path.exists() else []

    async def until_given_up(self, name: str) -> None:
        """After a failed wake: until its sleep hook has run, too."""
        while self.switcher.models[name].phase is not Phase.FAILED:
            await trio.sleep(0.01)

    async def ask(self, name: str) -> None:
        """A request; no other model may be awake then."""
        async with self.switcher.serving(name):
            assert [path.stem for path in self.folder.glob("*.awake")] == [name]

    async def failure(self, name: str) -> HookError:
        with pytest.raises(HookError) as caught:
            await self.ask(name)
        return caught.value

    @asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        """Run the switcher; at the end every count must be zero."""
        with trio.fail_after(PATIENCE_S):
            async with trio.open_nursery() as nursery:
                nursery.start_soon(self.switcher.run)
                yield
                for each in self.switcher.models.values():
                    assert (each.in_flight.count, each.waiters.count) == (0, 0)
                assert not self.switcher.has_died
                nursery.cancel_scope.cancel()


@pytest.fixture
def _tried_again_soon(monkeypatch: pytest.MonkeyPatch) -> None:
    """A model whose wake has failed is tried again after 50 ms."""
    monkeypatch.setattr("llmux.switching.core.FIRST_RETRY_S", 0.05)
    monkeypatch.setattr("llmux.switching.core.LONGEST_RETRY_S", 0.05)


tried_again_soon = pytest.mark.usefixtures("_tried_again_soon")


# ---- Over their time ----

STUBBORN = """sh -c 'trap "" TERM; echo $$ > pid; while :; do sleep 0.1; done' & wait"""
"""Only a child of the shell ignores SIGTERM."""

NOTES_OVERLAP = (
    "if grep -q '^State:[[:space:]]*[^ZX[:space:]]' /proc/$(cat pid)/status 2>/dev/null; "
    "then : > overlap; fi; "
)
"""Whether that child runs; one that nobody has reaped yet does not."""


@pytest.mark.parametrize("hook", ["wake", "sleep", "verify_asleep"])
async def test_what_is_over_its_time_is_gone_before_the_next_hook_runs(
    tmp_path: Path, hook: HookName
) -> None:
    looking = {"wake": NOTE + NOTES_OVERLAP + WAKE, "sleep": NOTE + NOTES_OVERLAP + SLEEP}
    overdue = {hook: f"{NOTE} rm -f a.awake; {STUBBORN}"}
    timeouts = HookTimeouts(**{hook: 0.7})
    site = Site(tmp_path, a=looking | overdue | {"hook_timeouts": timeouts}, b=looking)
    async with site.running():
        if hook == "wake":
            reason = (await site.failure("a")).reason
            assert reason == "took longer than 0.7 s (hook_timeouts.wake)"
            await site.until_given_up("a")
            assert site.ran == ["a wake", "a sleep"]
        else:
            await site.ask("a")
        if hook == "verify_asleep":
            error = await site.failure("b")
            assert (error.model, error.hook) == ("a", "verify_asleep")
            assert error.reason == "took longer than 0.7 s (hook_timeouts.verify_asleep)"
            assert site.ran == ["a wake", *["a sleep", "a verify_asleep"] * 2]
        else:
            await site.ask("b")
            assert site.ran == ["a wake", "a sleep", "b wake"]
    assert (tmp_path / "pid").exists()
    assert not (tmp_path / "overlap").exists()


# ---- Sleep hooks that fail ----


async def test_a_sleep_hook_that_fails_does_not_hold_up_the_wake(tmp_path: Path) -> None:
    site = Site(tmp_path, a={"sleep": f"{NOTE} {SLEEP}; echo no server >&2; exit 3"})
    with capture_logs() as events:
        async with site.running():
            await site.ask("a")
            await site.ask("b")
    assert site.ran == ["a wake", "a sleep", "b wake"]
    (failed,) = [each for each in events if each["event"] == "sleep_hook_failed"]
    assert (failed["model"], failed["to"]) == ("a", "b")
    assert failed["error"] == "Hook failed for a: sleep hook exited with 3: no server"


VERIFY = f"{NOTE} test -e free || {{ echo still taken; exit 1; }}"


async def test_a_gpu_that_is_free_only_after_the_second_sleep(tmp_path: Path) -> None:
    sleep = f"{NOTE} {SLEEP}; if [ -e tried ]; then : > free; else : > tried; fi"
    site = Site(tmp_path, a={"sleep": sleep, "verify_asleep": VERIFY})
    async with site.running():
        await site.ask("a")
        await site.ask("b")
    assert site.ran == ["a wake", *["a sleep", "a verify_asleep"] * 2, "b wake"]


@tried_again_soon
async def test_a_gpu_that_stays_taken_is_not_woken_into(tmp_path: Path) -> None:
    site = Site(tmp_path, a={"sleep": f"{NOTE} test -e free && {SLEEP}", "verify_asleep": VERIFY})
    errors: list[HookError] = []

    async def ask_in_vain() -> None:
        errors.append(await site.failure("b"))

    async with site.running():
        await site.ask("a")
        async with trio.open_nursery() as nursery:
            for _ in range(3):
                nursery.start_soon(ask_in_vain)
        message = "Hook failed for a: verify_asleep hook exited with 1: still taken"
        assert [error.details for error in errors] == [message] * 3
        assert site.ran == ["a wake", *["a sleep", "a verify_asleep"] * 2]
        await site.ask("a")  # it holds the GPU, so it may be woken again
        (tmp_path / "free").touch()
        await site.ask("b")
    assert site.ran[5:] == ["a wake", "a sleep", "a verify_asleep", "b wake"]


async def test_clients_hear_that_the_gpu_is_still_taken(tmp_path: Path) -> None:
    async with running_backends(tmp_path, "a", "b") as rack:
        stuck = {"sleep": "test -e free && rm a.awake", "verify_asleep": VERIFY}
        config = rack.write_config(errors={"hook_output": "clients"}, models={"a": stuck})
        async with running_llmux(config) as llmux, llmux.client() as client:
            assert (await client.post(CHAT, json=chat("a"))).status_code == 200
            answers: list[httpx.Response] = []

            async def ask() -> None:
                answers.append(await client.post(CHAT, json=chat("b")))

            async with trio.open_nursery() as nursery:
                for _ in range(3):
                    nursery.start_soon(ask)
            told = [(answer.status_code, answer.json()["error"]["code"]) for answer in answers]
            assert told == [(500, "hook_failed")] * 3
            assert answers[0].json()["error"]["message"].endswith("exited with 1: still taken")
            assert "b wake" not in rack.hook_log
            (tmp_path / "free").touch()
            later = await client.post(CHAT, json=chat("b"))  # waits until it is tried again
            assert (later.status_code, later.json()["served_by"]) == (200, "b")


# ---- Wake hooks that fail ----


@tried_again_soon
async def test_a_failed_wake_that_cannot_be_cleaned_up_stays_in_the_way(tmp_path: Path) -> None:
    broken = {"wake": f"{NOTE} {WAKE}; exit 1", "sleep": f"{NOTE} test -e free && {SLEEP}"}
    site = Site(tmp_path, b=broken | {"verify_asleep": VERIFY})
    async with site.running():
        assert (await site.failure("b")).hook == "wake"
        error = await site.failure("a")
        assert (error.model, error.hook) == ("b", "verify_asleep")
        assert site.ran == ["b wake", *["b sleep", "b verify_asleep"] * 4]
        (tmp_path / "free").touch()
        await site.ask("a")


NOT_RUN = {
    "not executable": ("./plain", "exited with 126 (not executable)"),
    "a folder": ("./folder", "exited with 126 (not executable)"),
    "missing": ("./nowhere.sh", "exited with 127 (command not found)"),
    "no such interpreter": ("./odd", "exited with 127 (command not found)"),
    "no shell": ("if", "exited with 2"),
    "its own 126": ("exit 126", "exited with 126 (not executable)"),
    "its own 127": ("exit 127", "exited with 127 (command not found)"),
}


@tried_again_soon
@pytest.mark.parametrize("name", NOT_RUN)
async def test_a_script_that_does_not_run_is_tried_again_once_it_is_mended(
    tmp_path: Path, name: str
) -> None:
    (tmp_path / "plain").touch(mode=0o600)
    (tmp_path / "folder").mkdir()
    (tmp_path / "odd").write_text("#!/nowhere/sh\n")
    (tmp_path / "odd").chmod(0o700)
    script, reason = NOT_RUN[name]
    site = Site(tmp_path, b={"wake": "./wake.sh"})
    wake = tmp_path / "wake.sh"
    wake.write_text(f"#!/bin/sh\n{NOTE}\n{script}\n")
    wake.chmod(0o700)
    async with site.running():
        error = await site.failure("b")
        assert error.reason == reason
        await site.until_given_up("b")
        assert site.ran == ["b wake", "b sleep"]
        await site.ask("a")
        wake.write_text(f"#!/bin/sh\n{NOTE}\n{WAKE}\n")
        await site.ask("b")


# ---- What they print ----


def memory(pid: int, field: str) -> int:
    """A field of /proc/PID/status in bytes: VmRSS, or VmHWM, the most there ever was of that."""
    status = Path(f"/proc/{pid}/status").read_text()
    (line,) = [line for line in status.splitlines() if line.startswith(f"{field}:")]
    return int(line.split()[1]) * 1024


@pytest.fixture
async def rack(tmp_path: Path) -> AsyncIterator[Rack]:
    async with running_backends(tmp_path, "a", "b") as rack:
        yield rack


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
async def test_a_hook_that_prints_100_mb(rack: Rack) -> None:
    noise = "yes 'a line of some length, as a loader prints them' | head -c 100000000"
    model = {"wake": f"{noise}; echo; echo out of memory; exit 1", "sleep": "echo slept"}
    log = rack.folder / "state" / "logs" / "a.log"
    async with running_llmux(
        rack.write_config(errors={"hook_output": "clients"}, models={"a": model})
    ) as llmux:
        pid = llmux.process.pid
        async with llmux.client() as client:
            assert (await client.post(CHAT, json=chat("b"))).status_code == 200
            before = memory(pid, "VmRSS")
            answer = await client.post(CHAT, json=chat("a"))
            assert answer.status_code == 500
            error = answer.json()["error"]["message"]
            assert error.endswith("\nout of memory")
            assert len(error) < 300  # the last five lines
            assert (await client.post(CHAT, json=chat("b"))).status_code == 200
        # It may grow during one run, and is cut before the next; that was the sleep hook.
        assert log_file.MAX_LOG_BYTES // 2 - 100 < log.stat().st_size <= log_file.MAX_LOG_BYTES
        assert log.read_bytes().endswith(b"slept\n")
        assert memory(pid, "VmHWM") - before < 2 * log_file.MAX_LOG_BYTES
        assert memory(pid, "VmRSS") - before < 8 * MIB


async def test_clients_and_logs_get_text_whatever_a_hook_prints(rack: Rack) -> None:
    printed = r"caf\351 \377\376\000 \033[31mred\033[0m\n"
    broken = {"a": {"wake": f"printf '{printed}'; exit 1"}}
    async with running_llmux(
        rack.write_config(errors={"hook_output": "clients"}, models=broken)
    ) as llmux:
        async with llmux.client() as client:
            answer = await client.post(CHAT, json=chat("a"))
        assert answer.json()["error"]["message"] == (
            "Hook failed for a: wake hook exited with 1: caf\ufffd \ufffd\ufffd red"
        )
    (logged,) = [line for line in llmux.lines if "hook_failed" in line]
    assert "caf\ufffd \ufffd\ufffd red" in logged


# ---- What they leave running ----


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
async def test_a_server_in_the_background_outlives_llmux_and_is_adopted(
    rack: Rack, number: signal.Signals
) -> None:
    """Nor does it get a SIGPIPE: what it prints still has somewhere to go."""
    server = "(while sleep 0.05; do echo alive; done) & echo $! >> a.pid; : > a.awake"
    model = {
        "wake": server,
        "sleep": "kill $(cat a.pid); rm a.awake",
        "alive": "kill -0 $(cat a.pid)",
    }
    config = rack.write_config(models={"a": model})
    log = rack.folder / "state" / "logs" / "a.log"
    exit_code = 0 if number == signal.SIGTERM else -number

    async def until_it_prints() -> None:
        printed = log.read_text().count("alive\n")
        with trio.fail_after(PATIENCE_S):
            while log.read_text().count("alive\n") < printed + 3:
                await trio.sleep(0.01)

    async with running_llmux(config, ends_with=exit_code) as llmux, llmux.client() as client:
        with trio.fail_after(PATIENCE_S):
            assert (await client.post(CHAT, json=chat("a"))).status_code == 200
        llmux.process.send_signal(number)
        await llmux.process.wait()
    await until_it_prints()
    async with running_llmux(config) as llmux, llmux.client() as client:
        assert (await client.post(CHAT, json=chat("a"))).status_code == 200
        assert any("model_adopted" in line for line in llmux.lines)
        assert len((rack.folder / "a.pid").read_text().splitlines()) == 1  # not woken again
        await until_it_prints()
        assert (await client.post(CHAT, json=chat("b"))).status_code == 200
        assert not (rack.folder / "a.awake").exists()


# ---- Nothing left to start them with ----


class NoProcesses:
    """`subprocess.Popen` while the machine lets nothing be started."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.error: Exception | None = None
        start = subprocess.Popen

        def popen(*arguments: Any, **options: Any) -> subprocess.Popen[bytes]:
            if self.error is not None:
                raise self.error
            return start(*arguments, **options)

        monkeypatch.setattr(subprocess, "Popen", popen)


@tried_again_soon
@pytest.mark.parametrize(
    "error",
    [
        OSError(errno.EAGAIN, os.strerror(errno.EAGAIN)),
        OSError(errno.ENOMEM, os.strerror(errno.ENOMEM)),
        OSError(errno.EMFILE, os.strerror(errno.EMFILE)),
        OSError(errno.ENFILE, os.strerror(errno.ENFILE)),
        RuntimeError("can't start new thread"),
    ],
    ids=["EAGAIN", "ENOMEM", "EMFILE", "ENFILE", "no thread"],
)
async def test_a_hook_that_cannot_be_started_fails_and_nothing_else(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    machine = NoProcesses(monkeypatch)
    site = Site(tmp_path, a={"verify_asleep": NOTE})
    async with site.running():
        machine.error = error
        assert (await site.failure("b")).reason == f"could not be started: {error}"
        await site.until_given_up("b")
        machine.error = None
        await site.ask("a")
        # It is as awake as before: b stays out.
        machine.error = error
        failed = await site.failure("b")
        assert (failed.model, failed.hook) == ("a", "sleep")
        # b's own clean-up could not be started either, and was made up for.
        assert site.ran == ["b sleep", "a wake"]
        machine.error = None
        await site.ask("b")
    assert site.ran == ["b sleep", "a wake", "a sleep", "a verify_asleep", "b wake"]


@contextmanager
def limited(what: int, soft: int) -> Iterator[None]:
    """This process with a lower limit."""
    before = resource.getrlimit(what)
    resource.setrlimit(what, (soft, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(what, before)


@tried_again_soon
@pytest.mark.skipif(os.geteuid() == 0, reason="root has no limit of processes")
async def test_a_limit_of_processes_that_is_reached(tmp_path: Path) -> None:
    site = Site(tmp_path)
    async with site.running():
        with limited(resource.RLIMIT_NPROC, 1):
            assert (await site.failure("a")).reason.startswith("could not be started: ")
            await site.until_given_up("a")
        await site.ask("a")


@contextmanager
def only_descriptors(count: int) -> Iterator[None]:
    """This process with so many descriptors left."""
    held: list[int] = []
    with limited(resource.RLIMIT_NOFILE, len(list(Path("/dev/fd").iterdir())) + 64):
        try:
            try:
                while True:
                    held.append(os.open(os.devnull, os.O_RDONLY))
            except OSError:
                for _ in range(count):
                    os.close(held.pop())
            yield
        finally:
            for descriptor in held:
                os.close(descriptor)


@tried_again_soon
async def test_descriptors_run_out_at_any_step_of_starting_a_hook(tmp_path: Path) -> None:
    site = Site(tmp_path)
    reasons: list[str] = []
    async with site.running():
        for count in range(12):
            with only_descriptors(count):
                try:
                    await site.ask("a")
                except HookError as error:
                    reasons.append(error.reason)
                    await site.until_given_up("a")
                else:
                    break
        assert (tmp_path / "a.awake").exists()
        assert len(reasons) > 2
        assert all(reason.startswith("could not be started: [Errno 24]") for reason in reasons)
        await site.ask("b")


async def test_descriptors_are_kept_back_for_hooks(
    rack: Rack, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As many clients as there may be, all waiting: the hooks that they wait for start."""
    command = 'ulimit -n 128; exec "$0" -m llmux'
    monkeypatch.setitem(FORMS, "limited", ["sh", "-c", command, sys.executable])
    async with running_llmux(rack.write_config(), "limited") as llmux, llmux.client() as client:
        answers: list[httpx.Response] = []

        async def ask(name: str) -> None:
            answers.append(await client.post(CHAT, json=chat(name, seconds=0.2)))

        async with trio.open_nursery() as nursery:
            for name in "ab" * 16:  # (128 - 64) / 2 connections
                nursery.start_soon(ask, name)
        assert [answer.status_code for answer in answers] == [200] * 32
        assert not any("Errno 24" in line for line in llmux.lines)


async def test_a_sleep_hook_that_could_not_be_started_wakes_nobody(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    start = subprocess.Popen

    def popen(*arguments: Any, **options: Any) -> Any:
        if options["env"].get("LLMUX_HOOK") == "sleep":
            raise OSError(errno.EAGAIN, os.strerror(errno.EAGAIN))
        return start(*arguments, **options)

    monkeypatch.setattr(subprocess, "Popen", popen)
    site = Site(tmp_path)
    async with site.running():
        await site.ask("a")
        with pytest.raises(HookError):
            await site.ask("b")
        assert "b wake" not in site.ran


async def test_idle_connections_leave_descriptors_for_those_in_use(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(
        FORMS, "limited", ["sh", "-c", 'ulimit -n 128; exec "$0" -m llmux', sys.executable]
    )
    async with running_backends(tmp_path, "a", "b", "c") as rack:
        async with running_llmux(rack.write_config(), "limited") as llmux, llmux.client() as client:
            answers: list[httpx.Response] = []

            async def ask(name: str) -> None:
                answers.append(await client.post(CHAT, json=chat(name, seconds=0.3)))

            for name in "abc":
                async with trio.open_nursery() as nursery:
                    for _ in range(32):
                        nursery.start_soon(ask, name)
            assert [answer.status_code for answer in answers] == [200] * 96
