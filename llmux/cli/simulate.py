"""`llmux simulate`."""

from __future__ import annotations

import math
import random
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import click

from llmux.cli.comparing import (
    plot_if_asked,
    plot_option,
    policies_option,
    policy_from,
    progress_bar,
)
from llmux.config import PolicyConfig
from llmux.simulate.arrivals import (
    LONGEST_S,
    Arrival,
    Closed,
    bursty,
    exponential,
    one_hot,
    poisson,
    read_costs,
    read_trace,
    zipf,
)
from llmux.simulate.backends import Sharing, Slots
from llmux.simulate.engine import Setup, simulate
from llmux.simulate.outcome import Outcome
from llmux.simulate.report import render, row

MAX_COUNT = 1_000_000
"""Largest number of models, slots or agents; more would run out of memory."""

SYNTHETIC = ("models", "load", "popularity", "pattern", "agents", "think_secs", "hours", "requests")
"""Options of synthetic traffic, which have no effect with a trace."""


class Number(click.FloatRange):
    """A number in a range; NaN is rejected."""

    def convert(
        self, value: Any, param: click.Parameter | None, ctx: click.Context | None
    ) -> float:
        number: float = super().convert(value, param, ctx)
        if math.isnan(number):
            self.fail(f"{value!r} is not a number.", param, ctx)
        return number


SECONDS = Number(0, LONGEST_S)
COUNT = click.IntRange(1, MAX_COUNT)
CSV_FILE = click.Path(path_type=Path, exists=True, dir_okay=False)


@click.command("simulate")
@policies_option
@click.option("--models", default=4, show_default=True, type=COUNT)
@click.option(
    "--switch-secs", default=10.0, show_default=True, type=SECONDS, help="Hook time of a switch."
)
@click.option(
    "--switch-costs",
    type=CSV_FILE,
    help="CSV file of hook times (source, target, seconds; source may be empty).",
)
@click.option(
    "--load",
    default=0.5,
    show_default=True,
    type=Number(0.001, 1000),
    help="Demand as a multiple of the GPU's capacity.",
)
@click.option(
    "--slots",
    default=8,
    show_default=True,
    type=COUNT,
    help="Requests a backend serves at once.",
)
@click.option(
    "--sharing", is_flag=True, help="Run all requests at once, more slowly the more there are."
)
@click.option(
    "--service-secs",
    default=8.0,
    show_default=True,
    type=Number(0.001, LONGEST_S),
    help="Mean service time of a request.",
)
@click.option("--max-in-flight", type=COUNT, help="Limit on requests in flight per model.")
@click.option(
    "--preserves-in-flight", is_flag=True, help="Freeze requests instead of draining them."
)
@click.option(
    "--failing-wakes",
    default=0.0,
    show_default=True,
    type=Number(0, 1, max_open=True),
    help="Share of wakes that fail.",
)
@click.option(
    "--popularity", type=click.Choice(["zipf", "one-hot"]), default="zipf", show_default=True
)
@click.option(
    "--pattern",
    type=click.Choice(["poisson", "bursty", "closed"]),
    default="poisson",
    show_default=True,
    help="Arrivals of requests; closed: agents that wait for each answer, then think.",
)
@click.option(
    "--agents",
    default=12,
    show_default=True,
    type=COUNT,
    help="Number of agents in the closed pattern.",
)
@click.option(
    "--think-secs",
    default=20.0,
    show_default=True,
    type=SECONDS,
    help="Mean think time of an agent.",
)
@click.option(
    "--hours",
    default=6.0,
    show_default=True,
    type=Number(0, MAX_COUNT, min_open=True),
    help="Duration of the closed pattern.",
)
@click.option("--trace", type=CSV_FILE, help="Replay the requests of a CSV file.")
@click.option("--requests", default=20_000, show_default=True, type=click.IntRange(1))
@click.option(
    "--max-wait-secs",
    default=300.0,
    show_default=True,
    type=SECONDS,
    help="Bound on waits that the policies aim for.",
)
@click.option(
    "--min-active-secs",
    default=0.0,
    show_default=True,
    type=SECONDS,
    help="Shortest time that a model stays awake.",
)
@click.option("--seed", default=0, show_default=True)
@plot_option
@click.pass_context
def simulate_command(
    context: click.Context, /, policies: list[str], plot_to: Path | None, **options: Any
) -> None:
    """Compare policies on synthetic traffic, or on a trace (CSV: arrival_s, model, service_s).

    A wait is the total wait of a request, in llmux's line and inside its backend, in seconds.
    """
    _check_together(context, options)
    models = [str(index) for index in range(options["models"])]
    try:
        if options["trace"] is not None:
            options["trace"] = read_trace(options["trace"], work_s=options["service_secs"])
            models = sorted({arrival.model for arrival in options["trace"]})
        costs = read_costs(options["switch_costs"], models) if options["switch_costs"] else {}
    except (OSError, ValueError) as error:
        raise click.ClickException(str(error)) from None
    options.update(models=models, switch_costs=costs)
    rows = []
    outcomes = {}
    for name in policies:
        outcome = outcomes[name] = _run(name, **options)
        rows.append(row(name, outcome.waits(), outcome))
    click.echo(render(rows))
    for name, outcome in outcomes.items():
        if outcome.failed:
            click.echo(f"{name}: failed wakes refused {outcome.failed} more requests")
    plot_if_asked(outcomes, plot_to)


def _check_together(context: click.Context, options: dict[str, Any]) -> None:
    """Reject combinations of options in which one has no effect or a wrong one."""
    if options["trace"] is not None:
        given = click.core.ParameterSource.COMMANDLINE
        names = [name for name in SYNTHETIC if context.get_parameter_source(name) is given]
        if names:
            flags = ", ".join("--" + name.replace("_", "-") for name in names)
            raise click.UsageError(f"--trace provides the traffic: leave out {flags}")
    elif options["pattern"] == "closed" and options["failing_wakes"]:
        raise click.UsageError(
            "--failing-wakes does not go with --pattern closed: agents with a failed request stop"
        )


def _run(name: str, **options: Any) -> Outcome:
    rng = random.Random(options["seed"])  # noqa: S311
    work = exponential(options["service_secs"])
    slots, models, costs = options["slots"], options["models"], options["switch_costs"]
    shares = (zipf if options["popularity"] == "zipf" else one_hot)(len(models))
    arrivals: Iterator[Arrival] | Sequence[Arrival]
    follow = None
    until = math.inf
    length = options["requests"]
    if options["trace"] is not None:
        arrivals, length = options["trace"], len(options["trace"])
    elif options["pattern"] == "closed":
        agents = Closed(options["agents"], shares, exponential(options["think_secs"]), work, rng)
        arrivals, follow, until = agents.first(), agents.follow, 3600 * options["hours"]
    else:
        arrive = poisson if options["pattern"] == "poisson" else bursty
        rate = options["load"] * slots / options["service_secs"]
        arrivals = arrive(shares, rate, work, length, rng)
    config = PolicyConfig(
        name=name,
        max_wait_secs=options["max_wait_secs"],
        min_active_secs=options["min_active_secs"],
    )
    setup = Setup(
        models=models,
        cost=lambda source, target: costs.get((source, target), options["switch_secs"]),
        server=lambda _model: (
            Sharing(lambda busy: min(1.0, slots / busy)) if options["sharing"] else Slots(slots)
        ),
        policy=partial(policy_from, config),
        max_in_flight=options["max_in_flight"],
        preserves_in_flight=options["preserves_in_flight"],
        failing_wakes=options["failing_wakes"],
    )
    with progress_bar(name, length) as note:
        seed = options["seed"]
        return simulate(setup, arrivals, follow=follow, until=until, seed=seed, progress=note)
