"""A WebSocket that is quiet keeps no model awake, brings none back, and puts none to sleep early."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import pytest
import trio
from trio.testing import MockClock

from llmux.config import OnSwitch
from llmux.errors import StreamCut
from llmux.switching.idle import IdleRules
from llmux.switching.model import Traits
from tests.fakes import Rig

QUIET_S, IDLE_S = 60, 600


@dataclass
class Socket:
    """What carries a WebSocket."""

    message_at: float = 0.0


def sleepy_rig(**settings: Any) -> Rig:
    traits = {"a": Traits(idle_sleep_s=IDLE_S)}
    return Rig(traits=traits, websocket_idle_secs=QUIET_S, **settings)


async def hold(rig: Rig, socket: Socket, how: OnSwitch = "hold") -> None:
    """Have a WebSocket open on a, until it is cut."""
    try:
        async with rig.switcher.serving("a") as serving:
            assert serving.flight is not None
            serving.flight.open_socket(socket, how)
            await trio.sleep_forever()
    except StreamCut:
        pass


async def look(rig: Rig) -> None:
    """What `QuietWatch` does."""
    while True:
        await trio.sleep(1)
        rig.switcher.look_at_sockets()


async def test_requests_beside_it_are_use(autojump_clock: MockClock) -> None:
    rig = sleepy_rig()
    async with rig.running() as requests:
        requests.start_soon(look, rig)
        requests.start_soon(hold, rig, Socket())
        for _ in range(30):
            await rig.ask("a")
            await trio.sleep(QUIET_S)
        assert rig.hooks.calls == [("a", "wake")]
        await trio.sleep(IDLE_S)
        assert rig.hooks.calls == [("a", "wake"), ("a", "sleep")]
        requests.cancel_scope.cancel()


async def test_its_last_message_was_use(autojump_clock: MockClock) -> None:
    rig = sleepy_rig()
    async with rig.running() as requests:
        socket = Socket()
        requests.start_soon(look, rig)
        requests.start_soon(hold, rig, socket)
        for _ in range(30):
            await trio.sleep(QUIET_S / 2)
            socket.message_at = trio.current_time()
        await trio.sleep(IDLE_S - 1)
        assert rig.hooks.calls == [("a", "wake")]
        await trio.sleep(3)
        assert rig.hooks.calls == [("a", "wake"), ("a", "sleep")]
        requests.cancel_scope.cancel()


async def test_a_standby_comes_no_earlier(autojump_clock: MockClock) -> None:
    rig = Rig(websocket_idle_secs=QUIET_S, idle_rules=IdleRules("b", standby_after_s=IDLE_S))
    async with rig.running() as requests:
        requests.start_soon(look, rig)
        requests.start_soon(hold, rig, Socket())
        for _ in range(30):
            await rig.ask("a")
            await trio.sleep(QUIET_S)
        assert rig.hooks.calls == [("a", "wake")]
        await trio.sleep(IDLE_S)
        assert rig.hooks.awake == {"b"}
        requests.cancel_scope.cancel()


@pytest.mark.parametrize(("how", "open_s"), [("cut", 1), ("hold", QUIET_S + 1)])
async def test_it_is_no_reason_to_switch_back_to_a_model_that_freezes(
    how: OnSwitch, open_s: float, autojump_clock: MockClock
) -> None:
    traits = {"a": Traits(preserves_in_flight=True)}
    rig = Rig(traits=traits, websocket_idle_secs=QUIET_S)
    async with rig.running() as requests:
        requests.start_soon(hold, rig, Socket(), how)
        await trio.sleep(open_s)
        await rig.ask("b")
        await trio.sleep(10_000)
        assert rig.hooks.calls == [("a", "wake"), ("a", "sleep"), ("b", "wake")]
        assert rig.switcher.models["a"].wanted_by == 0
