"""A cordoned host takes no new requests, and serves those that it has; why a request is refused."""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest
import trio
from trio.testing import MockClock, wait_all_tasks_blocked

from llmux.config import Config, parse_config
from llmux.errors import Cordoned, LlmuxError, ModelNotFound
from llmux.observe.events import Events
from llmux.observe.schemas import CordonChange, Pin
from llmux.switching.hints import NEVER_SWITCH, NO_HINTS, PASSIVE, Hints
from llmux.switching.switchboard import Switchboard
from tests.fakes import FakeHooks

HOOKS = {"wake": "up", "sleep": "down", "alive": "ping"}


def config(*more: str, queued: int = 1000) -> Config:
    names = ("a", "b", *more)
    models = {name: {"port": 1 + port, **HOOKS} for port, name in enumerate(names)}
    return parse_config({"models": models, "limits": {"queued_per_model": queued}})


async def ask(
    board: Switchboard, model: str, seconds: float = 0.0, hints: Hints = NO_HINTS
) -> None:
    async with board.serving(model, hints=hints):
        await trio.sleep(seconds)


def state(board: Switchboard) -> str:
    return board.host_state


async def code_of(board: Switchboard, model: str, hints: Hints = NO_HINTS) -> str | None:
    """The code that a request really gets."""
    try:
        await ask(board, model, hints=hints)
    except LlmuxError as error:
        return error.code
    return None


@pytest.fixture
async def board(autojump_clock: MockClock) -> AsyncIterator[Switchboard]:
    board = Switchboard(config(queued=1), FakeHooks(), Events())
    async with trio.open_nursery() as nursery:
        nursery.start_soon(board.run)
        yield board
        board.stop()


async def test_new_requests_are_refused(board: Switchboard) -> None:
    await ask(board, "a")
    board.set_cordoned(True)
    assert state(board) == "cordoned"
    for model in ("a", "b"):  # awake or not
        with pytest.raises(Cordoned) as refused:
            await ask(board, model)
        assert refused.value.retry_after_s == 5
        assert board.refusal_of(model) == "cordoned"
    assert await code_of(board, "a", NEVER_SWITCH) == "cordoned"
    await ask(board, "a", hints=PASSIVE)  # only looks
    with pytest.raises(Cordoned):
        board.check_cordon()
    board.set_cordoned(False)
    board.check_cordon()
    assert state(board) == "ready"
    await ask(board, "b")


async def test_the_line_is_served_and_may_switch(board: Switchboard) -> None:
    async with trio.open_nursery() as nursery:
        nursery.start_soon(ask, board, "a", 5)
        await trio.sleep(1)
        nursery.start_soon(ask, board, "b")
        await wait_all_tasks_blocked()
        board.set_cordoned(True)
    assert board.active_model == "b"


async def test_a_request_that_tries_again_is_not_new(board: Switchboard) -> None:
    serving = board.serving("a")
    async with serving:
        pass
    with serving.waiting_beside_line():  # its backend has refused the connection
        board.set_cordoned(True)
    async with serving:
        assert serving.is_in


async def test_operators_still_decide(board: Switchboard) -> None:
    board.set_cordoned(True)
    await board.force_switch("b")
    assert board.active_model == "b"
    await board.put_model_to_sleep("b")
    await board.pin(Pin(model="a", wait=False))
    assert board.active_model == "a"


async def test_a_reload_keeps_the_cordon_and_new_groups_have_it(board: Switchboard) -> None:
    board.set_cordoned(True)
    before = config(queued=1)
    models = {"c": {"port": 9, "group": "new", **HOOKS}}
    after = parse_config({"models": {"a": {"port": 1, **HOOKS}, **models}})
    board.apply(before, after, board.policies_for(after), lambda _name, _model: None)
    assert board.is_cordoned
    assert [board.refusal_of(name) for name in ("a", "c")] == ["cordoned", "cordoned"]


async def test_changes_are_told_once(autojump_clock: MockClock) -> None:
    events = Events()
    told: list[CordonChange] = []
    events.cordon_changed.listen(told.append)
    board = Switchboard(config(), FakeHooks(), events)
    for cordoned in (False, True, True, False):
        board.set_cordoned(cordoned)
    assert [change.cordoned for change in told] == [True, False]


async def test_refusals_are_those_that_requests_get(board: Switchboard) -> None:
    assert board.refusal_of("a") is None
    board.set_mode("manual")
    assert board.refusal_of("a") == await code_of(board, "a") == "manual_mode"
    board.set_mode("auto")
    await board.pin(Pin(model="b", wait=False))
    assert board.refusal_of("a") == await code_of(board, "a") == "pinned"
    assert board.refusal_of("b") is await code_of(board, "b") is None
    board.unpin()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(ask, board, "b", 5)
        await wait_all_tasks_blocked()
        nursery.start_soon(ask, board, "a")
        await wait_all_tasks_blocked()
        assert board.refusal_of("a") == await code_of(board, "a") == "queue_full"
    board.stop()
    assert board.host_state == "stopping"
    assert board.refusal_of("a") == await code_of(board, "a") == "shutting_down"
    with pytest.raises(ModelNotFound):
        board.refusal_of("x")


async def test_the_refusals_of_failing_models(autojump_clock: MockClock) -> None:
    hooks = FakeHooks(failing={("a", "wake"): -1})
    board = Switchboard(config(), hooks, Events())
    async with trio.open_nursery() as nursery:
        nursery.start_soon(board.run)
        for _ in range(3):
            assert board.refusal_of("a") is None
            assert await code_of(board, "a") == "hook_failed"
        nursery.start_soon(ask, board, "b", 100)
        await trio.sleep(1)
        assert board.refusal_of("a") == await code_of(board, "a") == "model_failing"
        nursery.cancel_scope.cancel()
    assert board.host_state == "ready"


async def test_asking_changes_nothing(board: Switchboard) -> None:
    measures = board.switcher_of("a").measures
    assert board.refusal_of("a") is None
    assert measures.arrivals_per_s("a", trio.current_time()) == 0
    await wait_all_tasks_blocked()
    assert board.state == "idle"
    await ask(board, "a")
    await ask(board, "a")
    assert measures.arrivals_per_s("a", trio.current_time() + 1) > 0
