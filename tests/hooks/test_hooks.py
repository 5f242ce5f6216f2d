"""Shell hooks on real processes: what they leave behind, what ends them, what they tell."""

from __future__ import annotations

import ctypes
import os
import resource
import shlex
import signal
import stat
import subprocess
import sys
from collections.abc import Callable, Iterator, MutableMapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, get_args

import pytest
import trio
from structlog.testing import capture_logs

from llmux.config import USUAL_SECRETS, HookName, HookTimeouts, ModelConfig, parse_config
from llmux.errors import HookError
from llmux.hooks import environment, log_file, process_group
from llmux.hooks.environment import shell_command
from llmux.hooks.log_file import log_name
from llmux.hooks.shell import ShellHooks
from llmux.observe.events import HookEnded
from llmux.observe.listeners import observed
from llmux.observe.metrics import Metrics
from llmux.observe.schemas import HookRun
from llmux.server.composition import shell_hooks as shell_hooks_of

KILL_AFTER_S = 0.1
PATIENCE_S = 10.0
"""Far more than anything here takes; so that a broken test ends."""

STUBBORN_CHILD = """sh -c 'trap "" TERM; echo $$ > pid; echo > ready; sleep 30'"""

Events = list[MutableMapping[str, Any]]


class Bench:
    """A folder with one model in it, whose wake hook is under test."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.log_dir = directory / "state" / "logs"
        self.metrics = Metrics()

    async def run(
        self,
        script: str,
        *,
        hook: HookName = "wake",
        model: str = "m",
        timeout_s: float | None = None,
        url: str = "http://127.0.0.1:8001",
        directory: Path | None = None,
        **about: str,
    ) -> None:
        scripts: dict[str, Any] = {
            "wake": "exit 99",
            "sleep": "exit 99",
            "alive": "exit 99",
            hook: script,
        }
        timeouts = HookTimeouts(wake=timeout_s)
        config = ModelConfig(name=model, url=url, hook_timeouts=timeouts, **scripts)
        shell_hooks = ShellHooks(
            {model: config},
            directory=directory or self.directory,
            log_dir=self.log_dir,
            events=observed(self.metrics),
            kill_after_s=KILL_AFTER_S,
        )
        with trio.fail_after(PATIENCE_S):
            await shell_hooks.of(model).run(hook, **about)  # type: ignore[arg-type]

    async def failure(self, script: str, **options: Any) -> HookError:
        with pytest.raises(HookError) as caught:
            await self.run(script, **options)
        return caught.value

    @property
    def log(self) -> Path:
        return self.log_dir / "m.log"

    def printed(self) -> list[str]:
        """The last run's output."""
        return self.log.read_text().rpartition(" ---\n")[2].splitlines()

    def fifo(self, name: str) -> Path:
        """A named pipe; its two ends wait for each other when they open it."""
        path = self.directory / name
        os.mkfifo(path)
        return path

    def pid(self, name: str) -> int:
        return int((self.directory / name).read_text())

    def count(self, series: str, hook: str = "wake") -> float:
        labels = {"model": "m", "hook": hook}
        return self.metrics.registry.get_sample_value(series, labels) or 0.0


@pytest.fixture
def bench(tmp_path: Path) -> Bench:
    return Bench(tmp_path)


async def read_fifo(path: Path) -> str:
    """What a hook writes into a named pipe, once it has."""
    with trio.fail_after(PATIENCE_S):
        return await trio.to_thread.run_sync(path.read_text, abandon_on_cancel=True)


async def cancel_once_running(bench: Bench, script: str) -> None:
    """Run a hook until it writes into the named pipe `ready`, then cancel it."""
    ready = bench.fifo("ready")
    async with trio.open_nursery() as nursery:
        nursery.start_soon(bench.run, script)
        await read_fifo(ready)
        nursery.cancel_scope.cancel()


def is_alive(pid: int) -> bool:
    """Whether the process runs; one that nobody has reaped yet does not."""
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except (FileNotFoundError, ProcessLookupError):
        return False
    return state != "Z"


def event(events: Events, name: str) -> MutableMapping[str, Any]:
    (found,) = [entry for entry in events if entry["event"] == name]
    return found


# ---- What a hook leaves behind ----


async def test_a_background_child_neither_delays_the_hook_nor_ends_with_it(bench: Bench) -> None:
    await bench.run("sleep 30 & echo $! > pid")
    child = bench.pid("pid")
    assert is_alive(child)
    os.kill(child, signal.SIGTERM)


async def test_a_failed_hook_leaves_its_background_children_alone(bench: Bench) -> None:
    await bench.failure("sleep 30 & echo $! > pid; exit 1")
    child = bench.pid("pid")
    assert is_alive(child)
    os.kill(child, signal.SIGTERM)


async def test_a_background_child_can_write_long_after_the_hook(bench: Bench) -> None:
    go, done = bench.fifo("go"), bench.fifo("done")
    await bench.run("(read -r _ < go; echo later; echo $? > done) &")
    with trio.fail_after(PATIENCE_S):
        await trio.to_thread.run_sync(go.write_text, "\n", abandon_on_cancel=True)
    assert await read_fifo(done) == "0\n"
    assert bench.printed() == ["later"]


async def test_a_background_child_keeps_its_log_when_that_is_cut(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(log_file, "MAX_LOG_BYTES", 1000)
    go, done = bench.fifo("go"), bench.fifo("done")
    await bench.run("seq 1000; (read -r _ < go; echo later; echo $? > done) &")
    await bench.run("echo second")
    with trio.fail_after(PATIENCE_S):
        await trio.to_thread.run_sync(go.write_text, "\n", abandon_on_cancel=True)
    assert await read_fifo(done) == "0\n"
    assert bench.printed() == ["second", "later"]
    assert b"\0" not in bench.log.read_bytes()


# ---- What ends a hook ----


async def test_a_hook_over_its_time_ends_with_its_whole_group(bench: Bench) -> None:
    with capture_logs() as events:
        error = await bench.failure("echo $$ > sh; sleep 30 & echo $! > pid; wait", timeout_s=0.4)
    assert error.reason == "took longer than 0.4 s (hook_timeouts.wake)"
    assert error.exit_code is None
    assert not is_alive(bench.pid("sh"))
    assert not is_alive(bench.pid("pid"))
    assert event(events, "hook_failed")["duration_secs"] >= 0.4


async def test_a_hook_may_clean_up_on_sigterm(bench: Bench) -> None:
    await cancel_once_running(
        bench, "trap 'echo cleaned; exit 0' TERM; echo > ready; sleep 30 & wait"
    )
    assert bench.printed() == ["cleaned"]


async def test_a_shell_that_ignores_sigterm_is_killed(bench: Bench) -> None:
    await cancel_once_running(bench, "trap '' TERM; echo $$ > pid; echo > ready; sleep 30")
    assert not is_alive(bench.pid("pid"))


async def test_a_child_that_outlives_the_shell_and_ignores_sigterm_is_killed(bench: Bench) -> None:
    await cancel_once_running(bench, f"{STUBBORN_CHILD} & wait")
    assert not is_alive(bench.pid("pid"))


async def test_a_cancelled_hook_is_ended_and_logged(bench: Bench) -> None:
    with capture_logs() as events:
        await cancel_once_running(bench, "echo $$ > pid; echo busy; echo > ready; sleep 30")
    assert not is_alive(bench.pid("pid"))
    failed = event(events, "hook_failed")
    assert (failed["reason"], failed["stderr"]) == ("was cancelled", "busy")


async def test_a_hook_that_is_one_process_ends_at_once(bench: Bench) -> None:
    await cancel_once_running(bench, "echo $$ > pid; echo > ready; exec sleep 30")
    assert not is_alive(bench.pid("pid"))


def test_a_process_that_vanishes_while_looked_at_is_gone() -> None:
    gone = subprocess.Popen(["true"])
    gone.wait()
    assert process_group._group_of(gone.pid) is None
    assert process_group._is_zombie(gone.pid)


async def test_cancelling_goes_on_to_whoever_cancelled(bench: Bench) -> None:
    with trio.CancelScope() as scope:
        scope.cancel()
        await bench.run("true")
    assert scope.cancelled_caught


async def test_a_group_that_does_not_die_holds_nobody_for_ever(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    is_gone = process_group._is_group_gone
    monkeypatch.setattr(process_group, "_is_group_gone", lambda process: is_gone(process) and False)
    with capture_logs() as events:
        await bench.failure("sleep 30", timeout_s=0.01)
    assert event(events, "hook_survived")["model"] == "m"


@pytest.mark.skipif(sys.platform != "linux", reason="PR_SET_CHILD_SUBREAPER is Linux's")
async def test_zombies_that_nobody_reaps_hold_nobody(bench: Bench) -> None:
    with capture_logs() as events, adopting_orphans():
        await cancel_once_running(bench, f"echo $$ > group; {STUBBORN_CHILD} & wait")
    assert [entry["event"] for entry in events] == ["hook_failed"]
    assert reap(bench.pid("group")) > 0


def reap(group: int) -> int:
    """Reap this process's children in a group; returns how many there were."""
    count = 0
    with suppress(ChildProcessError):
        while os.waitpid(-group, 0):
            count += 1
    return count


@contextmanager
def adopting_orphans() -> Iterator[None]:
    """Make orphaned descendants children of this process, which will not reap them."""
    pr_set_child_subreaper = 36
    prctl = ctypes.CDLL(None).prctl
    assert prctl(pr_set_child_subreaper, 1, 0, 0, 0) == 0
    try:
        yield
    finally:
        prctl(pr_set_child_subreaper, 0, 0, 0, 0)


# ---- How it went ----


async def test_a_hook_that_succeeds(bench: Bench) -> None:
    with capture_logs() as events:
        await bench.run("exit 0")
    completed = event(events, "hook_completed")
    assert (completed["model"], completed["hook"]) == ("m", "wake")
    assert completed["log_level"] == "info"
    assert completed["duration_secs"] < PATIENCE_S
    assert bench.count("llmux_hook_duration_seconds_count") == 1
    assert bench.count("llmux_hook_failures_total") == 0


async def test_alive_hooks_complete_quietly(bench: Bench) -> None:
    with capture_logs() as events:
        await bench.run("true", hook="alive")
    assert event(events, "hook_completed")["log_level"] == "debug"
    assert bench.count("llmux_hook_duration_seconds_count", "alive") == 1


@pytest.mark.parametrize("hook", ["alive", "verify_asleep"])
async def test_checks_that_succeed_leave_nothing_in_the_log(bench: Bench, hook: HookName) -> None:
    await bench.run("echo lines of the server")
    before = bench.log.read_text()
    for _ in range(3):
        await bench.run("echo ok; exec 3>&1", hook=hook)
    assert bench.log.read_text() == before
    assert [each.name for each in bench.log_dir.iterdir()] == ["m.log"], "and no other file"


async def test_checks_that_fail_are_logged_once_if_they_fail_alike(tmp_path: Path) -> None:
    script = "cat said; exit 7"
    config = ModelConfig(name="m", port=1, wake="echo waking", sleep="true", alive=script)
    shell = ShellHooks(
        {"m": config}, directory=tmp_path, log_dir=tmp_path / "logs", events=observed()
    )
    hooks = shell.of("m")

    async def fail(says: str) -> str:
        (tmp_path / "said").write_text(says)
        with pytest.raises(HookError) as caught:
            await hooks.run("alive", expects_failure=True)
        return caught.value.output

    def logged() -> list[str]:
        lines = shell.log_path("m").read_text().splitlines()
        return [line.split()[2] if line.startswith("---") else line for line in lines if line]

    await hooks.run("wake")
    for _ in range(20):
        assert await fail("refused") == "refused"
    assert logged() == ["wake", "waking", "alive", "refused"]
    await fail("loading\n")
    assert logged()[4:] == ["alive", "loading"]
    await hooks.run("wake")
    await fail("loading\n")
    assert logged()[6:] == ["wake", "waking", "alive", "loading"], "the next wake has its own"


async def test_a_failed_check_that_prints_a_lot_is_kept_in_part(bench: Bench) -> None:
    script = "head -c 1000000 /dev/zero | tr '\\0' 'x'; echo; echo the end; exit 1"
    error = await bench.failure(script, hook="alive")
    assert error.output.endswith("the end")
    assert 60_000 < bench.log.stat().st_size < 70_000


async def test_a_check_shows_its_own_lines_and_not_the_servers(bench: Bench) -> None:
    await bench.run("(while sleep 0.01; do echo server; done) & echo $! > pid")
    try:
        error = await bench.failure("sleep 0.1; echo mine; exit 1", hook="alive")
    finally:
        os.kill(bench.pid("pid"), signal.SIGKILL)
    assert error.output == "mine"
    assert "alive source= target= ---\nmine\n" in bench.log.read_text()


async def test_a_log_over_the_limit_is_cut_by_checks_too(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A server may print for weeks without another hook."""
    monkeypatch.setattr("llmux.hooks.log_file.MAX_LOG_BYTES", 1000)
    await bench.run("seq 1000")
    assert bench.log.stat().st_size > 3000
    await bench.run("true", hook="alive")
    assert bench.log.stat().st_size <= 500


async def test_a_hook_that_fails(bench: Bench) -> None:
    with capture_logs() as events:
        error = await bench.failure("echo out; echo err >&2; exit 3")
    assert error.details == "Hook failed for m: wake hook exited with 3: out\nerr"
    assert (error.model, error.hook, error.exit_code) == ("m", "wake", 3)
    failed = event(events, "hook_failed")
    assert (failed["log_level"], failed["exit_code"], failed["stderr"]) == (
        "warning",
        3,
        "out\nerr",
    )
    assert bench.count("llmux_hook_duration_seconds_count") == 1
    assert bench.count("llmux_hook_failures_total") == 1


@pytest.mark.parametrize(
    ("script", "reason"),
    [
        ("no-such-command-here", "exited with 127 (command not found)"),
        ("./plain", "exited with 126 (not executable)"),
        ("kill -9 $$", "was killed by signal 9"),
    ],
)
async def test_why_a_hook_failed(bench: Bench, script: str, reason: str) -> None:
    (bench.directory / "plain").touch(mode=0o600)
    error = await bench.failure(script)
    assert error.reason == reason


async def test_a_folder_that_is_not_there(bench: Bench) -> None:
    error = await bench.failure("true", directory=bench.directory / "gone")
    assert error.reason.startswith("could not be started: [Errno 2]")
    assert error.exit_code is None


async def test_a_script_that_cannot_be_passed_on(bench: Bench) -> None:
    error = await bench.failure("echo a\0b")
    assert error.reason == "could not be started: embedded null byte"


async def test_no_descriptor_left(bench: Bench) -> None:
    _, hard = before = resource.getrlimit(resource.RLIMIT_NOFILE)
    with capture_logs() as events:
        try:
            resource.setrlimit(resource.RLIMIT_NOFILE, (0, hard))
            error = await bench.failure("true")
        finally:
            resource.setrlimit(resource.RLIMIT_NOFILE, before)
    assert error.reason.startswith("could not be started: [Errno 24]")
    assert event(events, "hook_log_unusable")["model"] == "m"


async def test_listeners_hear_the_start_and_the_end_of_each_run(tmp_path: Path) -> None:
    events, told = observed(), list[HookRun | HookEnded]()
    events.hook_started.listen(told.append)
    events.hook_ended.listen(told.append)
    config = ModelConfig(name="m", port=1, wake="true", sleep="exit 3", alive="exit 1")
    hooks = ShellHooks({"m": config}, directory=tmp_path, log_dir=tmp_path, events=events).of("m")
    await hooks.run("wake")
    with pytest.raises(HookError) as asleep:
        await hooks.run("sleep")
    with pytest.raises(HookError):
        await hooks.run("alive", expects_failure=True)
    starts, ends = told[::2], told[1::2]
    assert [(e.model, e.hook, e.ok) for e in starts if isinstance(e, HookRun)] == [
        ("m", "wake", None), ("m", "sleep", None), ("m", "alive", None),
    ]  # fmt: skip
    ended = [each for each in ends if isinstance(each, HookEnded)]
    assert [(e.run.hook, e.run.ok, e.has_failed) for e in ended] == [
        ("wake", True, False), ("sleep", False, True), ("alive", False, False),
    ]  # fmt: skip
    assert ended[1].error is asleep.value
    assert ended[1].run.error == "exited with 3"


async def test_which_hooks_a_model_has(bench: Bench) -> None:
    config = ModelConfig(name="m", port=1, wake="true", sleep="true", alive="true", prefetch="true")
    shell_hooks = ShellHooks(
        {"m": config},
        directory=bench.directory,
        log_dir=bench.log_dir,
        events=observed(bench.metrics),
    )
    assert shell_hooks.of("m").has("prefetch")
    assert not shell_hooks.of("m").has("verify_asleep")


# ---- What a hook is given ----


async def test_the_environment(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    for secret in USUAL_SECRETS:
        monkeypatch.setenv(secret, "hush")
    for of_systemd in ("NOTIFY_SOCKET", "WATCHDOG_PID", "WATCHDOG_USEC"):
        monkeypatch.setenv(of_systemd, "llmux's own")
    monkeypatch.setenv("HF_TOKEN", "the user's own")
    await bench.run("env | sort", source="a", target="b/c")
    assert [line for line in bench.printed() if line.startswith("LLMUX_")] == [
        "LLMUX_DEST_PORT=8001",
        "LLMUX_HOOK=wake",
        "LLMUX_MODEL=m",
        "LLMUX_PORT=8001",
        "LLMUX_SOURCE=a",
        "LLMUX_TARGET=b/c",
    ]
    assert "HF_TOKEN=the user's own" in bench.printed()
    assert not [line for line in bench.printed() if "llmux's own" in line]


async def test_the_state_folder_is_in_the_environment_of_every_hook(tmp_path: Path) -> None:
    hooks: dict[str, Any] = dict.fromkeys(get_args(HookName), 'echo "$LLMUX_STATE_DIR" >>told')
    config = parse_config(
        {"models": {"m": {"port": 1} | hooks}, "state_dir": "state"}, directory=tmp_path
    )
    shell = shell_hooks_of(config, observed(), lambda _: "")
    for hook in get_args(HookName):
        await shell.of("m").run(hook)
    told = (tmp_path / "told").read_text().splitlines()
    assert told == [str((tmp_path / "state").resolve())] * len(get_args(HookName))


GIB = 1 << 30


@pytest.mark.parametrize(
    ("needs", "environ", "told"),
    [
        (None, {}, {}),
        ("auto", {}, {}),
        ({"ram": GIB}, {}, {"LLMUX_NEEDS": f"ram {GIB} {8 * GIB}"}),
        (
            {"gpu1": 6 * GIB, "gpu0": 3 * GIB, "ram": 0},
            {},
            {
                "LLMUX_NEEDS": f"gpu0 {3 * GIB} {8 * GIB}\ngpu1 {6 * GIB} {9 * GIB}",
                "LLMUX_GPU_SHARE": "0.6666",
                "CUDA_VISIBLE_DEVICES": "0,1",
                "CUDA_DEVICE_ORDER": "PCI_BUS_ID",
            },
        ),
        (
            {"gpu1": 9 * GIB},
            {"CUDA_VISIBLE_DEVICES": "7", "LLMUX_GPU_SHARE": "0.1", "LLMUX_NEEDS": "of another"},
            {
                "LLMUX_NEEDS": f"gpu1 {9 * GIB} {9 * GIB}",
                "LLMUX_GPU_SHARE": "1.0000",
                "CUDA_VISIBLE_DEVICES": "7",
            },
        ),
        (None, {"LLMUX_NEEDS": "of another"}, {}),
    ],
    ids=["none", "auto", "ram", "gpus", "visible", "inherited"],
)
async def test_hooks_know_what_their_model_may_use(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    needs: Any,
    environ: dict[str, str],
    told: dict[str, str],
) -> None:
    resources = {"gpu0": 8 * GIB, "gpu1": 9 * GIB, "ram": 8 * GIB}
    hooks = {"wake": "env -0 >told", "sleep": "x", "alive": "x"}
    model = {"port": 1, "needs": needs} | hooks
    data = {"models": {"m": model}, "resources": resources, "state_dir": "state"}
    config = parse_config(data, directory=tmp_path)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    for name, value in environ.items():
        monkeypatch.setenv(name, value)
    await shell_hooks_of(config, observed(), lambda _: "").of("m").run("wake")
    pairs = (tmp_path / "told").read_text().split("\0")
    about = ("LLMUX_NEEDS", "LLMUX_GPU", "CUDA_")
    assert dict(each.partition("=")[::2] for each in pairs if each.startswith(about)) == told


@pytest.mark.parametrize(
    ("limit", "told"),
    [(600, "580"), (1800.5, "1780"), (60, "40"), (30, "20"), (0.5, "1"), (None, "1000000000")],
)
async def test_hooks_of_a_recipe_know_how_long_they_may_wait(
    tmp_path: Path, limit: float | None, told: str
) -> None:
    timeouts = {"wake": limit}
    model = {"recipe": "demo", "port": 5, "wake": "env >told", "hook_timeouts": timeouts}
    config = parse_config({"models": {"m": model}, "state_dir": "state"}, directory=tmp_path)
    with suppress(HookError):
        await shell_hooks_of(config, observed(), lambda _: "").of("m").run("wake")
    lines = (tmp_path / "told").read_text().splitlines()
    recipe = ("LLMUX_HOOK_SECS", "LLMUX_URL", "PORT", "LLMUX_WITH_RATE")
    found = dict(line.partition("=")[::2] for line in lines if line.startswith(recipe))
    assert found == {
        "LLMUX_HOOK_SECS": told, "LLMUX_URL": "http://127.0.0.1:5", "PORT": "5", "LLMUX_WITH_RATE": "20",
    }  # fmt: skip


@pytest.mark.parametrize(
    ("url", "port"),
    [("https://gpu.example", "443"), ("http://[::1]", "80"), ("http://gpu.example:5/v1", "5")],
)
async def test_the_port_of_a_url(bench: Bench, url: str, port: str) -> None:
    await bench.run("echo $LLMUX_PORT", url=url)
    assert bench.printed() == [port]


async def test_the_socket_of_a_url(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LLMUX_SOCKET", "/of/another/model")
    script = 'echo "<$LLMUX_PORT> <${LLMUX_SOCKET-none}>"'
    await bench.run(script, url="unix:///run/x.sock")
    assert bench.printed() == ["<> </run/x.sock>"]
    await bench.run(script, url="http://a:5")
    assert bench.printed()[-1] == "<5> <none>"


async def test_folder_and_standard_input(bench: Bench) -> None:
    await bench.run("pwd; wc -c")
    assert [line.strip() for line in bench.printed()] == [str(bench.directory.resolve()), "0"]


async def test_a_session_and_signals_of_its_own(bench: Bench) -> None:
    await bench.run("ps -o sid= -p $$ | tr -d ' '; echo $$; grep SigIgn /proc/$$/status")
    session, shell, ignored = bench.printed()
    assert session == shell
    sigpipe = 1 << (signal.SIGPIPE - 1)
    assert not int(ignored.split()[1], 16) & sigpipe  # Python itself ignores it


async def test_the_original_descriptor_limit(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    monkeypatch.setattr(environment, "ORIGINAL_NOFILE", (soft - 1, hard))
    error = await bench.failure('ulimit -S -n; echo "$0 $# \'"\nexit 7')
    assert error.output == f"{soft - 1}\nsh 0 '"
    assert error.exit_code == 7


def test_the_usual_descriptor_limit_costs_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    limits = resource.getrlimit(resource.RLIMIT_NOFILE)
    monkeypatch.setattr(environment, "ORIGINAL_NOFILE", limits)
    assert shell_command("true") == ["sh", "-c", "true"]
    monkeypatch.setattr(environment, "ORIGINAL_NOFILE", (resource.RLIM_INFINITY, limits[1]))
    assert shell_command("true")[-2:] == ["unlimited", "true"]


# ---- The log ----


async def test_runs_are_marked_in_the_log(bench: Bench) -> None:
    await bench.run("printf 'no line end'", target="m")
    await bench.run("echo second", source="m", target="n", hook="sleep")
    lines = bench.log.read_text().splitlines()
    assert lines[0].startswith("--- 20")
    assert lines[0].endswith(" wake source= target=m ---")
    assert lines[1] == "no line end"
    assert lines[2].endswith(" sleep source=m target=n ---")
    assert lines[3:] == ["second"]


async def test_only_its_owner_reads_the_log(bench: Bench) -> None:
    await bench.run("true")
    assert stat.S_IMODE(bench.log.stat().st_mode) == 0o600
    assert stat.S_IMODE(bench.log_dir.stat().st_mode) == 0o700


async def test_a_log_over_the_limit_is_cut_at_a_line(bench: Bench) -> None:
    bench.log_dir.mkdir(parents=True)
    line = b"x" * 99 + b"\n"
    half = log_file.MAX_LOG_BYTES // 2
    bench.log.write_bytes(line * (log_file.MAX_LOG_BYTES // len(line) + 1))
    before = bench.log.stat()
    await bench.run("echo new")
    after = bench.log.stat()
    assert after.st_ino == before.st_ino
    assert half - len(line) < after.st_size < half + 2 * len(line)
    with bench.log.open("rb") as cut:
        assert cut.readline() == line
    assert bench.printed() == ["new"]


async def test_a_log_within_the_limit_is_kept(bench: Bench) -> None:
    bench.log_dir.mkdir(parents=True)
    bench.log.touch()
    os.truncate(bench.log, log_file.MAX_LOG_BYTES)
    await bench.run("true")
    assert bench.log.stat().st_size > log_file.MAX_LOG_BYTES


async def test_the_last_lines_are_those_of_this_run(bench: Bench) -> None:
    await bench.run("echo earlier")
    assert (await bench.failure("exit 1")).output == ""
    assert (await bench.failure("echo now; exit 1")).output == "now"


async def test_the_last_lines_when_the_log_is_cut_meanwhile(bench: Bench) -> None:
    log = shlex.quote(str(bench.log))
    error = await bench.failure(f"echo lost; : > {log}; echo kept; exit 1")
    assert error.output == "kept"


async def test_a_log_that_cannot_be_read_back(bench: Bench) -> None:
    bench.log_dir.mkdir(parents=True)
    os.mkfifo(bench.log)
    error = await bench.failure("echo lost; exit 1")
    assert (error.reason, error.output) == ("exited with 1", "")


@pytest.mark.parametrize(
    ("script", "tail"),
    [
        ("seq 1000", "996\n997\n998\n999\n1000"),
        (r"printf 'caf\351\n'", "caf�"),
        (r"printf 'a\033[31mred\033[0m\007\000b\n\n  \n'", "aredb"),
        (r"printf '1%%\r2%%\r'", "1%\n2%"),
        ("printf '%03000d' 7", "0" * 2047 + "7"),
        ("head -c 20000000 /dev/zero; echo end", "end"),
        ("head -c 20000000 /dev/zero", ""),
    ],
    ids=["many lines", "not UTF-8", "control", "carriage return", "long line", "big", "zeros"],
)
async def test_the_last_lines(bench: Bench, script: str, tail: str) -> None:
    error = await bench.failure(f"{script}; exit 1")
    assert error.output == tail


def long_name(end: str) -> str:
    return "ü" * 500 + end


@pytest.mark.parametrize("model", ["facebook/opt-125m", "..", ".", "a b%2F", long_name("")])
async def test_odd_names(bench: Bench, model: str) -> None:
    await bench.run('echo "$LLMUX_MODEL"', model=model)
    (written,) = bench.log_dir.iterdir()
    assert written.name == log_name(model)
    assert written.read_text().endswith(f"\n{model}\n")


def test_no_two_models_share_a_log() -> None:
    names = ["a/b", "a%2Fb", "a_b", "a:b", ".", "..", "a", long_name("1"), long_name("2")]
    names.append(log_name(long_name("1")).removesuffix(".log"))
    assert len({log_name(name) for name in names}) == len(names)
    assert all(len(log_name(name)) <= 255 for name in names)


def block_folder(bench: Bench) -> None:
    bench.log_dir.parent.mkdir()
    bench.log_dir.touch()


def block_file(bench: Bench) -> None:
    bench.log.mkdir(parents=True)


def fill_disk(bench: Bench) -> None:
    bench.log_dir.mkdir(parents=True)
    bench.log.symlink_to("/dev/full")  # every write fails with ENOSPC


@pytest.mark.parametrize("spoil", [block_folder, block_file, fill_disk])
async def test_hooks_run_without_a_log(bench: Bench, spoil: Callable[[Bench], None]) -> None:
    spoil(bench)
    with capture_logs() as events:
        await bench.run("echo unheard && echo ran > proof")
    assert (bench.directory / "proof").read_text() == "ran\n"
    assert event(events, "hook_log_unusable")["log_level"] == "warning"
    assert (await bench.failure("echo unheard; exit 1")).output == ""
