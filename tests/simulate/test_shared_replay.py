"""Journals of groups whose models share memory: what is written of it, and that replays repeat it."""

from __future__ import annotations

import math
import random
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import msgspec
import pytest
from click.testing import CliRunner

from llmux.cli.main import main
from llmux.config import PolicyConfig
from llmux.observe.journal import Entry, Phase, Request, SharedMemory, Started
from llmux.policy import LineFirst, load_policy
from llmux.policy.estimates import Measures
from llmux.policy.placing import Placing
from llmux.policy.room import Memory, Needs
from llmux.simulate import Outcome, Sharing
from llmux.simulate.coresident import Coresident
from llmux.simulate.hosts import CoresidentSetup, Host
from llmux.simulate.outcome import mean
from llmux.simulate.recorded import memory_of_record, record_of, touches_of_record
from llmux.simulate.recordings import load_recordings
from llmux.simulate.replay import Recording
from llmux.simulate.shared_replay import SharedRecording
from llmux.switching.core import Phase as State
from llmux.switching.core import Traits
from llmux.switching.ledger import Ledger
from tests.simulate.test_coresident import traffic

SIZES = {"0": 40, "1": 25, "2": 30, "3": 8, "4": 60}
TOUCHES = dict.fromkeys(SIZES, frozenset({"gpu"}))
MEMORY = Memory(("gpu",), (80,), {name: Needs.of((size,)) for name, size in SIZES.items()})


def write(path: Path, entries: Sequence[Entry]) -> Path:
    path.write_bytes(msgspec.json.Encoder().encode_lines(entries))
    return path


def started(**more: Any) -> Started:
    groups = dict.fromkeys(SIZES, "default")
    return Started(0.0, "adaptive", groups, {}, 300.0, 0.0, **more)


def lived(traits: dict[str, Traits], seed: int) -> tuple[Outcome, list[Phase]]:
    """Serve some traffic; return what happened, with the changes of the models' states."""
    setup = CoresidentSetup(
        memory=MEMORY,
        wake_s=lambda name: SIZES[name] / 4,
        sleep_s=lambda name: SIZES[name] / 16,
        server=lambda _: Sharing(lambda running: 1 / (1 + 0.05 * (running - 1))),
        policy=lambda: load_policy(PolicyConfig()),
        hooks_at_once=math.inf,
        touches=TOUCHES,
        traits=traits,
    )
    measures = Measures()
    run = Coresident(
        setup,
        iter(traffic(5, 600, seed)),
        policy=LineFirst(Placing(setup.policy()), PolicyConfig(), measures),
        measures=measures,
        ledger=Ledger(MEMORY),
        rng=random.Random(0),
    )
    phases: list[Phase] = []
    move = run._moves._move

    def noted(host: Host, phase: State, now: float) -> None:
        left = host.phase.value
        move(host, phase, now)
        phases.append(Phase(now, host.name, phase.value, left))  # type: ignore[arg-type]

    run._moves._move = noted  # type: ignore[method-assign]
    run.run(math.inf)
    return run.outcome, phases


def journal_of(outcome: Outcome, phases: Sequence[Phase], traits: dict[str, Traits]) -> list[Entry]:
    in_flight: dict[str, int] = dict.fromkeys(SIZES, 0)
    companies = {}
    changes = [(at, 1, index) for index, at in enumerate(outcome.admitted_at)]
    changes += [(at, 0, index) for index, at in enumerate(outcome.ended_at)]
    for _, begins, index in sorted(changes):
        name = outcome.names[outcome.models[index]]
        in_flight[name] += 1 if begins else -1
        if begins:
            companies[index] = in_flight[name]
    requests = [
        Request(
            outcome.names[model], outcome.arrived_at[index], outcome.ended_at[index], 200,
            outcome.admitted_at[index], companies[index],
        )
        for index, model in enumerate(outcome.models)
    ]  # fmt: skip
    memory = record_of(MEMORY, TOUCHES, overlapping_hooks=False)
    freezes = [name for name, each in traits.items() if each.preserves_in_flight]
    slots = {n: int(t.max_in_flight) for n, t in traits.items() if t.max_in_flight < math.inf}
    start = msgspec.structs.replace(
        started(memory={"default": memory}), freezes=freezes, slots=slots
    )
    return [start, *requests, *phases]


@pytest.mark.parametrize(
    "traits",
    [
        {},
        {"0": Traits(max_in_flight=2), "1": Traits(max_in_flight=1)},
        {"0": Traits(preserves_in_flight=True)},
    ],
    ids=["plain", "slots", "freezing"],
)
def test_a_replay_with_the_policy_that_was_used_repeats_what_happened(
    traits: dict[str, Traits], tmp_path: Path
) -> None:
    outcome, phases = lived(traits, seed=2)
    path = write(tmp_path / "journal.jsonl", journal_of(outcome, phases, traits))
    recording = load_recordings([path])["default"]
    assert isinstance(recording, SharedRecording)
    assert recording.hooks_s("waking", "awake") == pytest.approx(
        {name: size / 4 for name, size in SIZES.items()}
    )
    assert mean(recording.held_waits()) == pytest.approx(mean(outcome.held_waits()))
    replayed = recording.simulate("adaptive")
    assert replayed.count == 600
    assert mean(replayed.held_waits()) == pytest.approx(mean(outcome.held_waits()), rel=0.1)
    assert replayed.switches == pytest.approx(outcome.switches, rel=0.1)


def test_replay_compares_policies(tmp_path: Path) -> None:
    outcome, phases = lived({}, seed=2)
    path = write(tmp_path / "journal.jsonl", journal_of(outcome, phases, {}))
    done = CliRunner().invoke(main, ["replay", str(path), "--policy", "adaptive,fifo"])
    assert done.exit_code == 0, done.output
    lines = done.output.splitlines()
    assert lines[0] == (
        "group default: 600 requests for 5 models that share memory; policy adaptive"
    )
    assert [line.split()[0] for line in lines[2:]] == ["observed", "adaptive", "fifo"]
    assert lines[2].split()[-5:] == ["-"] * 5


def test_a_journal_without_memory_is_one_of_a_model_awake_at_a_time(tmp_path: Path) -> None:
    requests = [Request("0", 1.0, 2.0, 200, 1.0, 1)]
    for memory in ({}, {"default": SharedMemory({}, {})}, {"other": SharedMemory({"x": 1}, {})}):
        path = write(tmp_path / "journal.jsonl", [started(memory=memory), *requests])
        recording = load_recordings([path])["default"]
        assert type(recording) is Recording
        assert recording.simulate("fifo").count == 1
    text = path.read_text().replace('"memory":{"other":', '"memoranda":{"other":')
    path.write_text(text)
    assert type(load_recordings([path])["default"]) is Recording


def test_the_record_says_all_that_a_simulation_needs() -> None:
    needs = {
        "a": Needs.of((60, 0), (0, 60), (70, 60)),
        "b": Needs.of((10, 0)),
    }
    memory = Memory(("gpu", "ram"), (80, 256), needs)
    touches = {"a": frozenset({"gpu", "ram"}), "b": frozenset({"gpu"})}
    record = record_of(memory, touches, overlapping_hooks=True, keep={"b"}, busy=2)
    assert msgspec.json.decode(msgspec.json.encode(record)) == {
        "resources": {"gpu": 80, "ram": 256},
        "awake": {"a": {"gpu": 60}, "b": {"gpu": 10}},
        "asleep": {"a": {"ram": 60}},
        "waking": {"a": {"gpu": 70, "ram": 60}},
        "touches": {"a": ["gpu", "ram"], "b": ["gpu"]},
        "overlapping_hooks": True,
        "keep": ["b"],
        "busy": 2,
    }
    assert memory_of_record(record, ["a", "b"]) == memory
    assert touches_of_record(record, ["a", "b"]) == touches


def test_models_that_a_record_does_not_know_are_awake_alone() -> None:
    record = SharedMemory({"gpu": 80}, {"a": {"gpu": 100, "gone": 5}})
    memory = memory_of_record(record, ["a", "removed"])
    assert memory.needs == {"a": Needs.of((80,)), "removed": Needs.of((80,))}
    assert touches_of_record(record, ["removed"]) == {"removed": frozenset({"gpu"})}


def test_times_across_a_restart_are_not_counted(tmp_path: Path) -> None:
    phases = [
        Phase(10.0, "0", "waking", "asleep"),
        Phase(14.0, "0", "awake", "waking"),
        Phase(20.0, "1", "waking", "asleep"),  # then llmux was killed
        Phase(90.0, "1", "sleeping", "failed"),
        Phase(95.0, "1", "asleep", "sleeping"),
    ]
    memory = {"default": record_of(MEMORY, TOUCHES, overlapping_hooks=False)}
    requests = [Request(name, 1.0, 2.0, 200, 1.0, 1) for name in "01"]
    path = write(tmp_path / "journal.jsonl", [started(memory=memory), *requests, *phases])
    recording = load_recordings([path])["default"]
    assert isinstance(recording, SharedRecording)
    assert recording.hooks_s("waking", "awake") == {"0": 4.0, "1": 4.0}
    assert recording.hooks_s("sleeping", "asleep") == {"0": 5.0, "1": 5.0}
    setup = recording.shared_setup("fifo")
    assert (setup.wake_s("1"), setup.sleep_s("0")) == (4.0, 5.0)
