"""Compare ways to choose among hosts, live: `python -m bench.fleet_live`.

A real Envoy stands in front of three real llmux. Their hooks take 2.3 s for a switch, and their
models are stand-ins with 8 slots. Each way gets the same requests at the same times, those that
`python -m bench.fleet --only live` simulates:

- round robin: Envoy's, among the hosts that have the model
- fixed homes: a priority for each host, by model; the homes are best for the shares at the start
- expected wait: `llmux pick`, with the config of Envoy that it prints
- 3 pickers: three of them, each with an Envoy of its own; requests come to one of the three at
  random

The ways of one fleet and seed run at the same time, so that a busy machine slows all of them.
Waits are from sending a request to its answer, less the model's work; "in line" is the part in the
lines of the hosts.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

import trio

from bench.fleet.systems import System, as_live
from bench.fleet_live.fleet import PICKERS, PORTS, Live, run_live
from bench.fleet_live.report import Key, report
from bench.machine import cpu_model, say
from bench.processes import free_ports

Found = dict[Key, Live]


async def run_ways(system: System, ways: Sequence[str], requests: int | None) -> Found:
    """Run all ways at the same time."""
    found: Found = {}
    arrivals = system.arrivals()[:requests]
    ports = free_ports(PORTS * len(ways))

    async def run(number: int, way: str, folder: Path) -> None:
        await trio.Path(folder).mkdir()
        own = ports[number * PORTS : (number + 1) * PORTS]
        found[Key(system.name, system.seed, way)] = await run_live(
            folder, system, way, arrivals, own
        )

    with tempfile.TemporaryDirectory() as name:
        async with trio.open_nursery() as nursery:
            for number, way in enumerate(ways):
                nursery.start_soon(run, number, way, Path(name) / f"way{number}")
    return {key: found[key] for key in sorted(found, key=lambda key: ways.index(key.way))}


def main(arguments: Sequence[str] | None = None) -> None:
    options = parse_arguments(arguments)
    found: Found = {}
    for seed in options.seeds:
        for system in as_live(seed):
            if options.fleets and system.name not in options.fleets:
                continue
            say(f"{system.name}, seed {seed}")
            found |= trio.run(run_ways, system, options.ways, options.requests)
            if options.save:
                save(options.save, found)
    print(report(found))
    print(f"\n{sys.version.split()[0]}, {cpu_model()}")


def save(path: Path, found: Found) -> None:
    rows = [{**key._asdict(), **asdict(live)} for key, live in found.items()]
    path.write_text(json.dumps(rows) + "\n")


def parse_arguments(arguments: Sequence[str] | None) -> argparse.Namespace:
    names = [system.name for system in as_live(1)]
    parser = argparse.ArgumentParser(
        prog="python -m bench.fleet_live",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--fleets", nargs="+", choices=names, metavar="FLEET",
                        help=f"of: {'; '.join(names)}")  # fmt: skip
    parser.add_argument("--ways", nargs="+", choices=tuple(PICKERS), default=list(PICKERS),
                        metavar="WAY", help=f"of: {'; '.join(PICKERS)}")  # fmt: skip
    parser.add_argument("--seeds", type=int, nargs="+", default=[1, 2, 3])
    parser.add_argument("--requests", type=int, help="only the first of each run: a first look")
    parser.add_argument("--save", type=Path, metavar="FILE", help="write every run as JSON")
    return parser.parse_args(arguments)


if __name__ == "__main__":
    main()
