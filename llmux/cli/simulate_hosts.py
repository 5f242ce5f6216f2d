"""`llmux simulate --hosts`: ways to choose among several hosts, compared."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import click

from llmux.cli.comparing import progress_bar
from llmux.cli.fleets import Fleet, Times, setup_of, shared_setup_of
from llmux.cli.numbers import COUNT, SECONDS
from llmux.cli.traffic import rate_of, shares_of, traffic_of
from llmux.fleet import Demand, homes
from llmux.policy import Policy
from llmux.simulate.arrivals import LONGEST_S, Arrival
from llmux.simulate.expecting import Seeing
from llmux.simulate.fleet import Fault, FleetOutcome, simulate_fleet
from llmux.simulate.fleet_hosts import HostSetup
from llmux.simulate.outcome import Outcome
from llmux.simulate.report import render, row
from llmux.simulate.routing import ROUTERS, Routing

OF_HOSTS = ("router", "pickers", "views_secs", "turning", "faults")
"""Options that have no effect with one host."""


F = TypeVar("F", bound=Callable[..., object])


def hosts_options(command: F) -> F:
    """Add the options of several hosts to a command."""
    for option in reversed(_options()):
        command = option(command)
    return command


def _options() -> list[Callable[[F], F]]:
    return [
        click.option("--hosts", default=1, show_default=True, type=COUNT,
                     help="Number of hosts, each with all models; compares routers."),
        click.option("--router", default="round-robin,fixed-homes,expected-wait", show_default=True,
                     callback=parse_routers, help=f"Routers to compare, of: {', '.join(ROUTERS)}."),
        click.option("--pickers", default=1, show_default=True, type=COUNT,
                     help="Number of pickers, for expected-wait."),
        click.option("--views-secs", default=1.0, show_default=True, type=SECONDS,
                     help="Interval at which hosts say what they expect; 0: at each request."),
        click.option("--turning", is_flag=True,
                     help="Half way, the least wanted model becomes the most wanted, and so on."),
        click.option("--fault", "faults", multiple=True, metavar="HOST,AT,DOWN[,FROZEN]",
                     callback=parse_faults,
                     help="A host (0, 1, ...) that dies AT so many seconds, and starts again after "
                          "DOWN; before that, it hangs for FROZEN."),
    ]  # fmt: skip


def parse_routers(_context: click.Context, _option: click.Parameter, value: str) -> list[str]:
    """Return the names in a list like `round-robin,expected-wait`."""
    names = [name.strip() for name in value.split(",") if name.strip()]
    for name in names:
        if name not in ROUTERS:
            raise click.BadParameter(f"unknown router {name!r} (one of: {', '.join(ROUTERS)})")
    if not names:
        raise click.BadParameter(f"names none (of: {', '.join(ROUTERS)})")
    return names


def parse_faults(
    _context: click.Context, _option: click.Parameter, values: Sequence[str]
) -> list[Fault]:
    """Return faults given as `HOST,AT,DOWN` or `HOST,AT,DOWN,FROZEN`."""
    return [_fault(value) for value in values]


def _fault(value: str) -> Fault:
    parts = value.split(",")
    try:
        host, times = int(parts[0]), [float(part) for part in parts[1:]]
    except ValueError:
        host, times = -1, []
    if host < 0 or len(times) not in {2, 3} or not all(0 <= s <= LONGEST_S for s in times):
        raise click.BadParameter(f"{value!r} is no HOST,AT,DOWN or HOST,AT,DOWN,FROZEN: 0,300,20")
    return Fault(host, *times)


def check_faults(faults: Iterable[Fault], hosts: int) -> None:
    """Reject faults of hosts that there are not, or of one that is down already."""
    free_at: dict[int, float] = {}
    for fault in sorted(faults, key=lambda each: each.at):
        if fault.host >= hosts:
            raise click.UsageError(f"--fault: there is no host {fault.host}, only 0 to {hosts - 1}")
        if fault.at < free_at.get(fault.host, 0.0):
            raise click.UsageError(f"--fault: host {fault.host} is down already at {fault.at:g} s")
        free_at[fault.host] = fault.at + fault.frozen_s + fault.down_s


def turned(arrivals: Iterable[Arrival], count: int, models: Sequence[str]) -> Iterator[Arrival]:
    """Yield arrivals whose models change places after half of them: the last becomes the first."""
    swapped = dict(zip(models, reversed(models), strict=True))
    for number, arrival in enumerate(arrivals):
        model = arrival.model
        yield arrival._replace(model=model if number < count // 2 else swapped[model])


@dataclass(frozen=True, kw_only=True)
class Hosts:
    """Hosts that are alike.

    Attributes:
        count: How many.
        setup: Creates one.
        models: Their models.
        shares: The models' shares of the requests at the beginning.
        per_second: Requests per second, at all hosts.
        service_s: Mean time of a request.
        switch_s: Hook time of a switch.
        slots: Requests that a backend serves at once.
    """

    count: int
    setup: Callable[[], HostSetup]
    models: Sequence[str]
    shares: Sequence[float]
    per_second: float
    service_s: float
    switch_s: float
    slots: int

    def homes(self) -> dict[str, int]:
        """Return a host for each model."""
        demands = {
            model: Demand(
                per_second=share * self.per_second,
                latency_s=self.service_s,
                cost_s=self.switch_s,
                slots=self.slots,
            )
            for model, share in zip(self.models, self.shares, strict=True)
        }
        hosts = {str(index): self.models for index in range(self.count)}
        return {model: int(host) for model, host in homes(demands, hosts).items()}

    def run(
        self,
        router: str,
        arrivals: Iterator[Arrival],
        *,
        views_s: float,
        pickers: int,
        faults: Sequence[Fault],
        seed: int,
        progress: Callable[[int], object],
    ) -> FleetOutcome:
        """Simulate them behind a router; see the options of `llmux simulate`."""
        routing = Routing(homes=self.homes(), seeing=Seeing(views_s), pickers=pickers, seed=seed)
        setups = [self.setup() for _ in range(self.count)]
        made = ROUTERS[router](routing)
        return simulate_fleet(setups, arrivals, made, faults=faults, seed=seed, progress=progress)


def row_of(router: str, outcome: FleetOutcome) -> list[str]:
    """Return a row of the table: that of all hosts together."""
    return row(router, outcome.waits(), merged(outcome.parts))


def merged(parts: Sequence[Outcome]) -> Outcome:
    """Return the outcome of hosts that have the same models, as if they were one."""
    whole = Outcome(parts[0].names)
    for part in parts:
        for name in ("models", "arrived_at", "admitted_at", "ended_at", "work_s", "frozen_s"):
            getattr(whole, name).extend(getattr(part, name))
        whole.switches += part.switches
        whole.failed += part.failed
        for what, seconds in part.seconds.items():
            whole.seconds[what] = whole.seconds.get(what, 0.0) + seconds
    return whole


def losses(router: str, outcome: FleetOutcome) -> list[str]:
    """Return lines on requests that were not simply answered."""
    lines = []
    if outcome.cut or outcome.resent:
        sent = f"sent {outcome.resent} waiting requests elsewhere"
        lines.append(f"{router}: hosts that died cut {outcome.cut} requests, and {sent}")
    if outcome.refused:
        lines.append(f"{router}: no host took {outcome.refused} requests")
    return lines


def compare_routers(
    fleet: Fleet, times: Times, policy: Callable[[], Policy], options: Mapping[str, Any]
) -> None:
    """Print a table of routers in front of several hosts, under one policy."""
    shared = fleet.shared
    hosts = Hosts(
        count=options["hosts"],
        setup=lambda: (
            setup_of(fleet, times, policy)
            if shared is None
            else shared_setup_of(fleet, shared, times, policy)
        ),
        models=fleet.models,
        shares=shares_of(fleet, options),
        per_second=rate_of(options),
        service_s=options["service_secs"],
        switch_s=options["switch_secs"],
        slots=options["slots"],
    )
    rows, notes = [], []
    for router in options["router"]:
        traffic = traffic_of(fleet, options)
        arrivals = iter(traffic.arrivals)
        if options["turning"]:
            arrivals = turned(arrivals, traffic.length, fleet.models)
        with progress_bar(router, traffic.length) as note:
            outcome = hosts.run(
                router,
                arrivals,
                views_s=options["views_secs"],
                pickers=options["pickers"],
                faults=options["faults"],
                seed=options["seed"],
                progress=note,
            )
        rows.append(row_of(router, outcome))
        notes += losses(router, outcome)
    click.echo("\n".join([render(rows, first="router"), *notes]))
