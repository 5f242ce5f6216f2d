"""The gate: a backend's own word on who waits inside of it."""

from __future__ import annotations

import pytest
import trio
from trio.testing import MockClock

from llmux.errors import BackendBroke, BackendError
from llmux.proxy.gate import queued_in, watch_backends
from llmux.switching.model import Model, Phase


@pytest.mark.parametrize(
    ("metrics", "queued"),
    [
        (b"", 0),
        (b"vllm:num_requests_waiting 3\n", 3),
        (b'# TYPE x gauge\nvllm:num_requests_waiting{engine="0"} 2.0\n'
         b'vllm:num_requests_waiting{engine="1"} 1e1\n', 12),
        (b"vllm:num_requests_waiting_total 5\nother 7\n", 0),
        (b"<html>", 0),
        (b"vllm:num_requests_waiting +Inf\n", 0),
        (b"vllm:num_requests_waiting 1e999\n", 1_000_000_000),
        (b"vllm:num_requests_waiting 1e-05\n", 0),
        (b"vllm:num_requests_waiting 1.2.3\n", 0),
        (b"vllm:num_requests_waiting eE\n", 0),
        (b'vllm:num_requests_waiting{model_name="a}b"} 3\n', 3),
    ],
)  # fmt: skip
def test_what_metrics_say(metrics: bytes, queued: int) -> None:
    assert queued_in(metrics) == queued


async def test_models_that_are_awake_are_watched(autojump_clock: MockClock) -> None:
    answers = iter([b"vllm:num_requests_waiting 4\n", None, b"vllm:num_requests_waiting 2\n"])

    async def fetch() -> bytes:
        answer = next(answers)
        if answer is None:
            raise BackendError("gone")
        return answer

    async def hang() -> bytes:
        await trio.sleep(1000)
        return b""

    model, silent = Model("a"), Model("b")
    for one in (model, silent):
        one.enter(Phase.WAKING)
        one.enter(Phase.AWAKE)
    silent.backend_queued = 9
    async with trio.open_nursery() as nursery:
        nursery.start_soon(watch_backends, lambda: [(model, fetch), (silent, hang)])
        await trio.sleep(0.5)
        assert model.view().backend_queued == 4
        await trio.sleep(2.0)  # one second for the one that hangs
        assert (model.backend_queued, silent.backend_queued) == (0, 0)
        await trio.sleep(2.0)
        assert model.view().backend_queued == 2
        model.enter(Phase.DRAINING)
        await trio.sleep(3.0)
        assert model.view().backend_queued == 0
        nursery.cancel_scope.cancel()


async def test_a_backend_that_breaks_off_has_nobody_waiting(autojump_clock: MockClock) -> None:
    model = Model("a")
    model.enter(Phase.WAKING)
    model.enter(Phase.AWAKE)

    async def fetch() -> bytes:
        raise BackendBroke("closed in the middle")

    with trio.move_on_after(5):
        await watch_backends(lambda: [(model, fetch)])
    assert model.backend_queued == 0
