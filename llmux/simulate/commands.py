"""`llmux simulate` and `llmux replay`."""

from __future__ import annotations

import random
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import click

from llmux.config import PolicyConfig
from llmux.errors import ConfigError
from llmux.policy import POLICIES, Policy, load_policy
from llmux.simulate.arrivals import (
    Arrival,
    Closed,
    bursty,
    exponential,
    one_hot,
    poisson,
    read_trace,
    zipf,
)
from llmux.simulate.backends import Sharing, Slots
from llmux.simulate.engine import Setup, simulate
from llmux.simulate.outcome import Outcome
from llmux.simulate.replay import Recording, load_recordings
from llmux.simulate.report import NoPlots, figures, plot, render, row


def _policies(_context: click.Context, _option: click.Parameter, value: str) -> list[str]:
    names = [name.strip() for name in value.split(",") if name.strip()]
    for name in names:
        if name not in POLICIES and ":" not in name:
            known = ", ".join(POLICIES)
            raise click.BadParameter(
                f"unknown policy {name!r} (one of: {known}; or package.module:Class)"
            )
    return names


def _own_or_ours(config: PolicyConfig) -> Policy:
    """A policy; one that cannot be made is a mistake of the command line."""
    with _policy_mistakes():
        return load_policy(config, Path.cwd())


@contextmanager
def _policy_mistakes() -> Iterator[None]:
    try:
        yield
    except ConfigError as error:
        raise click.BadParameter(str(error).removeprefix("policy.name: ")) from None


policies_option = click.option(
    "--policy",
    "policies",
    default="fifo,exhaustive,adaptive",
    show_default=True,
    callback=_policies,
    help="Policies to compare, separated by commas.",
)
plot_option = click.option(
    "--plot",
    "plot_to",
    type=click.Path(path_type=Path),
    help="Draw when each model was awake (needs llmux[plot]).",
)


@click.command("simulate")
@policies_option
@click.option("--models", default=4, show_default=True, type=click.IntRange(1))
@click.option("--switch-secs", default=10.0, show_default=True, help="Hook time of a switch.")
@click.option("--load", default=0.5, show_default=True, help="Of what the GPU can do.")
@click.option("--slots", default=8, show_default=True, help="Requests a backend serves at once.")
@click.option("--sharing", is_flag=True, help="All at once, each the slower; not by slots.")
@click.option("--service-secs", default=8.0, show_default=True, help="Mean time of a request.")
@click.option(
    "--popularity", type=click.Choice(["zipf", "one-hot"]), default="zipf", show_default=True
)
@click.option(
    "--pattern",
    type=click.Choice(["poisson", "bursty", "closed"]),
    default="poisson",
    show_default=True,
    help="How requests come; closed: agents that wait for each answer, and think.",
)
@click.option("--agents", default=12, show_default=True, help="Agents of the closed pattern.")
@click.option("--think-secs", default=20.0, show_default=True, help="How long each thinks.")
@click.option("--hours", default=6.0, show_default=True, help="Length of the closed pattern.")
@click.option("--trace", type=click.Path(path_type=Path, exists=True), help="Requests of a file.")
@click.option("--requests", default=20_000, show_default=True, type=click.IntRange(1))
@click.option("--max-wait-secs", default=300.0, show_default=True, help="The policies' bound.")
@click.option("--seed", default=0, show_default=True)
@plot_option
def simulate_command(policies: list[str], plot_to: Path | None, **options: Any) -> None:
    """Compare policies on made-up traffic, or on a trace (CSV: arrival_s, model, service_s).

    Waits are all that a request waits, in llmux's line and inside of its backend, in seconds.
    """
    rows = []
    outcomes = {}
    for name in policies:
        outcome = outcomes[name] = _simulated(name, **options)
        rows.append(row(name, outcome.waits(), outcome))
    click.echo(render(rows))
    _draw(outcomes, plot_to)


def _simulated(name: str, **options: Any) -> Outcome:
    rng = random.Random(options["seed"])  # noqa: S311
    work = exponential(options["service_secs"])
    slots, count = options["slots"], options["models"]
    shares = zipf(count) if options["popularity"] == "zipf" else one_hot(count)
    names = [str(index) for index in range(count)]
    arrivals: Iterator[Arrival] | Sequence[Arrival]
    follow = None
    until = float("inf")
    length = options["requests"]
    if options["trace"] is not None:
        try:
            arrivals = read_trace(options["trace"], work_s=options["service_secs"])
        except (KeyError, ValueError) as error:
            raise click.ClickException(f"{options['trace']}: {error!r}") from None
        names = sorted({arrival.model for arrival in arrivals})
        length = len(arrivals)
    elif options["pattern"] == "closed":
        agents = Closed(options["agents"], shares, exponential(options["think_secs"]), work, rng)
        arrivals, follow, until = agents.first(), agents.follow, 3600 * options["hours"]
    else:
        arrive = poisson if options["pattern"] == "poisson" else bursty
        rate = options["load"] * slots / options["service_secs"]
        arrivals = arrive(shares, rate, work, length, rng)
    config = PolicyConfig(name=name, max_wait_secs=options["max_wait_secs"])
    setup = Setup(
        models=names,
        cost=lambda _source, _target: float(options["switch_secs"]),
        server=lambda _model: (
            Sharing(lambda busy: min(1.0, slots / busy)) if options["sharing"] else Slots(slots)
        ),
        policy=partial(_own_or_ours, config),
    )
    with _progress(name, length) as note:
        return simulate(setup, arrivals, follow=follow, until=until, progress=note)


@click.command("replay")
@click.argument("files", nargs=-1, required=True, type=click.Path(path_type=Path, exists=True))
@policies_option
@plot_option
def replay_command(files: tuple[Path, ...], policies: list[str], plot_to: Path | None) -> None:
    """What other policies would have made of a recorded day (journal.jsonl in state_dir).

    Waits are those in llmux's line, and frozen with a model, in seconds. The row "observed" is what
    really happened, and the policy that was really used should come near it. Several files may be
    given in any order.
    """
    try:
        recordings = load_recordings(files, partial(click.echo, err=True))
    except (OSError, ValueError) as error:
        raise click.ClickException(str(error)) from None
    outcomes = {}
    for group, recording in recordings.items():
        away = f", {recording.turned_away} were not let in" if recording.turned_away else ""
        click.echo(
            f"group {group}: {len(recording.requests)} requests for {len(recording.models)} models"
            f"{away}; policy {recording.started.policy}"
        )
        if not recording.is_drained:
            click.echo("drain_before_switch was off; the replay drains: waits may differ by that")
        rows = [_observed(recording)]
        for name in policies:
            with _policy_mistakes(), _progress(name, len(recording.requests)) as note:
                outcome = simulate(recording.setup(name), recording.arrivals(), progress=note)
            outcomes[name if len(recordings) == 1 else f"{group} {name}"] = outcome
            rows.append(row(name, outcome.held_waits(), outcome))
        click.echo(render(rows))
    _draw(outcomes, plot_to)


def _observed(recording: Recording) -> list[str]:
    done = [switch for switch in recording.switches if switch.result == "success"]
    last = max(request.ended for request in recording.requests)
    total = last - min(request.arrived for request in recording.requests) or 1.0
    draining = sum(switch.drain_s for switch in done) / total
    switching = sum(switch.hooks_s for switch in done) / total
    shares = ["-", f"{100 * draining:.0f} %", f"{100 * switching:.0f} %", "-"]
    return ["observed", *figures(recording.held_waits()), str(len(done)), *shares, "-"]


def _draw(outcomes: dict[str, Outcome], plot_to: Path | None) -> None:
    if plot_to is None:
        return
    try:
        plot(outcomes, plot_to)
    except NoPlots as error:
        raise click.ClickException(error.message) from None


@contextmanager
def _progress(name: str, length: int) -> Iterator[Callable[[int], None]]:
    """A bar on a terminal's standard error; calls say how many requests were answered so far."""
    if not sys.stderr.isatty():
        yield lambda _count: None
        return
    done = 0
    with click.progressbar(length=length, label=name, file=sys.stderr) as bar:

        def note(count: int) -> None:
            nonlocal done
            bar.update(count - done)
            done = count

        yield note
