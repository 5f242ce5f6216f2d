"""When a failing model may be tried: its breaker, as pure functions.

A model is failing once `policy.wake_failures` wakes in a row were of no use: they failed, or its
server was found down before it had answered. Each attempt would put a model to sleep that works. So
a failing model is tried only when nobody is served by another model of its group, and then once for
each delay that `llmux.switching.core` sets (60 s at last); a successful wake ends that. Operators'
commands always try. Nothing here waits, reads a clock or emits events.
"""

from __future__ import annotations

import math
from collections.abc import Iterable

from llmux.switching.core import LONGEST_RETRY_S, ModelState, Phase

QUIET_S = LONGEST_RETRY_S
"""Time without use after which a model that is awake may be put to sleep for a trial: a client that
asks it every minute should never find it asleep because of another model's trial."""


def trial_at(target: ModelState, models: Iterable[ModelState]) -> float:
    """Return the earliest time at which a failing model may be tried.

    Args:
        target: The model.
        models: The models of its group; may include the target.

    Returns:
        Seconds of the models' clock; infinity while another model is served.
    """
    at = target.retry_at
    for model in models:
        if model is not target:
            at = max(at, _spared_until(model))
    return at


def _spared_until(model: ModelState) -> float:
    """Return until when no trial of another model may take the GPU from this one."""
    if model.phase is Phase.WAKING:
        return math.inf
    if model.is_awake:
        return model.quiet_since + QUIET_S
    # Requests of a model that is failing, too, wait for its own trial: the two must not block each
    # other for ever.
    return -math.inf if model.is_failing or model.quiet_since < math.inf else math.inf
