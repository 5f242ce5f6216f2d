"""The start: find the models that a killed llmux left awake; see `llmux.switching.awake`."""

from __future__ import annotations

from llmux.observe.logs import get_logger
from llmux.switching.awake import AwakeRecord, Entry
from llmux.switching.commands import Sleep
from llmux.switching.group import Group
from llmux.switching.health import Health
from llmux.switching.hooks import Hooks
from llmux.switching.ledger import Hold
from llmux.switching.model import Model, Phase

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
    for name, entry in found.items():
        group.models[name].holds_gpu = True
        group.room.ledger.find(name, Hold.AWAKE if entry.state == "awake" else Hold.UNSURE)
    with group.switch_lock.all_held():
        # Those first that are kept awake: another one that does not fit beside them has to sleep.
        for name, entry in sorted(
            found.items(), key=lambda each: not group.models[each[0]].is_kept
        ):
            await _take_over_one(group, group.models[name], entry, hooks, health)
    if group.shares_memory:  # else it is put to sleep for the next model that wakes
        for model in group.models.values():
            if model.holds_gpu and not model.is_awake:
                group.queue(Sleep(model, "it does not fit any more", stands=True, rule="restart"))


async def _take_over_one(
    group: Group, model: Model, entry: Entry, hooks: Hooks, health: Health
) -> None:
    if entry.mark:
        await hooks.end_marked(entry.mark)
    may_stay = entry.state == "awake" and _fits(group, model)
    if may_stay and await health.is_alive(model):
        log.info("model_adopted", model=model.name)
        model.enter(Phase.AWAKE)
        await model.let_in()  # before the next one is looked at, which may take long
    else:  # it may hold GPU memory, so it is put to sleep before another model wakes
        log.warning("model_unsure", model=model.name, hint="slept before another wakes")
        model.enter(Phase.FAILED)


def _fits(group: Group, model: Model) -> bool:
    """Return whether a model that was found awake fits beside those that are awake already."""
    return group.room.fit([*(each.name for each in group.awake), model.name])
