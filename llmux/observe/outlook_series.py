"""Series for what chooses among several hosts: expected waits, and what endpoint pickers read.

Those look for totals of a model server, and for the adapters (LoRA) that it has loaded and those
that requests wait for; a host's models take the place of adapters.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from typing import NamedTuple

from llmux.observe.series import Row


class OutlookGauges(NamedTuple):
    """The present outlook of a host.

    Attributes:
        waits_s: The expected wait of a request that arrives now, by model; None: unknown.
        waiting: Number of requests in line, of all models.
        running: Number of requests in flight, of all models.
        awake: The models that admit requests.
        wanted: The other ones that requests wait for.
        most_awake: Largest number of models that may be awake together.
    """

    waits_s: Mapping[str, float | None]
    waiting: int
    running: int
    awake: Sequence[str]
    wanted: Sequence[str]
    most_awake: int


SERIES = (
    (
        "llmux_expected_wait_seconds",
        "Expected wait in line of a request that arrives now; missing while unknown",
        ("model",),
    ),
    ("llmux_requests_waiting", "Requests waiting, of all models", ()),
    ("llmux_requests_running", "Requests in flight, of all models", ()),
    (
        "llmux_models_info",
        "Models that are awake, others that are waited for, most that may be awake; value: time",
        ("running_lora_adapters", "waiting_lora_adapters", "max_lora"),
    ),
)


def rows_of(now: OutlookGauges) -> tuple[list[Row], ...]:
    """Return the rows of each of `SERIES`."""
    names = ",".join(now.awake), ",".join(now.wanted), str(now.most_awake)
    return (
        [((model,), wait_s) for model, wait_s in now.waits_s.items() if wait_s is not None],
        [((), float(now.waiting))],
        [((), float(now.running))],
        [(names, time.time())],
    )
