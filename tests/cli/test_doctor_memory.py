"""`llmux doctor` where models share memory: what is as it should be there, and what is not."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import msgspec
import pytest

from llmux.cli.doctor.facts import Facts, GpuUse, Process
from llmux.cli.doctor.findings import Finding
from llmux.observe.schemas import Pin, ResourceMemory, SwitchRecord
from tests.cli.test_doctor import GIB, GPU, bad, running, status, the_one
from tests.cli.test_terminal import NOW, model

NEEDS = {"llama": 40, "mistral": 60, "embed": 10}


def sharing(name: str, state: Any = "asleep", **fields: Any) -> Any:
    needs = {"gpu0": NEEDS[name] * GIB}
    facts = {"needs": needs, "needs_asleep": {"ram": GIB}, "needs_waking": needs}
    return model(state, **(facts | fields))


def models(**changed: Any) -> dict[str, Any]:
    named = {"llama": "awake", "mistral": "asleep", "embed": "awake"}
    return {
        name: sharing(name, **({"state": state} | changed.get(name, {})))
        for name, state in named.items()
    }


def memory(free: int = 30) -> list[ResourceMemory]:
    return [ResourceMemory(resource="gpu0", amount=80 * GIB, free=free * GIB, held=[], promised=[])]


def found(facts: Facts) -> list[Finding]:
    return [each for each in bad(facts) if each.about != "ports"]


def switch(number: int, target: str, *evicts: str, age_s: float = 12.0) -> SwitchRecord:
    return SwitchRecord(
        id=number, group="default", source=next(iter(evicts), None), target=target, evicts=evicts,
        started=NOW - age_s, expected_secs=20.0,
    )  # fmt: skip


def test_two_that_are_awake_are_no_finding() -> None:
    assert found(running(status(models(), memory=memory(), awake_models=["llama", "embed"]))) == []


def test_every_running_switch_is_judged_by_its_own_models() -> None:
    named = models(
        llama={"state": "draining", "in_flight": 2},
        mistral={"queued": 3},
        embed={"state": "waking", "queued": 1},
    )
    switches = [switch(1, "mistral", "llama", age_s=90), switch(2, "embed")]
    slow, usual = found(running(status(named, switches[0], switches=switches, memory=memory())))
    assert (slow.severity, slow.what) == (
        "problem",
        "the switch from llama to mistral takes 90 s of ~20 s, now: drains llama; 3 requests wait",
    )
    assert (usual.severity, usual.what) == (
        "note",
        "the switch from nothing to embed takes 12 s of ~20 s, now: wake hook of embed; "
        "1 request waits",
    )


def test_a_line_beside_a_running_switch() -> None:
    named = models(embed={"state": "waking"}, mistral={"queued": 3, "oldest_wait_secs": 61.0})
    facts = running(
        status(named, switch(1, "embed"), switches=[switch(1, "embed")], memory=memory())
    )
    line, _ = found(facts)
    assert (line.severity, line.about) == ("warning", "line")
    assert line.why == "it waits until a running switch has ended, or for memory"


@pytest.mark.parametrize(
    ("pinned", "severity", "does"),
    [
        (["embed"], "warning", "requests for models that cannot be awake beside it: get 503"),
        (["llama"], "problem", "requests for models that cannot be awake beside it: 3 wait"),
        (["llama", "embed"], "problem", "requests for models that cannot be awake beside them: 3 wait"),
    ],
    ids=["fits", "does-not", "several"],
)  # fmt: skip
def test_a_pin_holds_up_only_what_does_not_fit_beside_it(
    pinned: list[str], severity: str, does: str
) -> None:
    named = models(mistral={"queued": 3, "oldest_wait_secs": 5.0})
    pins = [Pin(model=name, wait=False) for name in pinned]
    facts = running(status(named, memory=memory(), pinned=pins[0], pins=pins))
    (pin,) = (each for each in found(facts) if each.about == "pin")
    assert (pin.severity, pin.why) == (severity, does)
    verb = "is" if len(pinned) == 1 else "are"
    assert pin.what == f"{' and '.join(pinned)} {verb} pinned in group default"


def test_a_model_that_is_awake_alone_fits_beside_no_pin() -> None:
    named = models(mistral={"queued": 3, "oldest_wait_secs": 5.0, "needs": None})
    pin = Pin(model="embed", wait=False)
    facts = running(status(named, memory=memory(), pinned=pin, pins=[pin]))
    assert the_one(facts).severity == "problem"


def test_all_that_stay_are_named() -> None:
    named = models(mistral={"queued": 3, "oldest_wait_secs": 5.0})
    awake = ["llama", "embed"]
    facts = running(status(named, memory=memory(), awake_models=awake, stays="they have work"))
    assert the_one(facts).why.startswith("the policy stays with llama, embed: they have work")


def test_more_is_held_than_there_is() -> None:
    (held,) = found(running(status(models(), memory=memory(free=-10))))
    assert (held.severity, held.what) == (
        "warning", "models of group default hold 10 GiB more gpu0 than the 80 GiB there are",
    )  # fmt: skip


@pytest.mark.parametrize(("stopped", "count"), [(False, 0), (True, 1)])
def test_a_sleeping_model_may_hold_what_it_needs_asleep(stopped: bool, count: int) -> None:
    asleep = {"needs_asleep": {"gpu0": 30 * GIB}, "stopped": stopped}
    facts = running(status(models(mistral=asleep), memory=memory()))
    use = GpuUse(msgspec.structs.replace(GPU), ((Process(8, "server", "mistral"), 25 * GIB),))
    told = found(replace(facts, gpus=(use,)))
    assert [each.about for each in told] == ["gpu"] * count
