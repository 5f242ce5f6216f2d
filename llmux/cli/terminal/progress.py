"""Progress of an order that runs hooks: what llmux does for it now, and for how long."""

from __future__ import annotations

import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress

from rich.console import Console
from rich.text import Text

from llmux.cli.terminal.client import Client
from llmux.cli.terminal.failures import Failed, shown
from llmux.cli.terminal.several import models_of, switches_of
from llmux.cli.terminal.views import span
from llmux.observe.schemas import GroupStatus, ModelStatus, Status, SwitchRecord

LOOK_S = 0.5
"""Interval between looks at the status."""


@contextmanager
def progress(client: Client, model: str, doing: str, stands: str) -> Iterator[None]:
    """Show the progress of an order on standard error, which is a terminal.

    Args:
        client: Asked for the status by a thread of its own, while the caller waits for the order.
        model: The name in the order; may be an alias.
        doing: The order in words, shown before the progress.
        stands: Said after Ctrl-C: what llmux goes on with.
    """
    last, is_over = "", threading.Event()
    console = Console(stderr=True)
    with console.status(Text(doing)) as line:

        def look() -> None:
            nonlocal last
            while not is_over.wait(LOOK_S):
                with suppress(Failed):  # the order itself tells of it
                    last = describe(client.get("/control/status", Status), model)
                    line.update(Text(f"{doing}: {last}" if last else doing))

        threading.Thread(target=look, daemon=True).start()
        try:
            yield
        except KeyboardInterrupt:
            now = f" (now: {last})" if last else ""
            console.print(Text(f"{stands}{now}; `llmux status` shows it"))
            raise
        finally:
            is_over.set()


def describe(status: Status, model: str) -> str:
    """Return what the group of a model does now, in words; empty: nothing, or it is unknown."""
    name = _own_name(status, model)
    if name is None or (group := status.groups.get(status.models[name].group)) is None:
        return ""
    switch, moved = _part_of(group, name)
    members = {each: status.models[each] for each in moved if each in status.models}
    step = _step(members, status.at)
    if not step:
        return f"lets in who has waited for {shown(name)}" if switch is not None else ""
    other = switch is not None and switch.target != name
    before = f"first a switch to {shown(switch.target)}: " if other and switch else ""
    return before + step + _whole(switch, status.at)


def _part_of(group: GroupStatus, name: str) -> tuple[SwitchRecord | None, Sequence[str]]:
    """Return the switch that a model is part of or waits for, and the models to look at."""
    switches = switches_of(group)
    own = next((each for each in switches if name in models_of(each)), None)
    if not (group.memory or len(switches) > 1):  # one model is awake at a time
        return own or group.switch, group.models
    return own, (name,) if own is None else models_of(own)


def _own_name(status: Status, model: str) -> str | None:
    if model in status.models:
        return model
    return next((name for name, each in status.models.items() if model in each.aliases), None)


def _step(members: dict[str, ModelStatus], now: float) -> str:
    for name, model in members.items():
        took = span(max(0.0, now - model.since))
        match model.state:
            case "draining":
                left = f"{model.in_flight} request{'' if model.in_flight == 1 else 's'} left"
                return f"drains {shown(name)} for {took}, {left}"
            case "sleeping":
                return f"sleep hook of {shown(name)}, {took}"
            case "waking":
                return f"wake hook of {shown(name)}, {took}"
    return ""


def _whole(switch: SwitchRecord | None, now: float) -> str:
    """Return how much of the expected duration of a switch has passed."""
    if switch is None or switch.expected_secs is None:
        return ""
    took_s = max(0.0, now - switch.started)
    return f" ({span(took_s)} of ~{span(switch.expected_secs)} in all)"
