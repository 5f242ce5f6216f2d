"""Figures of a run's waits, and their distance from the bound of invariant 7."""

from __future__ import annotations

from bench.policy_cases.setup import BOUND_S
from llmux.simulate import Outcome
from llmux.simulate.outcome import mean, percentile
from llmux.simulate.spans import Spans


def wait_figures(outcome: Outcome, switch_s: float) -> dict[str, float]:
    """Figures of all waits, in llmux's queues and inside the backends."""
    waits = outcome.waits()
    total_s = sum(outcome.seconds.values())
    return {
        "mean": mean(waits),
        "p99": percentile(waits, 0.99),
        "max": max(waits),
        "switches": outcome.switches,
        "draining_share": outcome.seconds["draining"] / total_s,
        "switching_share": outcome.seconds["switching"] / total_s,
        **nearest_to_bound(outcome, switch_s),
    }


def nearest_to_bound(
    outcome: Outcome, switch_s: float, bound_s: float = BOUND_S
) -> dict[str, float]:
    """The wait with the largest `excess` over its bound (negative if all are within it)."""
    waits = waits_for_model(outcome)
    allowed = allowed_waits(outcome, bound_s, switch_s)
    over = [wait - most for wait, most in zip(waits, allowed, strict=True)]
    worst = max(range(len(over)), key=over.__getitem__)
    return {"excess": over[worst], "worst_wait": waits[worst], "worst_allowed": allowed[worst]}


def waits_for_model(outcome: Outcome) -> list[float]:
    """Time that each request was queued while its model was not open, in seconds.

    While the model was open, the request waited for a slot, which is not the policy's decision.
    """
    opened = [
        Spans([(start, end) for at, start, end in outcome.spans if at == index])
        for index in range(len(outcome.names))
    ]
    return [
        wait - opened[index].between(until - wait, until)
        for index, wait, until in zip(
            outcome.models, outcome.line_waits(), outcome.admitted_at, strict=True
        )
    ]


def allowed_waits(outcome: Outcome, bound_s: float, switch_s: float) -> list[float]:
    """Longest time that each request may be queued: invariant 7 of docs/guarantees.md.

    The sum of the bound and, for its own model and each model with an older queued request, two
    switches and a drain. The longest drain of the run stands for all.
    """
    each_s = 2 * switch_s + outcome.longest_drain_s
    by_arrival = sorted(range(outcome.count), key=outcome.arrived_at.__getitem__)
    # Queues are in order of arrival: if an older request is queued, so is the latest one before it.
    line_until = [0.0] * len(outcome.names)
    allowed = [0.0] * outcome.count
    for at in by_arrival:
        own, arrived_at = outcome.models[at], outcome.arrived_at[at]
        others = sum(until > arrived_at for i, until in enumerate(line_until) if i != own)
        allowed[at] = bound_s + (1 + others) * each_s
        line_until[own] = outcome.admitted_at[at]
    return allowed
