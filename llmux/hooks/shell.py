"""One shell hook: process group, deadline, log."""

from __future__ import annotations

import hashlib
import math
import os
import re
import resource
import signal
from collections.abc import Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from subprocess import DEVNULL
from typing import get_args
from urllib.parse import quote, urlsplit

import trio
from msgspec.structs import replace

from llmux.base.plainfiles import open_own
from llmux.config import USUAL_SECRETS, Config, HookName, ModelConfig
from llmux.config.masking import MASKER
from llmux.errors import HookError
from llmux.hooks.orphans import MARK_VARIABLE, end_marked
from llmux.http.socketpath import socket_path
from llmux.observe.feed import Feed
from llmux.observe.logs import get_logger
from llmux.observe.metrics import Metrics
from llmux.observe.schemas import HookRun
from llmux.switching.awake import Marks

SOCKET_VARIABLE = "LLMUX_SOCKET"
"""Where hooks find the path of their model's Unix socket, if it has one instead of a port."""

KILL_AFTER_S = 5.0
"""Time between SIGTERM and SIGKILL, and at most as long again for the group to be gone."""

POLL_S = 0.01

MAX_LOG_BYTES = 16 << 20
"""A log over this is cut to half of it before the next run."""

TAIL_BYTES = 2048
TAIL_LINES = 5

MAX_STEM_BYTES = 200
"""Longest percent-encoded model name used as it is; file names end at 255 bytes (NAME_MAX)."""

SECRET_VARIABLES = USUAL_SECRETS
"""Usual names of llmux's own secrets, which hooks and the servers they start do not get."""

MARKED_HOOKS = frozenset({"wake", "sleep"})
"""Those that must not go on once another llmux has taken over."""

ORIGINAL_NOFILE = resource.getrlimit(resource.RLIMIT_NOFILE)
"""Soft and hard descriptor limit of this process before anything in it raised the soft one.

Hooks get this soft limit back: programs that use select() break on descriptors over 1024.
"""

EXIT_HINTS = {126: " (not executable)", 127: " (command not found)"}  # POSIX sh, section 2.8.2

NOT_TEXT = re.compile(r"\x1b\[[0-?]*[ -/]*[@-~]|[\x00-\x08\x0b-\x1f\x7f-\x9f]")
"""Terminal escape sequences (ECMA-48 section 5.4) as a whole, then single control characters."""

log = get_logger(__name__)


class ShellHooks:
    """Runs the hooks of the config's models.

    Attributes:
        directory: Where they run.
        marks: What to put in the environment of a model's wake and sleep hook.
        secret_variables: What of the environment they do not get.
        feed: Who is told of runs.
        kill_after_s: Time between SIGTERM and SIGKILL.
        shows_output: Whether clients are told what a failed hook has printed.
    """

    def __init__(
        self,
        models: Mapping[str, ModelConfig],
        *,
        directory: Path,
        log_dir: Path,
        metrics: Metrics,
        marks: Marks = lambda _model: "",
        secret_variables: Iterable[str] = (),
        feed: Feed | None = None,
        kill_after_s: float = KILL_AFTER_S,
        shows_output: bool = False,
    ) -> None:
        """Run nothing yet.

        Args:
            models: Whose hooks.
            directory: Where they run.
            log_dir: Where what they print goes.
            metrics: Where their durations and failures are counted.
            marks: What to put in the environment of a model's wake and sleep hook; see
                `llmux.hooks.orphans`.
            secret_variables: More of the environment that hooks do not get.
            feed: Who is told of runs.
            kill_after_s: Time between SIGTERM and SIGKILL.
            shows_output: Whether clients are told what a failed hook has printed.
        """
        self.shows_output = shows_output
        self.secret_variables = SECRET_VARIABLES.union(secret_variables)
        self.marks = marks
        self.feed = feed or Feed()
        self._models: dict[str, ModelConfig] = {}
        self._without_log: set[str] = set()
        self.directory = directory
        self._log_dir = log_dir
        self._metrics = metrics
        self.kill_after_s = kill_after_s
        for name, model in models.items():
            self.use(name, model)

    def apply(self, config: Config) -> None:
        """Use another config from now on, but for what `use` is told of its models."""
        self.secret_variables = SECRET_VARIABLES.union(config.secret_variables)
        self.shows_output = config.errors.hook_output == "clients"

    def use(self, name: str, model: ModelConfig | None) -> None:
        """Use another config for a model from now on, or none any more."""
        if model is None:
            del self._models[name]
        else:
            self._models[name] = model
            for hook in get_args(HookName):
                if model.script(hook) is not None:
                    # From zero on, or Prometheus would see no increase in the first failure.
                    self._metrics.hook_failures.labels(name, hook)

    def of(self, model: str) -> ShellModelHooks:
        """The hooks that a model has now."""
        return ShellModelHooks(self, model, self._models[model])

    async def end_marked(self, mark: str) -> None:
        """See `llmux.hooks.orphans`."""
        await end_marked(mark)

    def log_path(self, model: str) -> Path:
        """Where what the hooks of a model print goes, and what the servers print they start."""
        return self._log_dir / log_name(model)

    @contextmanager
    def output(self, model: str, title: str) -> Iterator[_Output | None]:
        """The model's log, ready for a run; None, with a warning, if it cannot be written."""
        path = self.log_path(model)
        with ExitStack() as stack:
            output = None
            try:
                output = stack.enter_context(_Output.open(path, title))
                self._without_log.discard(model)
            except OSError as error:
                if model not in self._without_log:  # once, until it works again
                    log.warning("hook_log_unusable", model=model, path=str(path), error=str(error))
                self._without_log.add(model)
            yield output

    def record(
        self,
        model: str,
        hook: str,
        took_s: float,
        error: HookError | None,
        *,
        expects_failure: bool = False,
    ) -> None:
        """Count and log a run that has ended."""
        self._metrics.hook_duration.labels(model, hook).observe(took_s)
        about = {"model": model, "hook": hook, "duration_secs": round(took_s, 3)}
        if error is not None and expects_failure:
            log.debug("hook_failed", **about, reason=error.reason, exit_code=error.exit_code)
        elif error is not None:
            self._metrics.hook_failures.labels(model, hook).inc()
            log.warning(
                "hook_failed",
                **about,
                reason=error.reason,
                exit_code=error.exit_code,
                stderr=error.output,
            )
        elif hook == "alive":  # every few seconds
            log.debug("hook_completed", **about)
        else:
            log.info("hook_completed", **about)


class ShellModelHooks:
    """One model's hooks as its config had them at one instant (`steps.ModelHooks`)."""

    __slots__ = ("_config", "_name", "_shell")

    def __init__(self, shell: ShellHooks, name: str, config: ModelConfig) -> None:
        self._shell = shell
        self._name = name
        self._config = config

    def __repr__(self) -> str:
        return f"<ShellModelHooks of {self._name!r}>"

    def has(self, hook: HookName) -> bool:
        """Whether there is this hook."""
        return self._config.script(hook) is not None

    def timeout_s(self, hook: HookName) -> float:
        """Seconds that a hook may run; infinity for no limit."""
        timeout_s = self._config.timeout_s(hook)
        return math.inf if timeout_s is None else timeout_s

    async def run(
        self, hook: HookName, *, source: str = "", target: str = "", expects_failure: bool = False
    ) -> None:
        """Run a hook that there is, to its end.

        What it leaves in the background lives on, unless llmux ended the run: then the whole
        process group is gone on return.

        Args:
            hook: Which.
            source: The model that the switch leaves, if any.
            target: The model that the switch is for, if any.
            expects_failure: A failure is neither logged as one nor counted: the model still loads.

        Raises:
            HookError: It exited non-zero, could not be started, or outlived its time.
        """
        model, shell = self._name, self._shell
        environment = self._environment(hook, source, target)
        started_at = trio.current_time()
        run = HookRun(model=model, hook=hook, started=shell.feed.clock.unix(started_at))
        if hook != "alive":  # every few seconds
            shell.feed.tell("hook", run)
        end = _End("was cancelled")  # unless the run ends otherwise
        with shell.output(model, f"{hook} source={source} target={target}") as output:
            try:
                end = await self._run_shell(hook, environment, output)
            finally:
                tail = "" if output is None else MASKER.mask(output.tail())
                error = end.error(model, hook, tail, shows_output=shell.shows_output)
                took_s = trio.current_time() - started_at
                shell.record(model, hook, took_s, error, expects_failure=expects_failure)
                if hook != "alive" or (error is not None and not expects_failure):
                    ended = replace(
                        run,
                        duration_secs=round(took_s, 3),
                        ok=error is None,
                        error=end.failure,
                        output=tail,
                    )
                    shell.feed.tell("hook", ended)
        if error is not None:
            raise error

    async def _run_shell(
        self, hook: HookName, environment: Mapping[str, str], output: _Output | None
    ) -> _End:
        script, timeout_s = self._config.script(hook), self.timeout_s(hook)
        assert script is not None, f"{self._name} has no {hook} hook"
        ending = GroupEnd(self._shell.kill_after_s)
        with trio.move_on_after(timeout_s):
            try:
                done = await trio.run_process(
                    shell_command(script),
                    cwd=self._shell.directory,
                    env=environment,
                    stdin=DEVNULL,
                    # A file, for a pipe would keep what is left behind tied to llmux.
                    stdout=DEVNULL if output is None else output.descriptor,
                    stderr=DEVNULL if output is None else output.descriptor,
                    start_new_session=True,
                    check=False,
                    deliver_cancel=ending.begin,
                )
                return _End.of_shell(done.returncode)
            # RuntimeError: no thread to fork in. ValueError: not encodable in this locale.
            except (OSError, RuntimeError, ValueError) as error:
                return _End(f"could not be started: {error}", was_started=False)
            finally:
                with trio.CancelScope(shield=True):
                    if not await ending.finish():
                        log.warning("hook_survived", model=self._name, hook=hook, pgid=ending.group)
        if ending.found is not None:
            return _End.of_shell(ending.found)
        return _End(f"took longer than {timeout_s:g} s (hook_timeouts.{hook})")

    def _environment(self, hook: str, source: str, target: str) -> dict[str, str]:
        secret = self._shell.secret_variables  # the latest: what has become one is one
        own = {name: text for name, text in os.environ.items() if name not in secret}
        own.pop(MARK_VARIABLE, None)  # llmux itself may have been started by a hook
        mark = self._shell.marks(self._name) if hook in MARKED_HOOKS else ""
        if mark:
            own[MARK_VARIABLE] = mark
        port = backend_port(self._config)
        own.pop(SOCKET_VARIABLE, None)
        if (path := socket_path(self._config.base_url)) is not None:
            own[SOCKET_VARIABLE] = path
        return own | {
            "LLMUX_MODEL": self._name,
            "LLMUX_PORT": port,
            "LLMUX_DEST_PORT": port,  # upstream llmux's name for it
            "LLMUX_HOOK": hook,
            "LLMUX_SOURCE": source,
            "LLMUX_TARGET": target,
        }


@dataclass(frozen=True)
class _End:
    """How a run ended.

    Attributes:
        failure: What went wrong, to follow "the wake hook"; None if nothing did.
        exit_code: The shell's, negative for a signal; None if llmux ended it or it never started.
        was_started: Whether it has run at all.
    """

    failure: str | None
    exit_code: int | None = None
    was_started: bool = True

    @classmethod
    def of_shell(cls, exit_code: int) -> _End:
        if exit_code == 0:
            return cls(None, exit_code)
        if exit_code < 0:
            return cls(f"was killed by signal {-exit_code}", exit_code)
        return cls(f"exited with {exit_code}{EXIT_HINTS.get(exit_code, '')}", exit_code)

    def error(
        self, model: str, hook: str, tail: str, *, shows_output: bool = False
    ) -> HookError | None:
        if self.failure is None:
            return None
        return HookError(
            model,
            hook,
            self.failure,
            exit_code=self.exit_code,
            output=tail,
            was_started=self.was_started,
            log_name=log_name(model),
            shows_output=shows_output,
        )


# ---- The process group ----


def shell_command(script: str) -> list[str]:
    """The command that runs the script with the original descriptor limit."""
    soft, _ = ORIGINAL_NOFILE
    if resource.getrlimit(resource.RLIMIT_NOFILE)[0] == soft:
        return ["sh", "-c", script]
    # In the shell, for Python code between fork and exec (preexec_fn) may deadlock with threads.
    # `exec`, so that the script sees a plain `sh -c` and its exit code is that of the process.
    limit = "unlimited" if soft == resource.RLIM_INFINITY else str(soft)
    return ["sh", "-c", 'ulimit -S -n "$1"; exec sh -c "$2"', "sh", limit, script]


class GroupEnd:
    """The end of a process group that is out of time or cancelled: SIGTERM, then SIGKILL.

    In two steps, for Trio waits for the shell alone: `begin` while it lives, `finish` for what it
    leaves behind. Together they take at most twice `kill_after_s`.

    Attributes:
        group: Number of the group; None while nobody wants to end it.
        found: The shell's exit code if it had ended before anybody could want that.
    """

    def __init__(self, kill_after_s: float) -> None:
        self.group: int | None = None
        self.found: int | None = None
        self.kill_after_s = kill_after_s
        self._kill_at = math.inf

    async def begin(self, shell: trio.Process) -> None:
        """For `trio.run_process`, which cancels it once the shell has exited."""
        if shell.returncode is not None:  # it was in time, but llmux did not run
            self.found = shell.returncode
            return
        self.group = shell.pid
        self._kill_at = trio.current_time() + self.kill_after_s
        _signal_group(shell.pid, signal.SIGTERM)
        await trio.sleep_until(self._kill_at)
        _signal_group(shell.pid, signal.SIGKILL)

    async def finish(self) -> bool:
        """Wait until no process of the group runs; False if one could not be ended."""
        if self.group is None:
            return True
        with trio.move_on_at(self._kill_at):
            await _wait_group_gone(self.group)
        # In any case: a process whose main thread alone has ended looks like a zombie.
        _signal_group(self.group, signal.SIGKILL)
        with trio.move_on_at(self._kill_at + self.kill_after_s) as patience:
            await _wait_group_gone(self.group)
        return not patience.cancelled_caught


def _signal_group(group: int, number: signal.Signals) -> None:
    # Gone already, or now other users' processes, which only they can end.
    with suppress(ProcessLookupError, PermissionError):
        os.killpg(group, number)


async def _wait_group_gone(group: int) -> None:
    while not _is_group_gone(group):  # noqa: ASYNC110 - nothing tells when a group is gone
        await trio.sleep(POLL_S)


def _is_group_gone(group: int) -> bool:
    """Whether no process of the group runs; its leader has been reaped.

    The number of a group is not used again while a process is in it, even without its leader.
    """
    try:
        os.killpg(group, 0)
    except (ProcessLookupError, PermissionError):
        return True
    return _has_only_zombies(group)


def _has_only_zombies(group: int) -> bool:
    """Whether all processes of the group wait to be reaped; False where there is no /proc.

    In a container they may wait for ever: few programs expect to be its process 1, llmux included.
    """
    try:
        pids = [int(entry.name) for entry in Path("/proc").iterdir() if entry.name.isdigit()]
    except FileNotFoundError:
        return False
    return all(_is_zombie(pid) for pid in pids if _group_of(pid) == group)


def _group_of(pid: int) -> int | None:
    with suppress(ProcessLookupError):
        return os.getpgid(pid)
    return None


def _is_zombie(pid: int) -> bool:
    with suppress(FileNotFoundError, ProcessLookupError):
        stat = Path(f"/proc/{pid}/stat").read_text(errors="replace")  # proc(5): "1 (name) S ..."
        return stat.rpartition(") ")[2].startswith(("Z", "X"))
    return True  # reaped meanwhile


def backend_port(model: ModelConfig) -> str:
    """The port of the model's backend, from its URL if it has one; empty for a Unix socket."""
    if socket_path(model.base_url) is not None:
        return ""
    url = urlsplit(model.base_url)
    return str(url.port or {"http": 80, "https": 443}[url.scheme])


# ---- The log ----


def log_name(model: str) -> str:
    """The name of a model's log file: safe whatever the model's name, and no other model's."""
    stem = quote(model, safe="")
    if len(stem) > MAX_STEM_BYTES:
        # Percent-encoding leaves no "+", so this is not the name of a model with a short name.
        stem = f"{stem[: MAX_STEM_BYTES // 2]}+{hashlib.sha256(model.encode()).hexdigest()}"
    return f"{stem}.log"


class _Output:
    """The end of a model's log file, where one run of a hook prints below a line that marks it.

    Plain blocking calls: they are few, small and on a local file, where a thread would cost more.

    Attributes:
        descriptor: For the run's standard output and error.
    """

    def __init__(self, descriptor: int, title: str) -> None:
        self.descriptor = descriptor
        _cut(descriptor)
        # In microseconds: no two runs have the same.
        self._marker = f"--- {datetime.now(UTC).isoformat()} {title} ---\n".encode()
        # A blank line between runs, for what stood before may end in the middle of a line.
        gap = b"\n" if os.fstat(descriptor).st_size else b""
        os.write(descriptor, gap + self._marker)

    @classmethod
    @contextmanager
    def open(cls, path: Path, title: str) -> Iterator[_Output]:
        """Append to the file, which is made if need be.

        Raises:
            OSError: It cannot be written.
        """
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        # O_APPEND: other runs and servers that they left behind write to it too.
        flags = os.O_RDWR | os.O_CREAT | os.O_APPEND
        descriptor = open_own(path, flags, in_own_folder=True)
        try:
            yield cls(descriptor, title)
        finally:
            os.close(descriptor)

    def tail(self) -> str:
        """The last lines that this run printed, as plain text.

        Whatever else writes to the log at the same time (a server left behind) is in it too.
        """
        with suppress(OSError):
            most = 4 * TAIL_BYTES + MASKER.longest
            window = _last_bytes(self.descriptor, most + len(self._marker))
            _, marker, data = window.rpartition(self._marker)
            printed = data.decode(errors="replace")
            # Before it is cut: half a secret would not be known for one.
            masked = MASKER.mask(printed) if marker else MASKER.mask_end(printed)
            return _plain_tail(masked.encode()[-TAIL_BYTES:].decode(errors="replace"))
        return ""


def _cut(descriptor: int) -> None:
    """Keep only the end of a log that has grown too large.

    In place: a server that a hook left behind would go on writing to a renamed file.
    """
    if os.fstat(descriptor).st_size <= MAX_LOG_BYTES:
        return
    kept = _last_bytes(descriptor, MAX_LOG_BYTES // 2)
    os.ftruncate(descriptor, 0)
    os.write(descriptor, kept.partition(b"\n")[2] or kept)


def _last_bytes(descriptor: int, count: int) -> bytes:
    return os.pread(descriptor, count, max(0, os.fstat(descriptor).st_size - count))


def _plain_tail(text: str) -> str:
    lines = (NOT_TEXT.sub("", line).rstrip() for line in text.splitlines())
    return "\n".join([line for line in lines if line][-TAIL_LINES:])
