"""llmux is killed at every instant while several models are awake, and started again.

The hooks keep a log. From it, books are kept that know nothing of llmux's ledger: no more is ever held
than there is, and no two hooks of models on one resource overlap, also across the kill.
"""

from __future__ import annotations

import signal
from collections.abc import AsyncIterator, Iterable, Sequence
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
import pytest
import trio
from trio.testing import MockClock

from llmux.policy.room import Needs
from llmux.switching.awake import AwakeRecord, Entry
from llmux.switching.model import Traits
from tests.servers import LlmuxProcess, Rack, chat, running_backends, running_llmux
from tests.sharing import SharedRig, shared

CHAT = "/v1/chat/completions"
GIB = 1 << 30
KILLED = "llmux killed"

AMOUNTS = {"gpu0": 80, "gpu1": 80, "ram": 20}
NEEDS = {
    "a": {"gpu0": 40},
    "b": {"gpu0": 40},
    "c": {"gpu0": 40},
    "small": {"gpu0": 10},
    "other": {"gpu1": 40},
}
"""In GiB. On gpu0 there is room for two of a, b and c, or for one of them and small."""

ASLEEP = {"a": {"ram": 15}, "b": {"ram": 15}}
"""What sleeping models need, where a test says so: there is enough for one of them."""

# A hook stops at `<model>.<hook>.<step>` if such a file exists, which it renames; later ones pass. It
# fails at `<model>.<hook>.fails`.
PREAMBLE = (
    'me=$LLMUX_MODEL.$LLMUX_HOOK; stop() { if mv "$me.$1" "$me.$1.here" 2> /dev/null; then '
    'while [ -e "$me.$1.here" ]; do sleep 0.02; done; fi; }; '
    'note() { echo "$LLMUX_MODEL $LLMUX_HOOK$1" >> hooks.log; }; note; '
)
END = '; stop 2; note " done"; ! rm "$me.fails" 2> /dev/null'
HOOKS = {
    "wake": PREAMBLE + "stop 1; : > $LLMUX_MODEL.awake" + END,
    "sleep": PREAMBLE + "stop 1; rm -f $LLMUX_MODEL.awake" + END,
    "stop": PREAMBLE + "stop 1; rm -f $LLMUX_MODEL.awake" + END,
}


@dataclass
class Books:
    """Who holds what, by the log of the hooks.

    Attributes:
        held: What each model holds, in GiB.
        hooks: The models whose hook runs.
    """

    amounts: dict[str, int] = field(default_factory=lambda: dict(AMOUNTS))
    asleep: dict[str, dict[str, int]] = field(default_factory=dict)
    held: dict[str, dict[str, int]] = field(default_factory=dict)
    hooks: set[str] = field(default_factory=set)

    def read(self, log: Iterable[str]) -> None:
        """Follow the log, and check it."""
        for line in log:
            model, hook, *done = line.split()
            if line == KILLED:
                self.hooks.clear()  # what still ran is ended before anything else
            elif done:
                assert model in self.hooks, f"{line}: a hook goes on that had to be ended"
                self.hooks.discard(model)
                if hook != "wake":
                    self.held[model] = self.asleep.get(model, {}) if hook == "sleep" else {}
            else:
                beside = [m for m in self.hooks if NEEDS[m].keys() & NEEDS[model].keys()]
                assert not beside, f"{line} beside a hook of {beside}"
                self.hooks.add(model)
                if hook == "wake":
                    self.held[model] = NEEDS[model]
            self.check(line)

    def check(self, line: str) -> None:
        for resource, amount in self.amounts.items():
            held = {m: needs[resource] for m, needs in self.held.items() if resource in needs}
            assert sum(held.values()) <= amount, f"{line}: {held} of {amount} {resource}"


def write(rack: Rack, *, sleepers: bool = False, **amounts: int) -> Path:
    """Write the config."""
    models: dict[str, dict[str, Any]] = {
        name: {
            **{hook: HOOKS[hook] for hook in ("wake", "sleep")},
            "needs": {resource: size * GIB for resource, size in NEEDS[name].items()},
        }
        for name in rack.backends
    }
    if sleepers:
        for name, needs in ASLEEP.items():
            models[name] |= {"needs_asleep": {"ram": needs["ram"] * GIB}, "stop": HOOKS["stop"]}
    resources = {name: size * GIB for name, size in (AMOUNTS | amounts).items()}
    if not sleepers:
        del resources["ram"]
    return rack.write_config(models=models, resources=resources)


@asynccontextmanager
async def running_rack(folder: Path) -> AsyncIterator[Rack]:
    async with running_backends(folder, *NEEDS) as rack:
        for backend in rack.backends.values():
            backend.inside = lambda: None  # several are awake; the books are checked instead
        yield rack


class Doomed:
    """A llmux that is going to be killed, and what it is asked until then."""

    def __init__(
        self, rack: Rack, llmux: LlmuxProcess, client: httpx.AsyncClient, nursery: trio.Nursery
    ) -> None:
        self._rack, self._llmux, self._client, self._nursery = rack, llmux, client, nursery

    async def wake(self, *models: str) -> None:
        for model in models:
            answer = await self._client.post(CHAT, json=chat(model))
            assert answer.status_code == 200, answer.text

    def ask(self, model: str, **fields: object) -> None:
        """Ask, and wait for no answer."""

        async def ask() -> None:
            with suppress(httpx.HTTPError):  # killed
                await self._client.post(CHAT, json=chat(model, **fields))

        self._nursery.start_soon(ask)

    async def keep_busy(self, model: str) -> None:
        """Begin a long stream; returns once it is inside."""
        self.ask(model, stream=True, chunks=10_000, interval=0.05)
        with trio.fail_after(10):
            while not self._rack.backends[model].in_flight:
                await trio.sleep(0.01)

    async def until_at(self, *instants: str) -> None:
        """Wait until a hook stands at one of these steps."""
        here = [self._rack.folder / f"{instant}.here" for instant in instants]
        with trio.fail_after(10):
            while not any(file.exists() for file in here):
                await trio.sleep(0.01)

    async def until_state(self, model: str, state: str) -> None:
        with trio.fail_after(10):
            while (await models_of(self._client))[model]["state"] != state:
                await trio.sleep(0.02)

    async def until_queued(self, model: str) -> None:
        with trio.fail_after(10):
            while not (await models_of(self._client))[model]["queued"]:
                await trio.sleep(0.02)

    async def sleep_soon(self, model: str) -> None:
        async def order() -> None:
            with suppress(httpx.HTTPError):
                await self._client.post("/control/sleep", json={"model": model})

        self._nursery.start_soon(order)


async def models_of(client: httpx.AsyncClient) -> Any:
    return (await client.get("/control/status")).json()["models"]


@asynccontextmanager
async def killed(rack: Rack, config: Path, stops: Sequence[str]) -> AsyncIterator[Doomed]:
    """Run llmux with several models awake; kill it at the end of the context."""
    for stop in stops:
        (rack.folder / stop).touch()
    async with (
        running_llmux(config, ends_with=-signal.SIGKILL) as llmux,
        llmux.client() as client,
        trio.open_nursery() as nursery,
    ):
        yield Doomed(rack, llmux, client, nursery)
        llmux.process.kill()  # first: a drain would end with its client
        nursery.cancel_scope.cancel()
    with (rack.folder / "hooks.log").open("a") as log:
        print(KILLED, file=log)
    # A hook that stands at a step does so until the next llmux ends it.
    for stop in stops:
        (rack.folder / stop).unlink(missing_ok=True)


async def go_on(rack: Rack, config: Path, *, adopted: set[str], slept: set[str]) -> None:
    """Start llmux again: it keeps `adopted` awake, puts `slept` to sleep, and serves all."""
    before = len(rack.hook_log)
    async with running_llmux(config) as llmux, llmux.client() as client:
        with trio.fail_after(10):
            while True:
                models = await models_of(client)
                awake = {name for name, model in models.items() if model["awake"]}
                states = {model["state"] for model in models.values()}
                ran = set(rack.hook_log[before:])
                is_done = ran >= {f"{model} sleep done" for model in slept}
                if is_done and awake == adopted and states <= {"awake", "asleep"}:
                    break
                await trio.sleep(0.02)
        assert ran == {f"{model} sleep{end}" for model in slept for end in ("", " done")}
        assert {name for name, each in rack.backends.items() if each.awake.exists()} == adopted
        await ask_all(rack, client)
        # Those of gpu1 need nothing of gpu0, so they were never in anyone's way.
        assert (await models_of(client))["other"]["awake"]


async def ask_all(rack: Rack, client: httpx.AsyncClient) -> None:
    """Ask all models twice; hooks that the killed llmux has left would go on now."""
    for file in rack.folder.glob("*.here"):
        file.unlink()
    for model in [*NEEDS, *NEEDS]:
        answer = await client.post(CHAT, json=chat(model))
        assert (answer.status_code, answer.json().get("served_by")) == (200, model)


# ---- Every instant ----


async def test_killed_while_several_serve(tmp_path: Path) -> None:
    async with running_rack(tmp_path) as rack:
        config = write(rack)
        async with killed(rack, config, []) as doomed:
            await doomed.wake("a", "b", "other")
            await doomed.keep_busy("a")
        await go_on(rack, config, adopted={"a", "b", "other"}, slept=set())
        Books().read(rack.hook_log)


async def test_killed_while_a_model_drains_beside_another(tmp_path: Path) -> None:
    async with running_rack(tmp_path) as rack:
        config = write(rack)
        async with killed(rack, config, []) as doomed:
            await doomed.wake("a", "b", "other")
            await doomed.keep_busy("a")
            await doomed.keep_busy("b")
            await doomed.sleep_soon("b")
            await doomed.until_state("b", "draining")
            doomed.ask("c")
        await go_on(rack, config, adopted={"a", "b", "other"}, slept=set())
        Books().read(rack.hook_log)


@pytest.mark.parametrize("step", [pytest.param(1, marks=pytest.mark.slow), 2])
async def test_killed_while_the_victim_falls_asleep(tmp_path: Path, step: int) -> None:
    async with running_rack(tmp_path) as rack:
        config = write(rack)
        async with killed(rack, config, [f"a.sleep.{step}"]) as doomed:
            await doomed.wake("a", "b", "other")
            await doomed.keep_busy("b")  # so that a is evicted
            doomed.ask("c")
            await doomed.until_at(f"a.sleep.{step}")
        await go_on(rack, config, adopted={"b", "other"}, slept={"a"})
        Books().read(rack.hook_log)


@pytest.mark.parametrize("step", [pytest.param(1, marks=pytest.mark.slow), 2])
async def test_killed_while_the_target_wakes(tmp_path: Path, step: int) -> None:
    async with running_rack(tmp_path) as rack:
        config = write(rack)
        async with killed(rack, config, [f"c.wake.{step}"]) as doomed:
            await doomed.wake("a", "b", "other")
            await doomed.keep_busy("b")
            doomed.ask("c")
            await doomed.until_at(f"c.wake.{step}")
        await go_on(rack, config, adopted={"b", "other"}, slept={"c"})
        Books().read(rack.hook_log)


async def test_killed_while_hooks_of_two_resources_run(tmp_path: Path) -> None:
    async with running_rack(tmp_path) as rack:
        config = write(rack)
        async with killed(rack, config, ["b.wake.2", "other.wake.1"]) as doomed:
            await doomed.wake("a")
            doomed.ask("b")
            doomed.ask("other")
            await doomed.until_at("b.wake.2")
            await doomed.until_at("other.wake.1")
        await go_on(rack, config, adopted={"a"}, slept={"b", "other"})
        Books().read(rack.hook_log)


async def test_killed_while_a_wake_waits_for_its_lane(tmp_path: Path) -> None:
    async with running_rack(tmp_path) as rack:
        config = write(rack)
        async with killed(rack, config, ["b.wake.1"]) as doomed:
            await doomed.wake("small", "other")
            doomed.ask("b")
            await doomed.until_at("b.wake.1")
            doomed.ask("a")  # a does not fit beside both, so small is to leave, once b is awake
            await doomed.until_queued("a")
        await go_on(rack, config, adopted={"small", "other"}, slept={"b"})
        Books().read(rack.hook_log)


async def test_killed_while_it_cleans_up_after_a_failed_wake(tmp_path: Path) -> None:
    async with running_rack(tmp_path) as rack:
        config = write(rack)
        (tmp_path / "b.wake.fails").touch()
        async with killed(rack, config, ["b.sleep.1"]) as doomed:
            await doomed.wake("a", "other")
            doomed.ask("b")
            await doomed.until_at("b.sleep.1")
            doomed.ask("c")
        await go_on(rack, config, adopted={"a", "other"}, slept={"b"})
        Books().read(rack.hook_log)


async def test_killed_while_a_sleeping_model_is_stopped(tmp_path: Path) -> None:
    async with running_rack(tmp_path) as rack:
        config = write(rack, sleepers=True)
        async with killed(rack, config, ["a.stop.1", "b.stop.1"]) as doomed:
            # At the start both might sleep with what they need asleep, which is too much.
            await doomed.until_at("a.stop.1", "b.stop.1")
            doomed.ask("c")
            doomed.ask("other")
            await doomed.until_state("other", "awake")
        await go_on_with_sleepers(rack, config, adopted={"other"})

        Books(asleep=ASLEEP).read(rack.hook_log)


async def test_killed_while_sleepers_hold_what_others_need(tmp_path: Path) -> None:
    async with running_rack(tmp_path) as rack:
        config = write(rack, sleepers=True)
        async with killed(rack, config, []) as doomed:
            await doomed.wake("a", "c", "b", "other")
        await go_on_with_sleepers(rack, config, adopted=awake_now(rack))

        Books(asleep=ASLEEP).read(rack.hook_log)


def awake_now(rack: Rack) -> set[str]:
    return {name for name, each in rack.backends.items() if each.awake.exists()}


async def go_on_with_sleepers(rack: Rack, config: Path, *, adopted: set[str]) -> None:
    """Like `go_on`, where llmux stops a model at its start, since both may need something asleep."""
    async with running_llmux(config) as llmux, llmux.client() as client:
        with trio.fail_after(10):
            while not adopted <= {n for n, m in (await models_of(client)).items() if m["awake"]}:
                await trio.sleep(0.02)
        await ask_all(rack, client)


async def test_a_stop_hook_that_runs_is_in_the_record(
    autojump_clock: MockClock, tmp_path: Path
) -> None:
    # Or the next llmux could wake the model while that hook still ends its server.
    record = AwakeRecord(tmp_path / "awake.json")
    memory = shared(
        {"gpu": 80, "ram": 30},
        {name: Needs.of((80, 0), (0, 20)) for name in ("a", "b")},
    )
    stoppers = {name: Traits(stops=True) for name in ("a", "b")}
    rig = SharedRig(memory, traits=stoppers, record=record, seconds={("a", "stop"): 10})
    async with rig.running():
        await trio.sleep(5)
        assert rig.hooks.calls == [("a", "stop")]
        after = AwakeRecord(tmp_path / "awake.json")
        after.load(["a", "b"])
        assert after.entry("a") == Entry("unsure", record.mark("a"))
        assert record.mark("a")
        await trio.sleep(10)
        assert record.entry("a") is record.entry("b") is None


async def test_one_that_was_killed_in_its_wake_may_hold_what_only_the_wake_needs(
    autojump_clock: MockClock, tmp_path: Path
) -> None:
    needs = {"a": Needs.of((40,), peak=(60,)), "b": Needs.of((40,))}
    record = AwakeRecord(tmp_path / "awake.json")
    record.load(["a", "b"])
    record.note("a", "unsure")
    memory = shared({"gpu": 80}, needs, overlapping_hooks=True)  # else b would wait for a's lane
    rig = SharedRig(memory, record=record, seconds={("a", "sleep"): 10})
    rig.hooks.stands["a"] = "moving"
    async with rig.running():
        assert await rig.ask("b") == 10


# ---- A config with less memory ----


async def test_what_does_not_fit_any_more_is_put_to_sleep(tmp_path: Path) -> None:
    async with running_rack(tmp_path) as rack:
        config = write(rack)
        async with killed(rack, config, []) as doomed:
            await doomed.wake("a", "b", "other")
        config = write(rack, gpu0=60)
        awake = await awake_after_start(rack, config, count=2)
        assert "other" in awake
        assert len(awake & {"a", "b"}) == 1
        books = Books()
        log = rack.hook_log
        at = log.index(KILLED)
        books.read(log[: at + 1])
        # More is held than there is, until one sleeps; and nothing wakes before.
        slept = ({"a", "b"} - awake).pop()
        assert log[at + 1 : at + 3] == [f"{slept} sleep", f"{slept} sleep done"]
        books.read(log[at + 1 : at + 3])
        books.amounts["gpu0"] = 60
        books.read(log[at + 3 :])


async def awake_after_start(rack: Rack, config: Path, count: int) -> set[str]:
    """Start llmux, ask for a model that has to wait for what is put to sleep, and all others."""
    async with running_llmux(config) as llmux, llmux.client() as client:
        found: list[str] = []
        with trio.fail_after(10):
            while len(found) != count:
                await trio.sleep(0.02)
                models = await models_of(client)
                found = [name for name, model in models.items() if model["awake"]]
        for model in NEEDS:
            assert (await client.post(CHAT, json=chat(model))).status_code == 200
    return set(found)


async def test_one_that_can_never_be_awake_again_is_put_to_sleep(tmp_path: Path) -> None:
    async with running_rack(tmp_path) as rack:
        config = write(rack)
        async with killed(rack, config, []) as doomed:
            await doomed.wake("other", "small")
        # A group of its own memory no more: one model is awake at a time.
        models: dict[str, Any] = {name: {h: HOOKS[h] for h in ("wake", "sleep")} for name in NEEDS}
        config = rack.write_config(models=models)
        async with running_llmux(config) as llmux, llmux.client() as client:
            for model in ("a", "other", "small"):
                assert (await client.post(CHAT, json=chat(model))).status_code == 200
                assert awake_now(rack) == {model}
