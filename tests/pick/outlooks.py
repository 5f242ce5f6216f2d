"""Outlooks for tests, and a table of hosts that have said them."""

from __future__ import annotations

from typing import Any

from llmux.observe.schemas.outlook import HostState, ModelOutlook, Outlook
from llmux.pick.table import Address, Table


def model(wait_secs: float | None = 0.0, **traits: Any) -> ModelOutlook:
    """A model that is awake, or sleeps if it has to be waited for."""
    usual = {
        "refused": None, "awake": not wait_secs, "running": 0, "waiting": 0, "max_in_flight": None,
        "arrivals_per_sec": 0.0, "latency_secs": 1.0, "cost_secs": 2.0 if wait_secs else 0.0,
    }  # fmt: skip
    return ModelOutlook(wait_secs=wait_secs, **{**usual, **traits})


def outlook(state: HostState = "ready", **models: ModelOutlook) -> Outlook:
    return Outlook(at=0.0, boot="b", state=state, models=models)


def endpoint(number: int) -> str:
    return f"10.0.0.{number}:3000"


def table_of(*outlooks: Outlook | None, now: float = 0.0) -> Table:
    """Hosts 10.0.0.1, 10.0.0.2, ... of which each has said its outlook now; None: nothing yet."""
    table = Table()
    numbers = range(1, len(outlooks) + 1)
    table.keep(Address(endpoint(n), f"http://{endpoint(n)}") for n in numbers)
    for number, said in zip(numbers, outlooks, strict=True):
        if said is not None:
            table.note_heard(table.hosts[endpoint(number)], said, now)
    return table
