"""`llmux validate` as a command: its options, its table, its exit codes."""

from __future__ import annotations

import logging
import sys
from collections.abc import Callable
from contextlib import closing, suppress
from pathlib import Path
from typing import Any, TypeVar

import click
import msgspec
import trio

from llmux.cli.options import config_option, find_config, with_options_before
from llmux.config import Config
from llmux.config.masking import MASKER
from llmux.errors import ConfigError
from llmux.observe import logs
from llmux.observe.clock import WallClock
from llmux.observe.events import Events
from llmux.server.composition import shell_hooks
from llmux.server.exits import EXIT_CONFIG, print_mistake
from llmux.server.ports import PortBook
from llmux.server.statelock import LockHeld, state_lock
from llmux.switching.awake import AwakeRecord
from llmux.validate.run import Asker, Step, Validation
from llmux.validate.verdicts import Question, is_known

EXIT_FAILED = 1
"""A check has failed."""

Command = TypeVar("Command", bound=Callable[..., Any])


def _known_path(_context: click.Context, _option: click.Parameter, path: str) -> str:
    if not is_known(path):
        raise click.BadParameter("must end in /chat/completions, /completions or /embeddings")
    return path


def validate_options(command: Command) -> Command:
    """Add the options of `llmux validate`; see `run_validation`."""
    for option in (
        click.argument("model"),
        click.option("--json", "as_json", is_flag=True, help="Print JSON, at the end."),
        click.option(
            "--timeout",
            "timeout_s",
            type=click.FloatRange(0, min_open=True),
            default=120,
            show_default=True,
            help="Seconds for an answer. Hooks have those of the config.",
        ),
        click.option(
            "--prompt",
            default="Write one sentence about the sea.",
            show_default=True,
            help="What it is asked.",
        ),
        click.option(
            "--path",
            default="/v1/chat/completions",
            show_default=True,
            callback=_known_path,
            help="Where it is asked; or /v1/completions, /v1/embeddings.",
        ),
        click.option(
            "--cycles",
            type=click.IntRange(1),
            default=1,
            show_default=True,
            help="How many times it is put to sleep and woken again.",
        ),
    ):
        command = option(command)
    return command


@click.command("validate")
@config_option
@validate_options
@click.pass_context
def validate_command(context: click.Context, /, config: Path | None, **options: Any) -> None:
    """Try MODEL's hooks: does it come back from sleep as it was?

    Wakes it, asks it twice, puts it to sleep, wakes it, asks again, and compares. If the first two
    answers are equal, the third must be equal, too; if not, it may be twice as far from the nearer
    of them as they are from each other, by the share of words that are not the same. Embeddings
    are compared by their cosine. Empty answers, errors and one piece over and over (!!!!!!) fail.
    WARN fails nothing: alive says yes while asleep, or answers differ too much to tell.

    Stop llmux before: this takes the config's lock. Models of the same group that llmux has left
    awake are put to sleep first, and MODEL is left asleep. Exit code 1 if a check fails, 2 if there
    was nothing to check: a bad config, no such model, or llmux is running.
    """
    try:
        loaded = find_config(with_options_before(context, {"config": config})["config"])
    except ConfigError as error:
        print_mistake(error)
        sys.exit(EXIT_CONFIG)
    sys.exit(run_validation(loaded, **options))


def run_validation(
    config: Config,
    *,
    model: str,
    cycles: int,
    path: str,
    prompt: str,
    timeout_s: float,
    as_json: bool,
) -> int:
    """Validate a model and print the results.

    Args:
        config: The config that has the model.
        model: Its name, or an alias.
        cycles: How many times it is put to sleep and woken again.
        path: Where it is asked.
        prompt: What it is asked.
        timeout_s: Seconds for an answer.
        as_json: Print JSON at the end, and not each step as a line.

    Returns:
        The exit code.
    """
    _configure_logs()
    try:
        name = config.names.find(model)
        if name is None:
            known = ", ".join(config.models)
            raise ConfigError([f"no model {model!r} in {config.path}; there is: {known}"])
        with (
            state_lock(config.state_dir, config.path),
            closing(PortBook(config.state_dir)) as ports,
        ):
            config = ports.assign(config)
            MASKER.use(config.secrets)
            record = AwakeRecord(config.state_dir / "awake.json")
            record.load(config.models)
            # Nobody listens: the table says what hooks do.
            hooks = shell_hooks(config, Events(WallClock()), record.mark)
            settings = config.models[name]
            question = Question(path, settings.name_sent or name, prompt)
            asker = Asker(settings, question, timeout_s)
            validation = Validation(config, name, hooks, record, asker.ask)
            steps: list[Step] = []
            report = steps.append if as_json else _print_step
            if not as_json:
                _print_line("stage", "step", "seconds", "", "")
            has_passed = trio.run(validation.run, cycles, report)
    except (ConfigError, LockHeld, OSError) as error:
        print_mistake(error)
        return EXIT_CONFIG
    if as_json:
        outcome = {"model": name, "passed": has_passed, "steps": steps}
        click.echo(msgspec.json.format(msgspec.json.encode(outcome)))
    else:
        click.echo(f"{'PASS' if has_passed else 'FAIL'}: {name}, cycles: {cycles}")
    return 0 if has_passed else EXIT_FAILED


def _configure_logs() -> None:
    logs.configure()
    # The table says what hooks do; a failure of `alive` while asleep is as it should be.
    logging.getLogger("llmux.hooks").setLevel(logging.ERROR)


def _print_step(step: Step) -> None:
    seconds = "" if step.seconds is None else f"{step.seconds:.2f}"
    _print_line(step.stage, step.step, seconds, step.result, step.detail)


def _print_line(stage: str, step: str, seconds: str, result: str, detail: str) -> None:
    """Format in columns of fixed widths, since lines arrive one by one."""
    line = f"{stage:<5}  {step:<13}  {seconds:>8}  {result:<4}  {detail}"
    # If the reader of the output leaves, the model must still be put to sleep.
    with suppress(BrokenPipeError):
        click.echo(line.rstrip())
