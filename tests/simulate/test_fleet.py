"""Simulated fleets: the same requests, one order of time, hosts that die, and what pickers see."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence

import pytest
from click.testing import CliRunner

from llmux.cli.main import main
from llmux.config import PolicyConfig
from llmux.policy import load_policy
from llmux.policy.room import Memory, Needs
from llmux.simulate.arrivals import Arrival, exponential, poisson
from llmux.simulate.backends import Slots
from llmux.simulate.coresident import simulate_coresident
from llmux.simulate.engine import Setup, simulate
from llmux.simulate.expecting import ExpectedWait, Seeing
from llmux.simulate.fleet import Fault, FleetOutcome, Place, Router, simulate_fleet
from llmux.simulate.fleet_hosts import HostSetup, Look
from llmux.simulate.hosts import CoresidentSetup
from llmux.simulate.outcome import mean
from llmux.simulate.routers import BoundedHash, FixedHomes, Hash, RoundRobin
from llmux.simulate.routing import ROUTERS, Routing
from tests.simulate.test_shared_forecast import SIZES

SWITCH_S = 4.0


def setup(models: str = "abc", *, cold_s: float = 3.0) -> Setup:
    return Setup(
        models=list(models),
        cost=lambda source, _: SWITCH_S if source else cold_s,
        server=lambda _: Slots(4),
        policy=lambda: load_policy(PolicyConfig()),
        max_in_flight=4,
    )


def shared_setup() -> CoresidentSetup:
    return CoresidentSetup(
        memory=Memory(("gpu",), (80,), {name: Needs.of((size,)) for name, size in SIZES.items()}),
        wake_s=lambda _: 3.0,
        sleep_s=lambda _: 1.0,
        server=lambda _: Slots(4),
        policy=lambda: load_policy(PolicyConfig()),
    )


def traffic(models: str = "abc", count: int = 120, *, seed: int = 1) -> list[Arrival]:
    shares = [1 / len(models)] * len(models)
    drawn = poisson(shares, 1.5, exponential(1.0), count, random.Random(seed))
    return [each._replace(model=models[int(each.model)]) for each in drawn]


@pytest.mark.parametrize("router", ROUTERS)
def test_every_request_is_answered_and_a_run_can_be_repeated(router: str) -> None:
    def run() -> FleetOutcome:
        routing = Routing(homes={"a": 0, "b": 1, "c": 0}, pickers=2, seed=3)
        return simulate_fleet([setup(), setup()], traffic(), ROUTERS[router](routing))

    first, second = run(), run()
    assert (first.count, first.refused) == (120, 0)
    assert first.line_waits() == second.line_waits()


def test_a_fleet_of_one_is_a_simulation() -> None:
    alone = simulate(setup(), traffic())
    fleet = simulate_fleet([setup()], traffic(), RoundRobin())
    assert fleet.line_waits() == alone.line_waits()
    assert fleet.switches == alone.switches
    sharing = traffic("abcd")
    apart = simulate_coresident(shared_setup(), sharing)
    assert simulate_fleet([shared_setup()], sharing, RoundRobin()).waits() == apart.waits()


@pytest.mark.parametrize("setups", [[setup("abcd")] * 2, [shared_setup()] * 2], ids=["alone", "shared"])  # fmt: skip
def test_expected_waits_beat_turns(setups: Sequence[HostSetup]) -> None:
    expected = simulate_fleet(setups, traffic("abcd"), ExpectedWait())
    turns = simulate_fleet(setups, traffic("abcd"), RoundRobin())
    assert mean(expected.line_waits()) < 0.6 * mean(turns.line_waits())
    assert expected.switches < turns.switches


def test_models_that_only_some_hosts_have() -> None:
    setups = [setup("ab"), setup("bc")]
    for router in (RoundRobin(), Hash(), ExpectedWait()):
        assert simulate_fleet(setups, traffic(), router).count == 120
    assert simulate_fleet([setup("ab")], traffic(), Hash()).refused > 0


def test_a_bounded_hash_spares_a_full_host() -> None:
    places = [Place(index, setup(), random.Random(0)) for index in range(2)]
    home, other = Hash().order(places, "a", 0.0)
    for number in range(4):
        places[home].take(Arrival(0.1 * number, "a", 5.0))
    assert list(BoundedHash().order(places, "a", 1.0)) == [other, home]


# ---- Faults ----


@pytest.mark.parametrize(
    "router", [RoundRobin, lambda: FixedHomes({"a": 0, "b": 1, "c": 0}), ExpectedWait]
)
def test_what_waits_on_a_host_that_dies_is_answered_elsewhere(
    router: Callable[[], Router],
) -> None:
    fault = Fault(0, at=20.0, down_s=15.0)
    outcome = simulate_fleet([setup(), setup()], traffic(), router(), faults=[fault])
    assert outcome.count + outcome.cut == 120
    assert outcome.refused == 0
    assert len(outcome.parts) == 3


def test_the_time_on_a_host_that_died_counts() -> None:
    arrivals = [Arrival(0.0, "a", 1.0)]
    fault = Fault(0, at=2.0, down_s=1.0)
    router = FixedHomes({"a": 0})
    outcome = simulate_fleet([setup(), setup()], arrivals, router, faults=[fault])
    assert outcome.resent == 1
    assert outcome.line_waits() == [pytest.approx(2.0 + 3.0)]


def test_a_frozen_host_takes_requests_until_it_is_ended() -> None:
    arrivals = [Arrival(5.0, "a", 1.0), Arrival(6.0, "a", 1.0)]
    fault = Fault(0, at=4.0, frozen_s=10.0, down_s=1.0)
    router = FixedHomes({"a": 0})
    outcome = simulate_fleet([setup(), setup()], arrivals, router, faults=[fault])
    assert (outcome.resent, outcome.cut) == (2, 0)
    assert outcome.line_waits() == [pytest.approx(12.0), pytest.approx(11.0)]


def test_no_host_left() -> None:
    fault = Fault(0, at=1.0, down_s=100.0)
    outcome = simulate_fleet([setup()], [Arrival(5.0, "a", 1.0)], Hash(), faults=[fault])
    assert outcome.refused == 1


def test_a_picker_avoids_a_frozen_host_once_its_views_are_old() -> None:
    arrivals = [Arrival(0.5 * number, "a", 0.1) for number in range(60)]
    fault = Fault(0, at=5.0, frozen_s=25.0, down_s=1.0)
    blind = simulate_fleet([setup(), setup()], arrivals, FixedHomes({"a": 0}), faults=[fault])
    both = [Fault(host, at=5.0, frozen_s=25.0, down_s=1.0) for host in (0,)]
    seeing = simulate_fleet([setup(), setup()], arrivals, ExpectedWait(), faults=both)
    assert mean(seeing.line_waits()) < mean(blind.line_waits())


# ---- What hosts say ----


def test_a_look_is_a_copy_of_its_moment() -> None:
    place = Place(0, setup(), random.Random(0))
    place.take(Arrival(0.0, "a", 1.0))
    place.advance(10.0)
    place.take(Arrival(10.0, "a", 1.0))
    assert place.host is not None
    look = Look(place.host, "1", 10.0)
    there = look.outlook("a").models["a"]
    assert (there.awake, there.running, there.wait_secs) == (True, 1, 0.0)
    other = look.outlook("b").models["b"]
    assert other.wait_secs is not None
    assert other.wait_secs > 0
    place.advance(20.0)
    assert look.outlook("b").models["b"] == other
    assert look.outlook("a").models["b"].wait_secs is None, "forecasts are made when asked for"
    assert "nothing" not in look.outlook("nothing").models


def test_a_look_sees_a_switch_under_way() -> None:
    place = Place(0, setup(), random.Random(0))

    def look_after(at: float, model: str) -> tuple[int, float | None]:
        place.advance(at)
        place.take(Arrival(at, model, 1.0))
        place.advance(at + 1.0)
        assert place.host is not None
        found = Look(place.host, "1", at + 1.0).outlook(model).models[model]
        return found.waiting, found.wait_secs

    assert look_after(0.0, "a") == (1, 0.0), "nothing has been measured yet"
    look_after(50.0, "b")
    look_after(100.0, "a")
    waiting, wait_s = look_after(150.0, "b")
    assert waiting == 1
    assert wait_s == pytest.approx(SWITCH_S - 1.0)


def test_views_that_come_seldom_cost() -> None:
    def waits(seeing: Seeing) -> float:
        runs = [
            simulate_fleet([setup("abcd")] * 2, traffic("abcd", seed=seed), ExpectedWait(seeing))
            for seed in range(2)
        ]
        return mean([wait for run in runs for wait in run.line_waits()])

    assert waits(Seeing(0.0)) < waits(Seeing(20.0, at_changes=False))


# ---- The command ----


def simulated(*arguments: str) -> str:
    done = CliRunner().invoke(main, ["simulate", "--requests", "60", *arguments])
    return done.output


def test_the_command_compares_routers() -> None:
    lines = simulated("--hosts", "2", "--router", "hash,expected-wait", "--turning").splitlines()
    assert [line.split()[0] for line in lines] == ["router", "hash", "expected-wait"]


def test_the_command_says_what_died() -> None:
    printed = simulated("--hosts", "2", "--router", "round-robin", "--fault", "0,5,5")
    assert "round-robin: hosts that died cut " in printed


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--router", "hash"], "there is one host: give --hosts, or leave out --router"),
        (["--hosts", "2", "--router", "dice"], "unknown router 'dice' (one of: round-robin, "),
        (["--hosts", "2", "--router", ","], "names none (of: round-robin, "),
        (["--hosts", "2", "--pattern", "closed"], "--hosts does not go with --pattern closed"),
        (["--hosts", "2", "--fault", "0,x,1"], "'0,x,1' is no HOST,AT,DOWN"),
        (["--hosts", "2", "--fault", "2,1,1"], "there is no host 2, only 0 to 1"),
        (
            ["--hosts", "2", "--fault", "0,1,9", "--fault", "0,5,1"],
            "host 0 is down already at 5 s",
        ),
    ],
)
def test_mistakes(arguments: list[str], message: str) -> None:
    assert message in " ".join(simulated(*arguments).split())
