"""`llmux simulate`."""

from __future__ import annotations

import math
import sys
from collections.abc import Callable, Iterable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, TypedDict

import click
import msgspec

from llmux.cli.comparing import (
    plot_if_asked,
    plot_option,
    policies_option,
    policy_from,
    progress_bar,
)
from llmux.cli.fleets import (
    Fleet,
    Times,
    fleet_of,
    fleet_with_needs,
    setup_of,
    shared_setup_of,
)
from llmux.cli.numbers import COUNT, MAX_COUNT, SECONDS, Number, parse_needs
from llmux.cli.options import find_config
from llmux.cli.simulate_hosts import OF_HOSTS, check_faults, compare_routers, hosts_options
from llmux.cli.traffic import traffic_of
from llmux.config import PolicyConfig
from llmux.errors import ConfigError
from llmux.policy import Policy
from llmux.server.exits import EXIT_CONFIG, print_mistake
from llmux.simulate.arrivals import (
    LONGEST_S,
    read_costs,
    read_trace,
)
from llmux.simulate.coresident import Follow, simulate_coresident
from llmux.simulate.engine import simulate
from llmux.simulate.outcome import Outcome
from llmux.simulate.report import render, row
from llmux.switching.core import Traits

SYNTHETIC = ("models", "load", "popularity", "pattern", "agents", "think_secs", "hours", "requests")
"""Options of synthetic traffic, which have no effect with a trace."""


SHARED = ("memory", "sleep_secs", "overlapping_hooks", "busy", "contention")
"""Options of models that share memory, which have no effect without `--needs`."""

OF_CONFIG = (
    "models", "needs", "memory", "overlapping_hooks", "busy", "max_in_flight",
    "preserves_in_flight",
)  # fmt: skip
"""Options that a config replaces."""

SLEEP_SHARE = 0.25
"""Part of a switch that puts a model to sleep, unless said otherwise."""

GRAIN = 1024
"""Numbers of `--needs` are counted to this part of their unit."""


CSV_FILE = click.Path(path_type=Path, exists=True, dir_okay=False)


@click.command("simulate")
@click.option(
    "-c",
    "--config",
    type=click.Path(path_type=Path),
    help="Simulate the models of a config: their limits, and the memory that they share.",
)
@click.option("--group", help="Group of the config to simulate; the first by default.")
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
@click.option(
    "--needs",
    callback=parse_needs,
    help="Memory that each model needs, such as 60,40,20,4: as many are awake as fit.",
)
@click.option(
    "--memory",
    default=80.0,
    show_default=True,
    type=Number(0, MAX_COUNT, min_open=True),
    help="Memory that there is, in the unit of --needs.",
)
@click.option(
    "--sleep-secs",
    type=SECONDS,
    help="Part of --switch-secs that puts a model to sleep, with --needs.  [default: a quarter]",
)
@click.option("--overlapping-hooks", is_flag=True, help="With --needs, let hooks overlap.")
@click.option(
    "--busy", type=COUNT, help="With --needs, limit on models that serve requests at once."
)
@click.option("--contention", is_flag=True, help="With --needs, let all models share the --slots.")
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
@hosts_options
@plot_option
@click.pass_context
def simulate_command(
    context: click.Context, /, policies: list[str], plot_to: Path | None, **options: Any
) -> None:
    """Compare policies on synthetic traffic, or on a trace (CSV: arrival_s, model, service_s).

    One model is awake at a time; with --needs, as many as fit into --memory; with -c, as the
    config says.

    With --hosts, routers in front of so many such machines are compared instead, under one policy.

    A wait is the total wait of a request, in llmux's line and inside its backend, in seconds.
    """
    _check_together(context, options)
    try:
        fleet = _fleet(options)
        path = options["switch_costs"]
        options["switch_costs"] = read_costs(path, fleet.models) if path else {}
    except ConfigError as error:
        print_mistake(error)
        sys.exit(EXIT_CONFIG)
    except (OSError, ValueError) as error:
        raise click.ClickException(str(error)) from None
    if options["hosts"] > 1:
        compare_routers(fleet, _times(options), _policy(policies[0], options), options)
        return
    rows = []
    outcomes = {}
    for name in policies:
        outcome = outcomes[name] = _run(name, fleet, **options)
        rows.append(row(name, outcome.waits(), outcome))
    click.echo(render(rows))
    for name, outcome in outcomes.items():
        if outcome.failed:
            click.echo(f"{name}: failed wakes refused {outcome.failed} more requests")
    plot_if_asked(outcomes, plot_to)


def _fleet(options: dict[str, Any]) -> Fleet:
    """Return the models, and replace the name of a trace by its requests.

    Raises:
        OSError: The trace cannot be read.
        ValueError: It is no trace, or the needs do not go with the models.
    """
    if options["config"] is not None:
        return _fleet_of_config(options)
    needs = options["needs"]
    models = [str(index) for index in range(options["models"] if needs is None else len(needs))]
    if options["trace"] is not None:
        options["trace"] = read_trace(options["trace"], work_s=options["service_secs"])
        models = sorted({arrival.model for arrival in options["trace"]})
    limit = options["max_in_flight"]
    traits = Traits(math.inf if limit is None else limit, options["preserves_in_flight"])
    if needs is None:
        return Fleet(models, dict.fromkeys(models, traits))
    units = [round(GRAIN * need) for need in needs]
    try:
        fleet = fleet_with_needs(models, units, round(GRAIN * options["memory"]), traits)
    except ValueError as error:
        raise ValueError(f"--needs: {error}") from None
    assert fleet.shared is not None
    limits = {"overlapping_hooks": options["overlapping_hooks"], "busy": options["busy"]}
    return replace(fleet, shared=msgspec.structs.replace(fleet.shared, **limits))


def _fleet_of_config(options: dict[str, Any]) -> Fleet:
    """Return the models of a config; raises ValueError, also if a trace names others."""
    fleet = fleet_of(find_config(options["config"]), options["group"])
    if options["trace"] is not None:
        options["trace"] = read_trace(options["trace"], work_s=options["service_secs"])
        odd = sorted({arrival.model for arrival in options["trace"]} - {*fleet.models})
        if odd:
            raise ValueError(f"--trace: {odd[0]!r} is none of: {', '.join(fleet.models)}")
    if fleet.shared is not None and options["switch_costs"]:
        raise ValueError("--switch-costs is for pairs of models, and these share memory")
    return fleet


def _check_together(context: click.Context, options: dict[str, Any]) -> None:
    """Reject combinations of options in which one has no effect or a wrong one."""
    if options["trace"] is not None:
        if flags := _given(context, SYNTHETIC):
            raise click.UsageError(f"--trace provides the traffic: leave out {flags}")
    elif options["pattern"] == "closed" and options["failing_wakes"]:
        raise click.UsageError(
            "--failing-wakes does not go with --pattern closed: agents with a failed request stop"
        )
    _check_hosts(context, options)
    if options["contention"] and options["sharing"]:
        raise click.UsageError("--contention has all models share the slots: leave out --sharing")
    if (options["sleep_secs"] or 0) > options["switch_secs"]:
        raise click.UsageError("--sleep-secs is a part of --switch-secs, and cannot be more")
    _check_models(context, options)


def _check_hosts(context: click.Context, options: dict[str, Any]) -> None:
    """Reject options that have no effect with one host, or with several."""
    if options["hosts"] == 1:
        if flags := _given(context, OF_HOSTS):
            raise click.UsageError(f"there is one host: give --hosts, or leave out {flags}")
        return
    if options["pattern"] == "closed":
        raise click.UsageError("--hosts does not go with --pattern closed")
    if flags := _given(context, ("plot_to",)):
        raise click.UsageError("--hosts compares routers, and plots none: leave out --plot")
    check_faults(options["faults"], options["hosts"])


def _check_models(context: click.Context, options: dict[str, Any]) -> None:
    """Reject options that say twice, or for nothing, which models there are."""
    if options["config"] is not None:
        if flags := _given(context, OF_CONFIG):
            raise click.UsageError(f"--config says what the models need: leave out {flags}")
    elif options["group"] is not None:
        raise click.UsageError("--group is of a config: name one with -c")
    elif options["needs"] is None:
        if flags := _given(context, SHARED):
            raise click.UsageError(f"without --needs, one model is awake: leave out {flags}")
    elif flags := _given(context, ("models", "switch_costs")):
        raise click.UsageError(f"--needs has a number for each model: leave out {flags}")


def _given(context: click.Context, names: Iterable[str]) -> str:
    """Return those of these options that were given, as on the command line."""
    source = click.core.ParameterSource.COMMANDLINE
    found = [name for name in names if context.get_parameter_source(name) is source]
    return ", ".join("--" + name.replace("_", "-") for name in found)


def _run(name: str, fleet: Fleet, **options: Any) -> Outcome:
    traffic = traffic_of(fleet, options)
    policy, times = _policy(name, options), _times(options)
    with progress_bar(name, traffic.length) as note:
        how = Run(follow=traffic.follow, until=traffic.until, seed=options["seed"], progress=note)
        if fleet.shared is None:
            return simulate(setup_of(fleet, times, policy), traffic.arrivals, **how)
        return simulate_coresident(
            shared_setup_of(fleet, fleet.shared, times, policy), traffic.arrivals, **how
        )


def _policy(name: str, options: dict[str, Any]) -> Callable[[], Policy]:
    config = PolicyConfig(
        name=name,
        max_wait_secs=options["max_wait_secs"],
        min_active_secs=options["min_active_secs"],
    )
    return partial(policy_from, config)


class Run(TypedDict):
    """What both simulators take."""

    follow: Follow | None
    until: float
    seed: int
    progress: Callable[[int], None]


def _times(options: dict[str, Any]) -> Times:
    switch_s, costs = options["switch_secs"], options["switch_costs"]
    sleep_s = SLEEP_SHARE * switch_s if options["sleep_secs"] is None else options["sleep_secs"]
    return Times(
        cost=lambda source, target: costs.get((source, target), switch_s),
        wake_s=switch_s - sleep_s,
        sleep_s=sleep_s,
        slots=options["slots"],
        is_sharing=options["sharing"],
        is_contended=options["contention"],
        failing_wakes=options["failing_wakes"],
    )
