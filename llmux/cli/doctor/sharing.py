"""What memory that models share has to do with their waits."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from llmux.cli.doctor.facts import Running
from llmux.cli.doctor.findings import Finding
from llmux.cli.terminal.views import size
from llmux.observe.schemas import GroupStatus, ModelStatus


def shares_memory(running: Running, group: GroupStatus) -> bool:
    """Return whether several models of a group may be awake."""
    return any(model.needs_asleep is not None for _, model in members(running, group))


def members(running: Running, group: GroupStatus) -> list[tuple[str, ModelStatus]]:
    """Return the models of a group."""
    models = running.status.models
    return [(name, models[name]) for name in group.models if name in models]


def fits_beside(running: Running, group: GroupStatus, name: str, awake: Iterable[str]) -> bool:
    """Return whether there is memory for a model beside some that are awake.

    Lists of models that may be awake together (`sets`) are not known here.
    """
    models, awake = running.status.models, {*awake}
    if name in awake or not awake:
        return True
    if any(models[each].needs is None for each in (name, *awake) if each in models):
        return False  # one of them is awake alone
    for resource in group.memory:
        left = resource.amount
        for other, model in members(running, group):
            if other == name:
                needs = model.needs_waking or model.needs
            else:
                needs = model.needs if other in awake else model.needs_asleep
            left -= (needs or {}).get(resource.resource, 0)
        if left < 0:
            return False
    return True


def memory_findings(group: str, state: GroupStatus) -> Iterator[Finding]:
    """Yield resources of which models hold more than there is."""
    for each in state.memory:
        if each.free < 0:
            what = f"models of group {group} hold {size(-each.free)} more {each.resource} than "
            what += f"the {size(each.amount)} there are"
            why = (
                "a reload has changed what there is, or what they need: none wakes until some sleep"
            )
            yield Finding("warning", "memory", what, why)
