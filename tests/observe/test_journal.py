"""What is written down, and that a replay of it repeats what happened."""

from __future__ import annotations

import os
import pty
import random
import resource
import subprocess
import sys
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import msgspec
import pytest
import trio
from click.testing import CliRunner
from msgspec.structs import replace
from trio.testing import MockClock, wait_all_tasks_blocked

from llmux.cli.main import main
from llmux.config import parse_config
from llmux.observe import journal
from llmux.observe.journal import Entry, Journal, Request, Started, Switch, read_journal
from llmux.policy import POLICIES
from llmux.server.settings_record import started as what_started
from llmux.simulate import replay, simulate
from llmux.simulate.outcome import mean
from llmux.simulate.recordings import load_recordings
from llmux.simulate.replay import admitted
from llmux.switching.model import SERVES, Traits
from tests.fakes import FakeHooks, Rig, journal_entry

MODELS = ("a", "b", "c")
HOOKS = {(model, hook): 2.0 for model in MODELS for hook in ("sleep", "wake")}


def started(policy: str, freezes: Sequence[str] = ()) -> Started:
    return Started(
        at=0,
        policy=policy,
        groups=dict.fromkeys(MODELS, "default"),
        slots={},
        max_wait_s=300,
        min_active_s=0,
        freezes=freezes,
    )


async def record(path: Path, policy: str, requests: int = 300, freezes: Sequence[str] = ()) -> None:
    """Random traffic for three models on the virtual clock, written to a journal."""
    kept = Journal(path)
    kept.add(lambda _: started(policy, freezes))
    rng = random.Random(7)
    traits = {name: Traits(preserves_in_flight=True) for name in freezes}
    hooks = FakeHooks(seconds=HOOKS)
    rig = Rig(MODELS, hooks=hooks, policy=POLICIES[policy], journal=kept, traits=traits)

    async def ask(model: str, seconds: float) -> None:
        """As `Rig.ask`, but it stands still while its model is frozen."""
        async with rig.switcher.serving(model) as serving, hooks.request(model):
            while seconds > 0:
                await trio.sleep(0.25)
                seconds -= 0.25 * (rig.switcher.models[model].phase in SERVES)
        kept.add(journal_entry(model, serving))

    async with trio.open_nursery() as nursery:
        nursery.start_soon(kept.run)
        async with rig.running() as asking:
            for _ in range(requests):
                await trio.sleep(rng.expovariate(0.2 if freezes else 0.5))
                model = rng.choices(MODELS, (4, 2, 1))[0]
                seconds = rng.expovariate(0.03 if freezes else 0.25)
                asking.start_soon(ask if freezes else rig.ask, model, seconds)
        nursery.cancel_scope.cancel()


@pytest.mark.parametrize("policy", sorted(POLICIES))
async def test_a_replay_with_the_policy_that_was_used_repeats_what_happened(
    policy: str, tmp_path: Path, autojump_clock: MockClock
) -> None:
    await record(tmp_path / "journal.jsonl", policy)
    recording = load_recordings([tmp_path / "journal.jsonl"])["default"]
    assert len(recording.requests) == 300
    observed = mean(recording.held_waits())
    replayed = simulate(recording.setup(policy), recording.arrivals())
    assert replayed.count == 300
    assert mean(replayed.held_waits()) == pytest.approx(observed, rel=0.1)
    switches = [switch for switch in recording.switches if switch.result == "success"]
    assert replayed.switches == pytest.approx(len(switches), rel=0.1)


@pytest.mark.parametrize("freezes", [pytest.param(MODELS, marks=pytest.mark.slow), ("a",)])
async def test_a_replay_knows_of_frozen_requests(
    freezes: Sequence[str], tmp_path: Path, autojump_clock: MockClock
) -> None:
    await record(tmp_path / "journal.jsonl", "fifo", requests=200, freezes=freezes)
    recording = load_recordings([tmp_path / "journal.jsonl"])["default"]
    observed = mean(recording.held_waits())
    assert observed > 1.1 * mean([admitted(one) - one.arrived for one in recording.requests])
    replayed = simulate(recording.setup("fifo"), recording.arrivals())
    assert mean(replayed.held_waits()) == pytest.approx(observed, rel=0.1)


async def test_what_a_journal_says_of_a_switch_and_its_request(
    tmp_path: Path, autojump_clock: MockClock
) -> None:
    path = tmp_path / "journal.jsonl"
    kept = Journal(path)
    rig = Rig(("a", "b"), hooks=FakeHooks(seconds=HOOKS), journal=kept)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(kept.run)
        async with rig.running() as asking:
            asking.start_soon(rig.ask, "a", 10)
            await trio.sleep(5)
            await rig.ask("b", 1)
        nursery.cancel_scope.cancel()
    first, second = (entry for entry in read_journal(path) if isinstance(entry, Switch))
    assert (first.source, first.target, first.result) == (None, "a", "success")
    assert (second.source, second.target) == ("a", "b")
    assert second.drain_s == pytest.approx(7)
    assert second.hooks_s == pytest.approx(4)
    assert second.ended - second.started == pytest.approx(11)
    assert "oldest request waits" in second.reason
    asked_a, asked_b = (entry for entry in read_journal(path) if isinstance(entry, Request))
    assert asked_b.admitted is not None
    assert asked_b.admitted - asked_b.arrived == pytest.approx(11)
    assert asked_b.ended - asked_b.admitted == pytest.approx(1)
    assert asked_a.company == 1


async def test_a_journal_that_is_too_long_begins_anew(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, autojump_clock: MockClock
) -> None:
    monkeypatch.setattr(journal, "MAX_BYTES", 1000)
    path = tmp_path / "journal.jsonl"
    kept = Journal(path)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(kept.run)
        for _ in range(20):
            kept.add(lambda _: started("fifo"))
            await trio.sleep(1)
        nursery.cancel_scope.cancel()
    assert path.stat().st_size <= 1000
    assert list(read_journal(tmp_path / "journal.1.jsonl"))


async def test_a_disk_that_is_full_costs_entries_and_nothing_else(
    tmp_path: Path, autojump_clock: MockClock, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "journal.jsonl").mkdir()  # cannot be written to either
    kept = Journal(tmp_path / "journal.jsonl")
    async with trio.open_nursery() as nursery:
        nursery.start_soon(kept.run)
        for _ in range(3):
            kept.add(lambda _: started("fifo"))
            await trio.sleep(1)
        nursery.cancel_scope.cancel()


REQUEST = Request("a", arrived=10, ended=12, status=200, admitted=11, company=1)
CONFIG = """
state_dir: state
models:
  a: {port: 8001, wake: up, sleep: down, alive: ping}
"""

LINE = msgspec.json.encode(REQUEST) + b"\n"


def written(path: Path, *entries: Entry) -> Path:
    path.write_bytes(msgspec.json.Encoder().encode_lines(entries))
    return path


@pytest.mark.parametrize(
    "bad",
    [
        b"\n",
        bytes(4096) + b"\n",
        b'{"event":"req\n',
        LINE[:-1] + bytes(10) + b"\n",
        b'{"event":"dance"}\n',
        LINE.replace(b'"a"', b'"\xff"'),
        b"nonsense\n",
    ],
)
def test_a_bad_line_costs_no_other(bad: bytes, tmp_path: Path) -> None:
    path = written(tmp_path / "journal.jsonl", started("fifo"))
    with path.open("ab") as file:
        file.write(LINE + bad + LINE + bad[:-1])
    skipped: list[int] = []
    entries = list(read_journal(path, lambda number, _: skipped.append(number)))
    assert [type(entry) for entry in entries] == [Started, Request, Request]
    assert skipped == ([3] if bad == b"\n" else [3, 5])
    done = CliRunner().invoke(main, ["replay", str(path), "--policy", "fifo"])
    assert done.exit_code == 0, done.output
    assert done.stderr.startswith(f"{path}: lines skipped: {len(skipped)}; line 3: ")
    assert done.stdout.startswith("group default: 2 requests")


async def test_replay_prints_what_happened_and_what_would_have(
    tmp_path: Path, autojump_clock: MockClock
) -> None:
    path = tmp_path / "journal.jsonl"
    await record(path, "fifo", requests=60)
    await wait_all_tasks_blocked()
    done = CliRunner().invoke(main, ["replay", str(path), "--policy", "fifo,adaptive"])
    assert done.exit_code == 0, done.output
    names = [line.split()[0] for line in done.output.splitlines()]
    assert names == ["group", "policy", "observed", "fifo", "adaptive"]


async def test_replay_finds_the_journal_of_the_config(
    tmp_path: Path, autojump_clock: MockClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = tmp_path / "llmux.yaml"
    config.write_text(CONFIG)
    state = tmp_path / "state"
    replay = ["replay", "--policy", "fifo"]
    named = [*replay, "-c", str(config)]
    # Before llmux has written one:
    done = CliRunner().invoke(main, named)
    assert (done.exit_code, done.stdout) == (1, "")
    assert done.stderr == f"Error: no journal.jsonl in {state} (llmux writes it while it serves)\n"
    config.write_text(CONFIG + "journal: false")
    done = CliRunner().invoke(main, named)
    assert f"({config} says `journal: false`)" in done.stderr
    # One that is in use, and an older one:
    state.mkdir()
    await record(state / "journal.jsonl", "fifo", requests=20)
    await wait_all_tasks_blocked()
    (state / "journal.1.jsonl").write_bytes((state / "journal.jsonl").read_bytes())
    whole = CliRunner().invoke(main, named)
    assert whole.exit_code == 0, whole.output
    assert whole.stderr == f"journal {state}/journal.1.jsonl\njournal {state}/journal.jsonl\n"
    assert whole.stdout.startswith("group default: 40 requests")
    # The config is found as by the other commands.
    monkeypatch.chdir(tmp_path)
    assert CliRunner().invoke(main, replay).stdout == whole.stdout
    assert CliRunner().invoke(main, ["-c", str(config), *replay]).stdout == whole.stdout
    monkeypatch.chdir("/")
    monkeypatch.setenv("LLMUX_CONFIG", str(config))
    assert CliRunner().invoke(main, replay).stdout == whole.stdout


def test_replay_takes_journals_or_a_config(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "journal.jsonl"
    path.touch()
    done = CliRunner().invoke(main, ["replay", str(path), "-c", str(path)])
    assert done.exit_code == 2
    assert "give journals or a config (-c), not both" in done.stderr
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("LLMUX_CONFIG", raising=False)
    done = CliRunner().invoke(main, ["replay"])
    assert done.exit_code == 2
    assert done.stderr.startswith("no config: ")


@pytest.mark.parametrize(
    ("content", "message"),
    [("", "the journal says of no request"), ("{}\n", "line 1:"), ("nonsense\n", "line 1:")],
)
def test_what_is_no_journal_is_a_mistake_in_one_line(
    content: str, message: str, tmp_path: Path
) -> None:
    path = tmp_path / "journal.jsonl"
    path.write_text(content)
    done = CliRunner().invoke(main, ["replay", str(path)])
    assert done.exit_code == 1
    assert message in done.output
    assert "Traceback" not in done.output


def test_simulate_prints_a_table() -> None:
    for more in (
        [],
        ["--sharing"],
        ["--pattern", "closed", "--hours", "1"],
        ["--pattern", "bursty"],
    ):
        done = CliRunner().invoke(main, ["simulate", "--requests", "300", *more])
        assert done.exit_code == 0, done.output
        names = [line.split()[0] for line in done.output.splitlines()]
        assert names == ["policy", "fifo", "exhaustive", "adaptive"]


SHORT = ["simulate", "--requests", "30", "--policy", "fifo,adaptive"]


@pytest.mark.slow
def test_simulate_draws_a_timeline(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib", reason="needs matplotlib: pip install -e '.[plot]'")
    path = tmp_path / "out.png"
    done = CliRunner().invoke(main, [*SHORT, "--plot", str(path)])
    assert done.exit_code == 0, done.output
    assert path.read_bytes().startswith(b"\x89PNG")


def test_without_matplotlib_a_timeline_is_a_mistake_in_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    done = CliRunner().invoke(main, [*SHORT, "--plot", str(tmp_path / "out.png")])
    assert done.exit_code == 1
    assert done.output.endswith("Error: --plot needs matplotlib: pip install 'llmux-proxy[plot]'\n")


def test_a_long_run_shows_its_progress_on_a_terminal() -> None:
    seen, terminal = pty.openpty()
    command = [sys.executable, "-m", "llmux", "simulate", "--requests", "20001", "--policy", "fifo"]
    environment = {**os.environ, "TERM": "xterm"}
    done = subprocess.run(
        command, stdout=subprocess.PIPE, stderr=terminal, env=environment, check=True, text=True
    )
    os.close(terminal)
    shown = os.read(seen, 65_536).decode()
    os.close(seen)
    assert "fifo" in shown
    assert "99%" in shown
    assert "99%" not in done.stdout


def test_simulate_reads_a_trace(tmp_path: Path) -> None:
    trace = tmp_path / "trace.csv"
    trace.write_text("arrival_s,model,service_s\n0,x,1\n1,y,2\n2,x,\n")
    done = CliRunner().invoke(main, ["simulate", "--trace", str(trace), "--policy", "fifo"])
    assert done.exit_code == 0, done.output
    trace.write_text("when,what\n0,x\n")
    done = CliRunner().invoke(main, ["simulate", "--trace", str(trace)])
    assert done.exit_code == 1
    assert "arrival_s" in done.output


def test_a_policy_that_does_not_exist_is_a_mistake() -> None:
    done = CliRunner().invoke(main, ["simulate", "--policy", "fifoo"])
    assert done.exit_code == 2
    assert "unknown policy 'fifoo'" in done.output


async def test_a_disk_that_is_full_in_mid_line_leaves_whole_lines(
    tmp_path: Path, autojump_clock: MockClock
) -> None:
    path = tmp_path / "journal.jsonl"
    kept = Journal(path)
    kept.add(lambda _: Started(0, "fifo", {"a": "default"}, {}, 300, 0))
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    for at in range(10):
        kept.add(partial(one_request, at))
    resource.setrlimit(resource.RLIMIT_FSIZE, (300, hard))  # to a process, that is a full disk
    try:
        with trio.move_on_after(2):
            await kept.run()
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    kept.add(partial(one_request, 10))
    with trio.move_on_after(2):
        await kept.run()
    assert [type(entry) for entry in read_journal(path)] == [Started, Request]


async def test_after_a_kill_in_mid_line_the_journal_goes_on(
    tmp_path: Path, autojump_clock: MockClock
) -> None:
    path = tmp_path / "journal.jsonl"
    path.write_bytes(b'{"event":"request","model":"a","arr')
    kept = Journal(path)
    kept.add(partial(one_request, 1))
    with trio.move_on_after(2):
        await kept.run()
    assert [type(entry) for entry in read_journal(path)] == [Request]


async def test_each_file_says_what_was_started(
    tmp_path: Path, autojump_clock: MockClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(journal, "MAX_BYTES", 2000)
    path = tmp_path / "journal.jsonl"
    kept = Journal(path)
    kept.add(lambda _: Started(0, "fifo", {"a": "default"}, {}, 300, 0))
    async with trio.open_nursery() as nursery:
        nursery.start_soon(kept.run)
        for at in range(90):
            kept.add(partial(one_request, at))
            await trio.sleep(1)
        nursery.cancel_scope.cancel()
    for file in (path, path.with_suffix(".1.jsonl")):
        assert isinstance(next(read_journal(file)), Started)


async def test_what_cannot_be_written_as_json_costs_entries_only(
    tmp_path: Path, autojump_clock: MockClock
) -> None:
    kept = Journal(tmp_path / "journal.jsonl")
    odd: Any = object()  # a policy's reason
    kept.add(lambda _: journal.Switch(None, "a", 0, 0, 0, 0, "success", odd))
    with trio.move_on_after(2):
        await kept.run()
    kept.add(partial(one_request, 1))
    with trio.move_on_after(2):
        await kept.run()
    assert len(list(read_journal(tmp_path / "journal.jsonl"))) == 1


def one_request(at: float, _offset_s: float) -> Request:
    return Request("a", at, at + 1, 200, at)


def test_several_files_may_be_given_in_any_order(tmp_path: Path) -> None:
    first, last = started("fifo"), replace(started("exhaustive"), at=100)
    switches = [Switch(None, "a", at, at + 1, 0, 1, "success") for at in (5, 105)]
    later = Request("b", arrived=110, ended=112, status=200, admitted=111, company=1)
    files = [
        written(tmp_path / "journal.1.jsonl", first, switches[0], REQUEST),
        written(tmp_path / "journal.jsonl", last, switches[1], later),
    ]
    recordings = load_recordings(files)
    assert recordings == load_recordings(reversed(files))
    assert recordings["default"].started == replace(last, freezes=[])
    assert recordings["default"].requests == [REQUEST, later]
    assert recordings["default"].switches == switches


def test_models_that_were_removed_are_replayed(tmp_path: Path) -> None:
    base = started("fifo")
    gone = replace(REQUEST, model="gone")
    path = written(
        tmp_path / "journal.jsonl",
        replace(
            base,
            groups={"a": "default", "gone": "other"},
            slots={"a": 1, "gone": 2},
            freezes=["a", "gone"],
        ),
        REQUEST,
        gone,
        replace(base, at=100, groups={"a": "default", "b": "default"}, freezes=["b"]),
        replace(REQUEST, model="b"),
    )
    recordings = load_recordings([path])
    assert {group: each.models for group, each in recordings.items()} == {
        "default": ["a", "b"],
        "other": ["gone"],
    }
    assert recordings["other"].requests == [gone]
    setup = recordings["default"].setup("fifo")
    assert setup.max_in_flight == {"gone": 2}
    assert setup.preserves_in_flight == ["gone", "b"]


def test_what_is_not_replayed_is_told(tmp_path: Path) -> None:
    path = tmp_path / "journal.jsonl"
    refused = replace(REQUEST, model="gone", admitted=None)
    start = replace(started("fifo"), groups={"a": "default", "gone": "other"})
    written(path, start, REQUEST, refused, replace(REQUEST, model="unknown"))
    done = CliRunner().invoke(main, ["replay", str(path), "--policy", "fifo"])
    assert done.exit_code == 0, done.output
    assert done.stderr.splitlines() == [
        "group other: requests skipped: 1; none was let in",
        "requests skipped: 1; no start in the journal names unknown",
    ]
    for only in (refused, replace(REQUEST, model="unknown")):
        done = CliRunner().invoke(main, ["replay", str(written(path, start, only))])
        assert done.exit_code == 1
        assert done.stderr.endswith("Error: the journal has no request that can be replayed\n")


def test_a_switch_costs_what_it_did_on_average(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    a_to_b = [Switch("a", "b", at, at + 1, 0, at, "success") for at in (2, 4)]
    failed = Switch("a", "b", 5, 6, 0, 100, "failure")
    others = [Switch("b", "c", 7, 8, 0, 10, "success"), Switch(None, "c", 9, 10, 0, 20, "success")]
    path = written(tmp_path / "journal.jsonl", started("fifo"), *a_to_b, failed, *others, REQUEST)
    cost = load_recordings([path])["default"].setup("fifo").cost
    monkeypatch.setattr(replay, "mean", None)  # it is asked at each switch of a simulation
    assert cost("a", "b") == 3
    assert cost("b", "c") == 10
    assert cost("a", "c") == 15  # of all into it
    assert cost("b", "a") == 9  # of all


def test_a_group_knows_nothing_of_the_switches_of_another(tmp_path: Path) -> None:
    switches = [
        Switch(None, "a", 1, 2, 0, 3, "success"),
        Switch("a", "b", 3, 4, 0, 5, "success"),
        Switch(None, "c", 1, 2, 0, 70, "success"),
    ]
    path = written(
        tmp_path / "journal.jsonl",
        replace(started("fifo"), groups={"a": "one", "b": "one", "c": "two"}),
        *switches,
        REQUEST,
        replace(REQUEST, model="c"),
    )
    recordings = load_recordings([path])
    assert recordings["one"].switches == switches[:2]
    assert recordings["two"].switches == switches[2:]
    assert recordings["one"].setup("fifo").cost("b", "a") == 3
    assert recordings["two"].setup("fifo").cost("b", "x") == 70


@pytest.mark.parametrize("ended", [11, 10.5])
def test_a_request_that_took_no_time_is_replayed(ended: float, tmp_path: Path) -> None:
    instant = replace(REQUEST, ended=ended)
    beside = replace(REQUEST, arrived=8, admitted=9, ended=13)
    path = written(tmp_path / "journal.jsonl", started("fifo"), instant, beside, instant)
    recording = load_recordings([path])["default"]
    assert [arrival.work_s for arrival in recording.arrivals()] == [4, 0, 0]
    assert simulate(recording.setup("fifo"), recording.arrivals()).count == 3


def rush(**settings: Any) -> list[Entry]:
    """Overlapping requests for `a` until 103, and one for `b` that has come at 1."""
    at_a = [Request("a", at, at + 8, 200, at, company=1) for at in range(0, 100, 5)]
    start = replace(started("exhaustive"), **settings)
    return [start, *at_a, Request("b", 1, 104, 200, 103, 1)]


@pytest.mark.parametrize(
    ("policy", "settings", "wait_s"),
    [
        ("exhaustive", {}, 102),
        ("exhaustive", {"max_wait_s": 20}, 20),
        ("fifo", {}, 0),
        ("fifo", {"min_active_s": 50}, 49),
    ],
)
def test_a_replay_has_the_settings_that_were_used(
    policy: str, settings: dict[str, Any], wait_s: float, tmp_path: Path
) -> None:
    path = written(tmp_path / "journal.jsonl", *rush(**settings))
    recording = load_recordings([path])["default"]

    def wait_of_b(**others: object) -> float:
        outcome = simulate(recording.setup(policy, **others), recording.arrivals())
        waits = zip(outcome.models, outcome.line_waits(), strict=True)
        return next(wait for model, wait in waits if outcome.names[model] == "b")

    assert wait_s <= wait_of_b() <= wait_s + 8  # and the drain
    assert wait_of_b(max_wait_secs=300, min_active_secs=70) >= 69


def test_a_replay_has_the_slots_that_there_were(tmp_path: Path) -> None:
    requests = [Request("a", 0, 10 * n, 200, 10 * (n - 1), company=1) for n in (1, 2, 3)]
    start = replace(started("fifo"), slots={"a": 1})
    recording = load_recordings([written(tmp_path / "journal.jsonl", start, *requests)])["default"]
    outcome = simulate(recording.setup("fifo"), recording.arrivals())
    assert list(outcome.line_waits()) == recording.held_waits() == [0, 10, 20]


def test_a_replay_has_the_options_of_the_policy_that_was_used(tmp_path: Path) -> None:
    options = {"coalesce_secs": 40, "amortization_factor": 1}
    used = rush(policy="cost_aware", options=options)
    recording = load_recordings([written(tmp_path / "journal.jsonl", *used)])["default"]
    assert vars(recording.setup("cost_aware").policy())["_coalesce_s"] == 40
    assert recording.setup("own_policy:Own").policy.args[0].options == {}  # type: ignore[attr-defined]


def test_requests_that_were_not_drained_are_told_of(tmp_path: Path) -> None:
    told = "drain_before_switch was off"
    for settings, is_told in (
        ({}, False),
        ({"drains": False}, True),
        ({"drains": False, "freezes": ["a", "b"]}, False),
    ):
        path = written(tmp_path / "journal.jsonl", *rush(**settings))
        done = CliRunner().invoke(main, ["replay", str(path), "--policy", "fifo"])
        assert done.exit_code == 0, done.output
        assert (told in done.stdout) == is_told


def test_an_old_journal_says_nothing_of_options_and_drains(tmp_path: Path) -> None:
    path = tmp_path / "journal.jsonl"
    path.write_text(
        '{"event":"started","at":0,"policy":"fifo","groups":{"a":"default"},"slots":{},'
        '"max_wait_s":300,"min_active_s":0}\n'
    )
    assert list(read_journal(path)) == [Started(0, "fifo", {"a": "default"}, {}, 300, 0)]


def test_an_old_journal_says_nothing_of_memory_and_evictions(tmp_path: Path) -> None:
    path = tmp_path / "journal.jsonl"
    path.write_text(
        '{"event":"started","at":0,"policy":"fifo","groups":{},"slots":{},"max_wait_s":3,'
        '"min_active_s":0}\n{"event":"switch","source":"a","target":"b","started":1,"ended":2,'
        '"drain_s":0,"hooks_s":1,"result":"success"}\n'
    )
    start, switch = read_journal(path)
    assert isinstance(start, Started)
    assert isinstance(switch, Switch)
    assert start.memory == {}
    assert switch.evicts == ()


@pytest.mark.parametrize(
    ("options", "kept"),
    [({"x": {1: [0.5, None]}}, {"x": {"1": [0.5, None]}}), ({"x": {None: 1}}, {})],
)
async def test_what_a_start_says_of_the_policy(
    options: dict[str, Any], kept: dict[str, Any], autojump_clock: MockClock
) -> None:
    policy = {"name": "own:Policy", "options": options, "drain_before_switch": False}
    model = {"port": 1, "wake": "up", "sleep": "down", "alive": "ping"}
    entry = what_started(parse_config({"models": {"a": model}, "policy": policy}))(0)
    assert (entry.policy, entry.options, entry.drains) == ("own:Policy", kept, False)


OWN_POLICY = """
from llmux.policy import POLICIES

class Own:
    def __init__(self, config):
        assert config.options == EXPECTED
        self.decide = POLICIES["fifo"](config).decide
"""


def test_a_policy_of_the_users_own_is_replayed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "path", list(sys.path))
    monkeypatch.chdir(tmp_path)
    for module, expected in (("own_replayed", {"x": 1}), ("own_simulated", {})):
        Path(f"{module}.py").write_text(f"EXPECTED = {expected}\n{OWN_POLICY}")
    written(Path("journal.jsonl"), *rush(policy="own_replayed:Own", options={"x": 1}))
    policies = "fifo,own_replayed:Own,own_simulated:Own"
    done = CliRunner().invoke(main, ["replay", "journal.jsonl", "--policy", policies])
    assert done.exit_code == 0, done.output
    *_, first, second, third = (line.split()[1:] for line in done.stdout.splitlines())
    assert first == second == third
    done = CliRunner().invoke(
        main, ["simulate", "--requests", "30", "--policy", "own_simulated:Own"]
    )
    assert done.exit_code == 0, done.output
    assert "own_simulated:Own" in done.stdout


@pytest.mark.parametrize("command", [["replay", "journal.jsonl"], ["simulate", "--requests", "30"]])
def test_a_policy_that_cannot_be_made_is_a_mistake(
    command: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "path", list(sys.path))
    monkeypatch.chdir(tmp_path)
    written(Path("journal.jsonl"), *rush())
    done = CliRunner().invoke(main, [*command, "--policy", "no_such_module:X"])
    assert done.exit_code == 2
    assert "cannot import 'no_such_module:X'" in done.stderr
    assert "Traceback" not in done.output
