"""Run the hooks of models with `sh`, one process group for each run.

A run ends when its shell exits, at its deadline, or when it is cancelled. In the last two cases its
whole process group is ended before the run returns; otherwise what it leaves in the background (the
model's server) lives on.
"""

from __future__ import annotations

import math
import os
from collections.abc import Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from subprocess import DEVNULL
from tempfile import TemporaryFile

import trio
from msgspec.structs import replace

from llmux.config import USUAL_SECRETS, Config, HookName, ModelConfig
from llmux.config.masking import MASKER
from llmux.errors import HookError
from llmux.hooks.environment import hook_environment, shell_command
from llmux.hooks.log_file import CheckLog, RunLog, log_name
from llmux.hooks.orphans import end_marked
from llmux.hooks.process_group import KILL_AFTER_S, GroupEnd
from llmux.observe.events import Events, HookEnded
from llmux.observe.logs import get_logger
from llmux.observe.schemas import HookRun
from llmux.switching.awake import Marks

MARKED_HOOKS = frozenset({"wake", "sleep", "stop"})
"""Hooks that must not go on once another llmux has taken over."""

CHECKS: frozenset[HookName] = frozenset({"alive", "verify_asleep", "memory"})
"""Hooks that only look; their output is logged if they fail, and once if they fail alike."""

MOST_PRINTED = 64 << 10
"""Bytes of a hook's standard output that are read, where it is an answer."""

EXIT_HINTS = {126: " (not executable)", 127: " (command not found)"}  # POSIX sh, section 2.8.2

log = get_logger(__name__)


class ShellHooks:
    """Runs the hooks of the config's models.

    Attributes:
        directory: Working directory of hooks.
        state_dir: Folder that hooks are told to keep their files in, if any.
        marks: Returns the mark for the environment of a model's wake, sleep and stop hook.
        secret_variables: Environment variables that hooks do not get.
        events: Told of each run, when it starts and when it has ended.
        kill_after_s: Time between SIGTERM and SIGKILL, in seconds.
        shows_output: True if clients are told what a failed hook has printed.
        resources: The config's, for hooks whose models have needs.
    """

    def __init__(
        self,
        models: Mapping[str, ModelConfig],
        *,
        directory: Path,
        log_dir: Path,
        events: Events,
        state_dir: Path | None = None,
        marks: Marks = lambda _model: "",
        secret_variables: Iterable[str] = (),
        kill_after_s: float = KILL_AFTER_S,
        shows_output: bool = False,
        resources: Mapping[str, int] | None = None,
    ) -> None:
        """Run nothing yet.

        Args:
            models: Configs by model name.
            directory: Working directory of hooks.
            log_dir: Folder of their logs.
            events: Told of each run, when it starts and when it has ended.
            state_dir: Folder that hooks are told to keep their files in; None for no folder.
            marks: Returns the mark for the environment of a model's wake, sleep and stop hook; see
                `llmux.hooks.orphans`.
            secret_variables: Environment variables that hooks do not get, beside llmux's own.
            kill_after_s: Time between SIGTERM and SIGKILL, in seconds.
            shows_output: True if clients are told what a failed hook has printed.
            resources: The config's, for hooks whose models have needs.
        """
        self.resources = resources or {}
        self.shows_output = shows_output
        self.secret_variables = USUAL_SECRETS.union(secret_variables)
        self.marks = marks
        self.events = events
        self._models: dict[str, ModelConfig] = {}
        self._without_log: set[str] = set()
        self._logged_failures: dict[tuple[str, HookName], tuple[str, str]] = {}
        self.directory = directory
        self.state_dir = state_dir
        self._log_dir = log_dir
        self.kill_after_s = kill_after_s
        for name, model in models.items():
            self.use(name, model)

    def apply(self, config: Config) -> None:
        """Use another config from now on, except for its models: `use` takes those one by one."""
        self.secret_variables = USUAL_SECRETS.union(config.secret_variables)
        self.resources = config.resources
        self.shows_output = config.errors.hook_output == "clients"

    def use(self, name: str, model: ModelConfig | None) -> None:
        """Use another config for a model from now on; None removes the model."""
        if model is None:
            del self._models[name]
            self.forget_checks(name)
        else:
            self._models[name] = model

    def of(self, model: str) -> ShellModelHooks:
        """Return the hooks that a model has now."""
        return ShellModelHooks(self, model, self._models[model])

    def find(self, model: str) -> ShellModelHooks | None:
        """Return the hooks of a model, or None if the config does not have it."""
        return self.of(model) if model in self._models else None

    async def end_marked(self, mark: str) -> None:
        """See `llmux.hooks.orphans`."""
        await end_marked(mark)

    def log_path(self, model: str) -> Path:
        """Return the log file of a model's hooks, and of the servers that they start."""
        return self._log_dir / log_name(model)

    @contextmanager
    def open_log(
        self, model: str, title: str, *, is_check: bool = False
    ) -> Iterator[RunLog | CheckLog | None]:
        """Open the model's log for a run; None, with a warning, if it cannot be written."""
        path = self.log_path(model)
        with ExitStack() as stack:
            run_log: RunLog | CheckLog | None = None
            try:
                if is_check:
                    run_log = stack.enter_context(CheckLog.open(path, title))
                else:
                    run_log = stack.enter_context(RunLog.open(path, title))
                self._without_log.discard(model)
            except OSError as error:
                if model not in self._without_log:  # once, until it works again
                    log.warning("hook_log_unusable", model=model, path=str(path), error=str(error))
                self._without_log.add(model)
            yield run_log

    def note_check(
        self, model: str, hook: HookName, run_log: CheckLog, failure: str | None, tail: str
    ) -> None:
        """Log a check that has failed, unless the one before has failed in the same way."""
        key = model, hook
        if failure is None:
            self._logged_failures.pop(key, None)  # the next failure is news again
        elif self._logged_failures.get(key) != (failure, tail):
            self._logged_failures[key] = failure, tail
            run_log.keep()

    def forget_checks(self, model: str) -> None:
        """Log the next failed checks of a model, whatever they say."""
        for hook in CHECKS:
            self._logged_failures.pop((model, hook), None)


class ShellModelHooks:
    """One model's hooks, with the config that it had when they were asked for.

    Implements `llmux.switching.steps.ModelHooks`.
    """

    __slots__ = ("_config", "_name", "_shell")

    def __init__(self, shell: ShellHooks, name: str, config: ModelConfig) -> None:
        self._shell = shell
        self._name = name
        self._config = config

    def __repr__(self) -> str:
        return f"<ShellModelHooks of {self._name!r}>"

    @property
    def model(self) -> str:
        return self._name

    @property
    def address(self) -> str:
        """URL of the model's backend."""
        return self._config.base_url

    def has(self, hook: HookName) -> bool:
        return self._config.script(hook) is not None

    def timeout_s(self, hook: HookName) -> float:
        """Return how many seconds a hook may run; infinity for no limit."""
        timeout_s = self._config.timeout_s(hook)
        return math.inf if timeout_s is None else timeout_s

    async def output(self, hook: HookName) -> str:
        """Run a configured hook to its end; return what it prints, without its standard error.

        Raises:
            HookError: As from `run`; also if there is no room for its output.
        """
        try:
            with TemporaryFile(buffering=0) as printed:
                await self.run(hook, stdout=printed.fileno())
                return os.pread(printed.fileno(), MOST_PRINTED, 0).decode(errors="replace")
        except OSError as error:
            failure = f"has no file for its output: {error}"
            raise HookError(self._name, hook, failure, was_started=False) from None

    async def run(
        self,
        hook: HookName,
        *,
        source: str = "",
        target: str = "",
        expects_failure: bool = False,
        stdout: int | None = None,
    ) -> None:
        """Run a configured hook to its end; see the module.

        Args:
            hook: Name of the hook.
            source: Model that the switch leaves, if any.
            target: Model that the switch is for, if any.
            expects_failure: True if a failure is neither logged as one nor counted: the model is
                still loading.
            stdout: Descriptor of a file for its standard output; None for the model's log.

        Raises:
            HookError: It exited non-zero, could not be started, or outlived its time.
        """
        model, shell = self._name, self._shell
        environment = self._environment(hook, source, target)
        started_at = trio.current_time()
        run = HookRun(model=model, hook=hook, started=shell.events.clock.unix(started_at))
        shell.events.hook_started.tell(run)
        outcome = _Outcome("was cancelled")  # unless the run ends otherwise
        if hook not in CHECKS:
            shell.forget_checks(model)
        title = f"{hook} source={source} target={target}"
        with shell.open_log(model, title, is_check=hook in CHECKS) as run_log:
            try:
                outcome = await self._run_shell(hook, environment, run_log, stdout)
            finally:
                tail = "" if run_log is None else MASKER.mask(run_log.tail())
                if isinstance(run_log, CheckLog):
                    shell.note_check(model, hook, run_log, outcome.failure, tail)
                error = outcome.error(model, hook, tail, shows_output=shell.shows_output)
                took_s = trio.current_time() - started_at
                ended = replace(
                    run,
                    duration_secs=round(took_s, 3),
                    ok=error is None,
                    error=outcome.failure,
                    output=tail,
                )
                shell.events.hook_ended.tell(
                    HookEnded(ended, took_s, error, expects_failure=expects_failure)
                )
        if error is not None:
            raise error

    async def _run_shell(
        self,
        hook: HookName,
        environment: Mapping[str, str],
        run_log: RunLog | CheckLog | None,
        stdout: int | None,
    ) -> _Outcome:
        script, timeout_s = self._config.script(hook), self.timeout_s(hook)
        assert script is not None, f"{self._name} has no {hook} hook"
        ending = GroupEnd(self._shell.kill_after_s)
        log_file = DEVNULL if run_log is None else run_log.descriptor
        with trio.move_on_after(timeout_s):
            try:
                done = await trio.run_process(
                    shell_command(script),
                    cwd=self._shell.directory,
                    env=environment,
                    stdin=DEVNULL,
                    # A file, for with a pipe Trio would wait for background processes, too.
                    stdout=log_file if stdout is None else stdout,
                    stderr=log_file,
                    start_new_session=True,
                    check=False,
                    deliver_cancel=ending.begin,
                )
                return _Outcome.of_shell(done.returncode)
            # RuntimeError: no thread to fork in. ValueError: not encodable in this locale.
            except (OSError, RuntimeError, ValueError) as error:
                return _Outcome(f"could not be started: {error}", was_started=False)
            finally:
                # Shielded, for no hook may start while this one's processes run; bounded by
                # twice `kill_after_s`.
                with trio.CancelScope(shield=True):
                    if not await ending.finish():
                        log.warning("hook_survived", model=self._name, hook=hook, pgid=ending.group)
        if ending.exit_code is not None:
            return _Outcome.of_shell(ending.exit_code)
        return _Outcome(f"took longer than {timeout_s:g} s (hook_timeouts.{hook})")

    def _environment(self, hook: HookName, source: str, target: str) -> dict[str, str]:
        return hook_environment(
            self._name,
            self._config,
            hook=hook,
            source=source,
            target=target,
            mark=self._shell.marks(self._name) if hook in MARKED_HOOKS else "",
            # Today's, not those of the hook's config: a key added since is secret, too.
            secret_variables=self._shell.secret_variables,
            state_dir=self._shell.state_dir,
            resources=self._shell.resources,
        )


@dataclass(frozen=True)
class _Outcome:
    """Outcome of a run.

    Attributes:
        failure: The failure, to follow "the wake hook"; None for success.
        exit_code: The shell's, negative for a signal; None if llmux ended it or it never started.
        was_started: False if it cannot have done anything.
    """

    failure: str | None
    exit_code: int | None = None
    was_started: bool = True

    @classmethod
    def of_shell(cls, exit_code: int) -> _Outcome:
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
