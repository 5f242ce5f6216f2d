"""The start: find the models that a killed llmux left awake; see `llmux.switching.awake`."""

from __future__ import annotations

from llmux.observe.logs import get_logger
from llmux.switching.awake import AwakeRecord, Entry
from llmux.switching.group import Group
from llmux.switching.health import Health
from llmux.switching.model import Model, Phase
from llmux.switching.steps import Hooks

log = get_logger(__name__)


async def take_over(group: Group, record: AwakeRecord, hooks: Hooks, health: Health) -> None:
    """Adopt recorded models that are awake and fit; mark the others to be put to sleep first."""
    found = {
        name: entry
        for name, model in group.models.items()
        if (entry := record.entry(name))
        and not model.holds_gpu  # else `Membership.add` has dealt with it
    }
    # For all models before the first checkpoint, so that none counts as asleep meanwhile.
    for name in found:
        group.models[name].holds_gpu = True
    async with group.switch_lock:
        for name, entry in found.items():
            await _take_over_one(group, group.models[name], entry, hooks, health)
        await group.let_in()


async def _take_over_one(
    group: Group, model: Model, entry: Entry, hooks: Hooks, health: Health
) -> None:
    if entry.mark:
        await hooks.end_marked(entry.mark)
    may_stay = entry.state == "awake" and group.has_room_for(model)
    if may_stay and await health.is_alive(model):
        log.info("model_adopted", model=model.name)
        model.enter(Phase.AWAKE)
    else:  # it may hold GPU memory, so it is put to sleep before another model wakes
        log.warning("model_unsure", model=model.name, hint="slept before another wakes")
        model.enter(Phase.FAILED)
