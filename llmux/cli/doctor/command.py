"""`llmux doctor`: gather, judge, print."""

from __future__ import annotations

import os
import shlex
import shutil
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import click
import msgspec

from llmux import __version__
from llmux.cli.doctor import probes
from llmux.cli.doctor.facts import ConfigFacts, Facts, GpuUse, SecretFile
from llmux.cli.doctor.findings import Finding, Report, counted, lines, number, ordered
from llmux.cli.doctor.here import findings_here
from llmux.cli.doctor.nvidia import gpu_uses
from llmux.cli.doctor.probes import Answers, Probes
from llmux.cli.doctor.processes import descriptors, listeners, lock_holder
from llmux.cli.doctor.running import findings_running
from llmux.cli.options import config_option
from llmux.cli.terminal.target import Target, config_of, find_key, find_url
from llmux.config import Config, default_config_path
from llmux.errors import ConfigError
from llmux.observe.gpus import QueryFailed
from llmux.server.ports import chosen_ports

EXIT_PROBLEMS = 1

UNCUT = 10_000
"""Width where the output is no terminal."""

GpuAnswer = tuple[tuple[GpuUse, ...], str | None]
"""The GPUs, and why there are none."""

EXIT_CODES = """\b
Exit codes:
  0    no problems; there may be warnings
  1    there are problems
  2    a mistake in the command line"""


@click.command("doctor", epilog=EXIT_CODES)
@config_option
@click.option(
    "--url",
    help="Where llmux is. Default: $LLMUX_URL, the config's host and port, or "
    "http://127.0.0.1:3000.",
)
@click.option("--key", help="One of llmux's control_keys; rather use --key-file.")
@click.option(
    "--key-file", type=click.Path(path_type=Path), help="A file whose first line is the key."
)
@click.option("--json", "as_json", is_flag=True, help="Print all findings as JSON.")
@click.pass_context
def doctor_command(context: click.Context, /, *, as_json: bool, **options: Any) -> None:
    """Say why requests hang, and what to do.

    Looks at the config, hooks, keys, state folder, disk, ports, GPUs and limits of this machine,
    and at a running llmux: its switches, lines, failing models and oldest requests. Changes
    nothing.
    """
    facts = gather(context, options)
    found = ordered([
        *findings_running(facts),
        *findings_here(facts),
        *(
            Finding("note", about, f"{about} could not be looked at", why)
            for about, why in facts.unchecked
        ),
    ])  # fmt: skip
    report = Report(
        version=__version__,
        url=facts.url,
        config=None if facts.config.path is None else str(facts.config.path),
        problems=counted(found, "problem"),
        warnings=counted(found, "warning"),
        findings=found,
    )
    if as_json:
        click.echo(msgspec.json.encode(report))
    else:
        _print(report)
    sys.exit(EXIT_PROBLEMS if report.problems else 0)


def _print(report: Report) -> None:
    width = shutil.get_terminal_size().columns if sys.stdout.isatty() else UNCUT
    for line in lines(report.findings, max(width, 40)):
        click.echo(line)
    sums = [number(report.problems, "problem"), number(report.warnings, "warning")]
    click.echo(f"\n{', '.join(sums)}")


# ---- Gather ----


def gather(context: click.Context, options: dict[str, Any]) -> Facts:
    """Look at everything. Raises click.UsageError for options that cannot be used."""
    named = config_of(context)
    key = find_key(options["key"], options["key_file"], os.environ)
    url, unknown = _url(options["url"], named)
    checks = Probes()
    answered: Answers = (None, None, unknown)
    if url is not None:
        target = Target(url, key)
        nothing: Answers = (None, "silent", f"{url} gives no answer")
        answered = checks.run("llmux", lambda: probes.ask(target), nothing)
    running, trouble, text = answered
    is_here = url is None or checks.run("address", lambda: probes.is_local(url), otherwise=True)
    used = running.settings.get("path") if running is not None and is_here else None
    path, lacking = _config_path(named, used, is_first=bool(_given_url(options["url"])))
    config = ConfigFacts(mistakes=lacking)
    if path is not None:
        found = ConfigFacts(path.absolute(), mistakes=(f"{path} could not be read",))
        config = checks.run("config", lambda: probes.look_at_config(path), found)
    facts = Facts(
        url=url,
        options=_options(options, named),
        is_here=is_here,
        version=__version__,
        running=running,
        trouble=trouble,
        trouble_text=text,
        config=config,
        secrets=_secrets(checks, path),
    )
    return _machine(checks, facts) if is_here else _with_unchecked(facts, checks)


def _machine(checks: Probes, facts: Facts) -> Facts:
    """Add what only this machine can tell."""
    state_dir = _state_dir(facts)
    holder = folder = None
    if state_dir is not None:
        folder = checks.run("state", lambda: probes.look_at_folder(state_dir), None)
        holder = checks.run("lock", lambda: lock_holder(state_dir), None)
    ports = _ports(facts, state_dir)
    nothing: GpuAnswer = ((), None)
    gpus, gpu_error = checks.run("gpu", _gpus, nothing)
    pid = None if holder is None else holder.pid
    facts = replace(
        facts,
        holder=holder,
        folder=folder,
        listeners=checks.run("ports", lambda: listeners(ports), None),
        gpus=gpus,
        gpu_error=gpu_error,
        descriptors=checks.run("descriptors", lambda: descriptors(pid), None),
    )
    return _with_unchecked(facts, checks)


def _with_unchecked(facts: Facts, checks: Probes) -> Facts:
    return replace(facts, unchecked=tuple(checks.unchecked))


def _url(given: str | None, config: Path | None) -> tuple[str | None, str]:
    """Return the URL of llmux; without one, why the config does not tell it."""
    try:
        return find_url(given, config, os.environ), ""
    except click.UsageError as error:
        if _given_url(given):
            raise
        return None, error.message  # the config's mistakes are findings


def _given_url(option: str | None) -> str | None:
    return option or os.environ.get("LLMUX_URL")


def _config_path(
    named: Path | None, used: object, *, is_first: bool
) -> tuple[Path | None, tuple[str, ...]]:
    """Return the config to look at; without one, where it was looked for.

    Args:
        named: The one that the command line names.
        used: Path of that of the running llmux; None if that is unknown.
        is_first: True if that comes before the default one, since the user has named the llmux.
    """
    if named is not None:
        return named, ()
    if is_first and isinstance(used, str):
        return Path(used), ()
    try:
        return default_config_path(os.environ), ()
    except ConfigError as error:
        return (Path(used), ()) if isinstance(used, str) else (None, tuple(error.lines))


def _secrets(checks: Probes, path: Path | None) -> tuple[SecretFile, ...]:
    if path is None:
        return ()

    def look() -> tuple[SecretFile, ...]:
        try:
            return probes.secret_files(path)
        except ConfigError:  # a finding about the config already
            return ()

    return checks.run("keys", look, ())


def _options(options: dict[str, Any], config: Path | None) -> str:
    """Return the options that commands for the same llmux need."""
    given = {"-c": config, "--url": options["url"], "--key-file": options["key_file"]}
    return shlex.join(
        word for name, value in given.items() if value is not None for word in (name, str(value))
    )


def _state_dir(facts: Facts) -> Path | None:
    """Return the state folder: of the running llmux, whose user may have another default."""
    settings = {} if facts.running is None else facts.running.settings
    if isinstance(used := settings.get("state_dir"), str):
        return Path(used)
    return None if facts.config.config is None else facts.config.config.state_dir


def _ports(facts: Facts, state_dir: Path | None) -> set[int]:
    """Return the ports whose listeners matter."""
    config: Config | None = facts.config.config
    ports = set() if config is None else {config.port}
    urls = [model.address for model in config.models.values()] if config is not None else []
    if facts.running is not None:
        urls += [model.backend for model in facts.running.status.models.values()]
    ports |= {port for url in urls if url is not None and (port := probes.port_of(url)) is not None}
    return ports | set(chosen_ports(state_dir).values() if state_dir is not None else ())


def _gpus() -> GpuAnswer:
    try:
        return gpu_uses(), None
    except QueryFailed as error:
        return (), str(error)
