"""`llmux replay`."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from functools import partial
from pathlib import Path

import click

from llmux.cli.comparing import (
    plot_if_asked,
    plot_option,
    policies_option,
    policy_errors,
    progress_bar,
)
from llmux.cli.journals import find_journals
from llmux.cli.options import config_option, with_options_before
from llmux.errors import ConfigError
from llmux.server.exits import EXIT_CONFIG, print_mistake
from llmux.simulate.recordings import load_recordings
from llmux.simulate.replay import Recording
from llmux.simulate.report import figures, render, row
from llmux.simulate.shared_replay import SharedRecording


@click.command("replay")
@click.argument("files", nargs=-1, type=click.Path(path_type=Path, exists=True))
@config_option
@policies_option
@plot_option
@click.pass_context
def replay_command(
    context: click.Context,
    /,
    files: Sequence[Path],
    config: Path | None,
    policies: list[str],
    plot_to: Path | None,
) -> None:
    """Replay recorded traffic under several policies: FILES, else the journal of the config.

    A wait is the time in llmux's line or frozen with a model, in seconds. The row "observed" shows
    what really happened; the policy in use at the time should come close to it. Several files may
    be given, in any order.
    """
    if files and config is not None:
        raise click.UsageError("give journals or a config (-c), not both")
    try:
        files = files or find_journals(with_options_before(context, {"config": config})["config"])
    except ConfigError as error:
        print_mistake(error)
        sys.exit(EXIT_CONFIG)
    try:
        recordings = load_recordings(files, partial(click.echo, err=True))
    except (OSError, ValueError) as error:
        raise click.ClickException(str(error)) from None
    outcomes = {}
    for group, recording in recordings.items():
        away = f", {recording.turned_away} not admitted" if recording.turned_away else ""
        shared = " that share memory" if isinstance(recording, SharedRecording) else ""
        click.echo(
            f"group {group}: {len(recording.requests)} requests for {len(recording.models)} models"
            f"{shared}{away}; policy {recording.started.policy}"
        )
        if not recording.is_drained:
            click.echo("drain_before_switch was off, but the replay drains: waits may differ")
        rows = [_observed(recording)]
        for name in policies:
            with policy_errors(), progress_bar(name, len(recording.requests)) as note:
                outcome = recording.simulate(name, note)
            outcomes[name if len(recordings) == 1 else f"{group} {name}"] = outcome
            rows.append(row(name, outcome.held_waits(), outcome))
        click.echo(render(rows))
    plot_if_asked(outcomes, plot_to)


def _observed(recording: Recording) -> list[str]:
    done = [switch for switch in recording.switches if switch.result == "success"]
    last = max(request.ended for request in recording.requests)
    total = last - min(request.arrived for request in recording.requests) or 1.0
    if isinstance(recording, SharedRecording):  # whose switches overlap
        shares = ["-"] * 4
    else:
        draining = sum(switch.drain_s for switch in done) / total
        switching = sum(switch.hooks_s for switch in done) / total
        shares = ["-", f"{100 * draining:.0f} %", f"{100 * switching:.0f} %", "-"]
    return ["observed", *figures(recording.held_waits()), str(len(done)), *shares, "-"]
