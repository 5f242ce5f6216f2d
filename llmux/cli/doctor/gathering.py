"""Gather all facts: ask the llmux that the user means, and look at this machine."""

from __future__ import annotations

import os
import shlex
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import click

from llmux import __version__
from llmux.cli.doctor import probes
from llmux.cli.doctor.elsewhere import url_of
from llmux.cli.doctor.facts import ConfigFacts, Facts, GpuUse, Listener, SecretFile
from llmux.cli.doctor.nvidia import gpu_uses
from llmux.cli.doctor.probes import Answers, Probes
from llmux.cli.doctor.processes import descriptors, listeners, listeners_of, lock_holder
from llmux.cli.terminal.target import Target, config_of, find_key, find_trust, find_url
from llmux.config import Config, default_config_path
from llmux.errors import ConfigError
from llmux.observe.gpus import QueryFailed
from llmux.server.ports import FILE, chosen_ports

GpuAnswer = tuple[tuple[GpuUse, ...], str | None]
"""The GPUs, and why there are none."""


def gather(context: click.Context, options: dict[str, Any]) -> Facts:
    """Look at everything. Raises click.UsageError for options that cannot be used."""
    checks, named = Probes(), config_of(context)
    key = find_key(options["key"], options["key_file"], os.environ)

    def target_at(url: str) -> Target:
        return Target(url, key, find_trust(url, options["cacert"], named, os.environ))

    url, unknown = _url(options["url"], named)
    running, trouble, text = (None, None, unknown) if url is None else _ask(checks, target_at(url))
    is_here = url is None or checks.run("address", lambda: probes.is_local(url), otherwise=True)
    used = running.settings.get("path") if running is not None and is_here else None
    has_url = bool(_given_url(options["url"]))
    # The config of this folder says nothing about another machine.
    path, lacking = _config_path(named, used, is_first=has_url) if is_here else (named, ())
    facts = Facts(
        url=url,
        options=_options(options, named),
        is_here=is_here,
        version=__version__,
        running=running,
        trouble=trouble,
        trouble_text=text,
        config=ConfigFacts(mistakes=lacking) if path is None else _config(checks, path),
        secrets=_secrets(checks, path),
    )
    if is_here:
        facts = _machine(checks, facts if has_url else _found_elsewhere(checks, facts, target_at))
    return replace(facts, unchecked=tuple(checks.unchecked))


def _ask(checks: Probes, target: Target) -> Answers:
    nothing: Answers = (None, "silent", f"{target.url} gives no answer")
    return checks.run("llmux", lambda: probes.ask(target), nothing)


def _config(checks: Probes, path: Path) -> ConfigFacts:
    otherwise = ConfigFacts(path.absolute(), mistakes=(f"{path} could not be read",))
    return checks.run("config", lambda: probes.look_at_config(path), otherwise)


def _found_elsewhere(checks: Probes, facts: Facts, target_at: Callable[[str], Target]) -> Facts:
    """Ask the llmux that serves the config where it really listens, if that is elsewhere."""
    state_dir = _state_dir(facts)
    if facts.running is not None or facts.trouble not in {None, "refused"} or state_dir is None:
        return facts
    holder = checks.run("lock", lambda: lock_holder(state_dir), None)
    if holder is None:
        return facts
    none: tuple[Listener, ...] = ()
    for each in checks.run("ports", lambda: listeners_of(holder.pid), none):
        url = url_of(each, facts.config.config)
        running, trouble, text = _ask(checks, target_at(url))
        if running is not None or trouble == "key":
            options = f"{facts.options} --url {url}".strip()
            return replace(
                facts,
                url=url,
                options=options,
                is_elsewhere=True,
                running=running,
                trouble=trouble,
                trouble_text=text,
            )
    return facts


def _machine(checks: Probes, facts: Facts) -> Facts:
    """Add what only this machine can tell."""
    state_dir = _state_dir(facts)
    holder = folder = None
    if state_dir is not None:
        folder = checks.run("state", lambda: probes.look_at_folder(state_dir), None)
        holder = checks.run("lock", lambda: lock_holder(state_dir), None)
    none: set[int] = set()
    ports = checks.run("ports", lambda: _ports(facts, state_dir), none)
    nothing: GpuAnswer = ((), None)
    config = facts.config.config
    is_watched = config is None or config.watch_gpus
    gpus, gpu_error = checks.run("gpu", _gpus, nothing) if is_watched else nothing
    pid = None if holder is None else holder.pid
    return replace(
        facts,
        holder=holder,
        folder=folder,
        listeners=checks.run("ports", lambda: listeners(ports), None),
        gpus=gpus,
        gpu_error=gpu_error,
        descriptors=checks.run("descriptors", lambda: descriptors(pid), None),
    )


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
    given = {
        "-c": config,
        "--url": options["url"],
        "--cacert": options["cacert"],
        "--key-file": options["key_file"],
    }
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
    # What cannot be read would be logged.
    if state_dir is not None and os.access(state_dir / FILE, os.R_OK):
        ports |= set(chosen_ports(state_dir).values())
    return ports


def _gpus() -> GpuAnswer:
    try:
        return gpu_uses(), None
    except QueryFailed as error:
        return (), str(error)
