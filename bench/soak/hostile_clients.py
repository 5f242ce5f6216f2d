"""Runs the hostile clients, from the first second of a run to its last."""

from __future__ import annotations

import sys
import traceback
from contextlib import suppress

import trio

from bench.soak.hostile import Act, Foe
from bench.soak.hostile_framed import FRAMED_ACTS
from bench.soak.hostile_http import HTTP_ACTS
from bench.soak.run import BROKEN, Run
from bench.soak.settings import HOSTILE_CLIENTS, HOSTILE_S, HOSTILE_THINK_S

ACTS: dict[str, Act] = {**HTTP_ACTS, **FRAMED_ACTS}
WEIGHTS = {"smuggling": 3, "HTTP/2": 3, "WebSocket": 2, "odd targets": 2}
"""Acts that are drawn more often, with their weights."""

MAY_COUNT = {"unread answers": 30, "HTTP/2": 20}
"""Most requests of one act that llmux may count for a model; four for other acts."""


def start_hostile_clients(run: Run, nursery: trio.Nursery) -> None:
    """Start all hostile clients; each ends with the run."""
    flooding = trio.Lock()
    for index in range(HOSTILE_CLIENTS):
        rng = run.rng(f"hostile {index}")
        nursery.start_soon(hostile_client, Foe(run, rng, f"127.0.2.{1 + index}", flooding))


async def hostile_client(foe: Foe) -> None:
    """Run one act after the other."""
    names = list(ACTS)
    weights = [WEIGHTS.get(name, 1) for name in names]
    for _ in range(sys.maxsize):
        await trio.sleep(foe.rng.expovariate(1 / HOSTILE_THINK_S))
        if foe.run.is_over:
            return
        name = foe.rng.choices(names, weights)[0]
        foe.run.record.hostile[name] += 1
        foe.run.record.unknown += MAY_COUNT.get(name, 4)
        try:
            with suppress(*BROKEN), trio.move_on_after(HOSTILE_S):
                await ACTS[name](foe)
        except Exception:  # a fault of this program must not end a long run
            text = traceback.format_exc()
            foe.run.record.violations.append(f"the soak's own mistake in {name}: {text}")
