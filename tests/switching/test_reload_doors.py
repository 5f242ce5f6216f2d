"""Requests on their way to a model's door while a reload removes the model, or moves it."""

from __future__ import annotations

import pytest
import trio
from trio.testing import MockClock

from llmux.errors import ModelNotFound
from tests.switching.test_reload import Site, model


async def test_a_model_is_kept_for_a_request_while_llmux_looks(autojump_clock: MockClock) -> None:
    """Its backend has refused it; it is in no line, and was told 404."""
    site = Site({"a": model(), "b": model(2)})
    async with site.running():
        serving = site.board.serving("a")
        async with serving:
            pass
        with serving.waiting_beside_line():
            site.apply({"b": model(2)})
            await site.ask("b")  # a sleeps by now
            await trio.sleep(10)
            assert site.told == []
        async with serving, site.hooks.request("a"):
            pass
        await trio.sleep(10)
        assert site.told == [("a", None)]


async def test_a_model_is_gone_once_the_last_beside_its_line_has_left(
    autojump_clock: MockClock,
) -> None:
    site = Site({"a": model(), "b": model(2)})
    async with site.running():
        serving = site.board.serving("a")
        with pytest.raises(RuntimeError), serving.waiting_beside_line():
            site.apply({"b": model(2)})
            await trio.sleep(10)
            assert site.told == []
            raise RuntimeError  # whatever ends it
        await trio.sleep(1)
        assert site.told == [("a", None)]
        with pytest.raises(ModelNotFound):
            await serving.__aenter__()


async def test_a_request_finds_the_group_that_its_model_has_moved_to(
    autojump_clock: MockClock,
) -> None:
    site = Site({"a": model(), "b": model(2)})
    async with site.running():
        late = site.board.serving("b")
        site.apply({"a": model(), "b": model(2, group="second")})
        async with late, site.hooks.request("b"):
            assert site.board.groups["second"].models["b"].in_flight.count == 1
