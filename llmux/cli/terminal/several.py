"""What a group has several of where its models share memory; older llmuxes tell only the first."""

from __future__ import annotations

from llmux.observe.schemas import GroupStatus, Pin, SwitchRecord


def awake_of(group: GroupStatus) -> list[str]:
    """Return the models that are awake."""
    return group.awake_models or ([] if group.active_model is None else [group.active_model])


def switches_of(group: GroupStatus) -> list[SwitchRecord]:
    """Return the running switches, in the order in which they began."""
    return group.switches or ([] if group.switch is None else [group.switch])


def pins_of(group: GroupStatus) -> list[Pin]:
    """Return the pins in force, the last one first."""
    return group.pins or ([] if group.pinned is None else [group.pinned])


def models_of(switch: SwitchRecord) -> tuple[str, ...]:
    """Return the models that a switch moves, the target last."""
    evicts = switch.evicts or tuple(filter(None, [switch.source]))
    return (*evicts, switch.target)
