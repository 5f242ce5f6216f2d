"""The live comparison of fleets: what it reports, its configs of Envoy, and a short run."""

from __future__ import annotations

from pathlib import Path

import pytest

from bench.fleet.systems import as_live
from bench.fleet_live import cost
from bench.fleet_live.__main__ import main
from bench.fleet_live.cost import Turn
from bench.fleet_live.fleet import Live
from bench.fleet_live.gateways import by_homes, round_robin
from bench.fleet_live.report import AIMS, Key, aims_table, fleets_table, runs_table
from bench.native import Load
from llmux.pick.config import EnvoyConfig, PickConfig
from tests.pick.stage import needs_envoy

STEADY, _, HOT, TURNING = (system.name for system in as_live(1))


def live(wait_s: float) -> Live:
    return Live([wait_s] * 4, [wait_s] * 4, switches=3, errors=0)


def test_ratios_are_of_all_seeds_together() -> None:
    found = {
        Key(STEADY, 1, "fixed homes"): live(1.0),
        Key(STEADY, 1, "expected wait"): live(1.4),
        Key(STEADY, 2, "fixed homes"): live(1.0),
        Key(STEADY, 2, "expected wait"): live(0.8),
    }
    (row,) = aims_table(found).splitlines()[2:]
    assert row.split()[-5:] == ["1.15", "1.10", "1.40", "0.80", "met"]
    assert fleets_table(found).splitlines()[-1].split() == ["expected", "wait", "3", "/", "1.10"]


@pytest.mark.parametrize(
    ("fleet", "most"),
    [(STEADY, 1.15), (HOT, 0.3), (TURNING, 0.4)],
    ids=["steady", "hot", "turning"],
)
def test_each_fleet_has_its_aim(fleet: str, most: float) -> None:
    system = next(system for system in as_live(1) if system.name == fleet)
    assert [aim.most for aim in AIMS if aim.to == "fixed homes" and aim.applies(system)] == [most]


def test_what_misses_its_aim_is_said() -> None:
    found = {Key(HOT, 1, "fixed homes"): live(1.0), Key(HOT, 1, "expected wait"): live(0.31)}
    assert aims_table(found).splitlines()[-1].endswith("SHORT")


def test_runs_stand_beside_simulated_ones() -> None:
    (row,) = runs_table({Key(STEADY, 1, "fixed homes"): live(1.0)}).splitlines()[2:]
    assert row.split()[-2:] == ["3", "0.041"]


def config() -> PickConfig:
    hosts = ("10.0.0.1:3000", "10.0.0.2:3000", "10.0.0.3:3000")
    homes = {"a": hosts, "b": hosts[2:]}
    return PickConfig(hosts=hosts, envoy=EnvoyConfig(homes=homes))


def test_without_a_picker_nothing_is_asked_of_one() -> None:
    manager = by_homes(config())["static_resources"]["listeners"][0]["filter_chains"][0]["filters"]
    assert "ext_proc" not in repr(manager)
    assert "'picker'" not in repr(manager)


def test_round_robin_is_among_the_hosts_that_have_the_model() -> None:
    having = {model: list(hosts) for model, hosts in config().envoy.homes.items()}
    made = round_robin(config(), having)["static_resources"]["clusters"]
    homes = [each for each in made if each["name"].startswith("homes-")]
    places = {each["name"]: each["load_assignment"]["endpoints"] for each in homes}
    assert {name: len(found) for name, found in places.items()} == {"homes-1": 1, "homes-2": 1}
    assert [len(found[0]["lb_endpoints"]) for found in places.values()] == [3, 1]


def test_cost_is_reported_by_process() -> None:
    load = Load(100, 0, 0, 0, 2.0, 500, 900, None, None, 20_000, 30_000)
    turn = Turn(load, {"llmux": 10_000, "Envoy": 5_000})
    found = {(way, work): [turn, turn] for way in ("direct", "Envoy") for work in cost.WORKLOADS}
    row = cost.report(found).splitlines()[-1]
    assert row.split() == [
        "Envoy",
        "50.00",
        "100",
        "50.00",
        "-",
        "500",
        "900",
        "20.00",
        "30.00",
        "1.00",
    ]


@pytest.mark.slow
@needs_envoy
def test_a_short_run(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    saved = tmp_path / "runs.json"
    main(["--fleets", STEADY, "--seeds", "1", "--requests", "8", "--save", str(saved)])
    rows = [line.split() for line in capsys.readouterr().out.splitlines() if "seed 1" in line]
    assert len(rows) == 4
    assert [row[-3] for row in rows] == ["0"] * 4  # errors
    assert saved.exists()
