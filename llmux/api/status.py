"""Build the status of the control API from the switchers."""

from __future__ import annotations

import math
from typing import get_args

import trio

from llmux import __version__
from llmux.api.forecasts import Forecasts
from llmux.api.memory_status import memory_of, needs_of
from llmux.config import Config, HookName
from llmux.observe.feed import Feed
from llmux.observe.schemas import Gpu, GroupStatus, ModelStatus, Status
from llmux.openai.tokens import Rates
from llmux.switching.model import Model
from llmux.switching.switchboard import Switchboard
from llmux.switching.switcher import Switcher


def status_of(
    board: Switchboard,
    feed: Feed,
    config: Config,
    *,
    rates: Rates,
    forecasts: Forecasts,
    gpus: list[Gpu],
) -> Status:
    return Status(
        at=feed.clock.now(),
        version=__version__,
        boot=feed.boot,
        started=feed.started_at,
        state=board.state,
        active_model=board.active_model,
        mode=board.mode,
        policy=config.policy.name,
        queue_depth=board.queue_depths,
        groups={
            name: _group_status(switcher, feed, config) for name, switcher in board.groups.items()
        },
        models={
            model.name: _model_status(
                switcher, model, board, feed, rates=rates, forecasts=forecasts
            )
            for switcher in board.groups.values()
            for model in switcher.models.values()
        },
        estimated_costs=board.estimated_costs(),
        gpus=gpus,
        cordoned=board.is_cordoned,
    )


def _group_status(switcher: Switcher, feed: Feed, config: Config) -> GroupStatus:
    rules = config.groups.get(switcher.group)
    entered = [m.entered_at for m in switcher.models.values() if m.entered_at != -math.inf]
    return GroupStatus(
        state=switcher.state,
        since=feed.clock.unix(max(entered)) if entered else feed.started_at,
        active_model=switcher.active.name if switcher.active else None,
        models=list(switcher.models),
        pinned=switcher.pinned,
        switch=switcher.running,
        standby=rules.standby if rules else None,
        stays=switcher.why_it_stays or None,
        awake_models=[model.name for model in switcher.awake],
        switches=switcher.switches,
        pins=switcher.pins,
        memory=memory_of(switcher),
    )


def _model_status(
    switcher: Switcher,
    model: Model,
    board: Switchboard,
    feed: Feed,
    *,
    rates: Rates,
    forecasts: Forecasts,
) -> ModelStatus:
    now = trio.current_time()
    config = board.config_of(model.name)
    oldest = model.waiters.oldest
    is_slept = model.idle_sleep_s != math.inf
    needs = needs_of(switcher, model.name)
    return ModelStatus(
        group=switcher.group,
        state=model.phase.value,
        since=feed.clock.unix(model.entered_at)
        if model.entered_at != -math.inf
        else feed.started_at,
        in_flight=model.in_flight.count,
        queued=model.queued,
        awake=model.is_awake,
        oldest_wait_secs=None if oldest is None else round(now - oldest, 3),
        last_error=None if model.last_error is None else model.last_error.details,
        retry_in_secs=max(0.0, round(model.retry_at - now, 3))
        if model.failures or model.is_failing
        else None,
        failing=model.is_failing,
        failed_wakes=model.failed_wakes,
        alive_trouble=switcher.health.trouble_of(model),
        cost_secs=0.0 if model.is_awake else _rounded(switcher.cost_s(model)),
        eta_secs=_rounded(forecasts.eta_s(switcher, model)),
        aliases=list(config.alias_names),
        backend=config.base_url,
        max_in_flight=config.max_in_flight,
        idle_sleep_secs=model.idle_sleep_s if is_slept else None,
        hooks=[hook for hook in get_args(HookName) if config.script(hook)],
        tokens_per_sec=rates.per_second(model.name),
        kept=model.is_kept,
        stopped=switcher.room.is_stopped(model.name),
        needs=needs.awake,
        needs_asleep=needs.asleep,
        needs_waking=needs.waking,
    )


def _rounded(seconds: float | None) -> float | None:
    return None if seconds is None else round(seconds, 3)
